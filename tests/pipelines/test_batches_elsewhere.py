"""Batches of InternEvo and XTuner, and the keys here that give the same."""

from pathlib import Path

import pytest

from pipelines.batches_elsewhere import batch_of
from pipelines.errors import ConfigError


def test_a_hand_worked_batch_of_internevo() -> None:
    # 64 GPUs in 8 copies of the model, each with 4 micro-batches of 2 sequences of 32,768 tokens.
    batch = batch_of("internevo", "micro_num=4,micro_bsz=2,tp=4,pp=2,zero1=8,seq_len=32768,gpus=64")
    assert (batch.sequences, batch.tokens) == (64, 64 * 32768)
    assert batch.keys == {
        "prep.pack.capacity": 65536,
        "prep.pack.attention_window": 32768,
        "train.global_batch_size": 32,
        "train.parallel.sequence_parallel_size": 4,
        "train.deepspeed.zero_stage": 3,
    }
    assert batch.keys["prep.pack.capacity"] * batch.keys["train.global_batch_size"] == batch.tokens


def test_a_hand_worked_batch_of_xtuner() -> None:
    batch = batch_of("xtuner", "batch_size=2,accumulative_counts=16,sp=4,max_length=8192", gpus=32)
    assert batch.keys["train.global_batch_size"] == 2 * 16 * 8
    assert batch.tokens == 2 * 16 * 8 * 8192


def test_configs_are_read_as_syntax_and_never_run(tmp_path: Path) -> None:
    path = tmp_path / "config.py"
    path.write_text(
        "import os\nos.abort()\nSEQ_LEN = 2 * 1024\nMICRO = 3\n"
        "data = dict(type='tokenized', seq_len=SEQ_LEN, micro_num=MICRO + 1, micro_bsz=1, folder=os.environ['HOME'])\n"
        "parallel = dict(zero1=dict(size=-1), tensor=dict(size=2, mode='isp'), pipeline=dict(size=1), "
        "weight=dict(size=4))\n"
    )
    batch = batch_of("internevo", str(path), gpus=16)
    assert batch.theirs == {
        "micro_num": 4, "micro_bsz": 1, "seq_len": 2048, "tp": 2, "pp": 1, "wp": 4, "zero1": -1, "gpus": 16,
    }  # fmt: skip
    assert batch.keys["train.global_batch_size"] == 32
    path.write_text("sequence_parallel_size = 4\naccumulative_counts = 8\n" + (
        "accumulative_counts *= sequence_parallel_size\nmax_length = 4096\nbatch_size = 1\n"
    ))  # fmt: skip
    assert batch_of("xtuner", str(path), gpus=8).keys["train.global_batch_size"] == 32 * 2
    path.write_text(
        "strategy = dict(gradient_accumulation_steps=8)\n"
        "train_dataloader = dict(batch_size=2, dataset=dict(max_length=4096))\n"
    )
    assert batch_of("xtuner", str(path), gpus=4).keys == {
        "prep.pack.capacity": 4096,
        "train.global_batch_size": 2 * 8 * 4,
        "train.parallel.sequence_parallel_size": 1,
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("micro_num=4,seq_len=8,gpus=6,tp=4", "tensor 4 x pipeline 1 does not divide it"),
        ("micro_num=4,gpus=8", "seq_len is missing; write seq_len="),
        ("micro_num=4,seq_len=8", "gpus is missing; give --ranks"),
        ("micro_nun=4", "micro_nun: no such setting; there are micro_num"),
        ("micro_num=four", "micro_num = four: expected a whole number"),
        ("micro_num=0,seq_len=8,gpus=1", "micro_num = 0: expected a number of 1 or more"),
        ("nowhere.py", "nowhere.py: No such file"),
    ],
)
def test_what_is_wrong_is_said(given: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        batch_of("internevo", given)
