"""Runs of XTuner and InternEvo, from their configs: every step takes the packs that it took there, on every rank.

What those two do is written down in tests/elsewhere.py. A config is migrated, its TOML prepared and dealt to ranks;
what each rank gets in each step is compared with what it got there, token for token.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pytest

from pipelines.config import load
from pipelines.migrate.migration import Migration, Trainer, migrate, write
from pipelines.schema import Pipeline
from pipelines.shards import IGNORE, ShardReader
from prep.order import write_order
from prep.run import run
from tests.elsewhere import (
    Expected,
    StaticBatchSampler,
    Steps,
    default_sampler,
    documents_of_internevo,
    intern_repo_sampler,
    labels_of,
    packs_of_xtuner,
    steps_of_xtuner,
    stream_of,
    write_ftdp,
)
from tests.prep.small import TOKENIZER, conversations
from train.batches import Batches, MicroBatch

CAPACITY = 32
MODEL = f"""
sequence_parallel_size = $sp
model = dict(
    type=SupervisedFinetune, use_varlen_attn=$varlen,
    llm=dict(type=AutoModelForCausalLM.from_pretrained, pretrained_model_name_or_path="{TOKENIZER}"),
)
tokenizer = dict(type=AutoTokenizer.from_pretrained, pretrained_model_name_or_path="{TOKENIZER}")
"""
LOOP = """
optim_wrapper = dict(type=AmpOptimWrapper, optimizer=dict(type=AdamW, lr=1e-4), accumulative_counts=$counts)
train_cfg = dict(type=TrainLoop, max_epochs=3)
train_dataloader = dict(batch_size=$size, dataset=train_dataset, sampler=sampler)
"""
TOKENIZED = """
train_dataset = dict(
    type=build_packed_dataset,
    dataset_cfg=dict(
        type=load_intern_repo_tokenized_dataset, folder="data", data_order_path="order/data_order.txt", min_length=8
    ),
    packed_length=32, seed=$packs_seed,
)
"""
RECORDS = """
train_dataset = dict(
    type=process_hf_dataset, tokenizer=tokenizer,
    dataset=dict(type=load_dataset, path="json", data_files=dict(train=["b.jsonl", "a.jsonl"])),
    max_length=32, dataset_map_fn=openai_map_fn, $packed
)
"""
INTERNEVO = """
JOB_NAME = "r"
data = dict(
    type="tokenized", seq_len=$seq_len, micro_num=$counts, micro_bsz=$size, pack_sample_into_one=$into_one,
    total_steps=9, min_length=8, train_folder="data", valid_folder="valid", $seed
)
adam = dict(lr=1e-4, adam_beta1=0.9, adam_beta2=0.95, adam_eps=1e-8, weight_decay=0.01)
model = dict(vocab_size=512, num_layers=1, hidden_size=32, num_attention_heads=2, num_kv_attention_heads=2)
parallel = dict(zero1=dict(size=-1), tensor=dict(size=$sp, mode="isp"), pipeline=dict(size=1), weight=dict(size=1))
"""


@dataclass(frozen=True)
class Taken:
    """What a rank takes at once."""

    ids: list[int]
    labels: list[int]
    """In the place of their token."""
    documents: list[int]
    """Where attention begins anew, and positions count from 0."""


def taken(micro: MicroBatch) -> Taken:
    ids = micro.input_ids[0].tolist()
    labels = [IGNORE] * len(ids)
    for place, target in zip(micro.predictors.tolist(), micro.targets.tolist(), strict=True):
        labels[place + 1] = target
    documents = [place for place, position in enumerate(micro.position_ids[0].tolist()) if position == 0]
    return Taken(ids, labels, [*documents, len(ids)])


def expected(pack: Expected, documents: Sequence[int]) -> Taken:
    return Taken([abs(id_) for id_ in pack.ids], labels_of(pack), sorted(set(documents)))


def written(folder: Path, trainer: Trainer, text: str, *, gpus: int, **names: Any) -> tuple[Migration, Pipeline]:
    """The config with these names in it, as a pipeline in the same folder."""
    (folder / "theirs.py").write_text(Template(text).substitute(names))
    found = migrate(trainer, folder / "theirs.py", gpus=gpus)
    write(found, folder / "ours.toml")
    overrides = [f"tokenizer.name_or_path='{TOKENIZER}'"] if trainer == "internevo" else []
    return found, load(folder / "ours.toml", overrides)


def assert_same_steps(pipeline: Pipeline, packs: Sequence[Taken], steps: Steps) -> None:
    """Every data-parallel rank takes in each of these steps what it took there, pack by pack."""
    train = pipeline.train
    assert train is not None
    shards = ShardReader(pipeline.home / "prep")
    assert len(shards) == len(packs) > 2 * len(steps[0])
    for rank in range(len(steps[0])):
        batches = Batches(
            shards, global_batch_size=train.global_batch_size, shuffle=train.shuffle, seed=pipeline.run.seed,
            shuffle_seed=train.shuffle_seed, rank=rank, ranks=len(steps[0]),
        )  # fmt: skip
        for number, step in enumerate(steps):
            assert [taken(one) for one in batches[number].micro_batches] == [packs[pack] for pack in step[rank]]


def tokenized(folder: Path, counts: Sequence[int] = (60, 45, 1)) -> dict[str, list[list[int]]]:
    """A folder of .bin files in the order of the file system, which is no alphabetical one."""
    random = np.random.default_rng(7)
    names = ("en/b.bin", "cn/a.bin", "en/a.bin")
    files = {
        name: [(random.integers(1, 500, n) * random.choice([-1, 1], n)).tolist() for n in random.integers(0, 60, count)]
        for name, count in zip(names, counts, strict=True)
    }
    for name, records in files.items():
        write_ftdp(folder / "data" / name, records)
    return files


def xtuner_epochs(sampler: str, packs: int, ranks: int, seed: int | None) -> Iterator[list[list[int]]]:
    """[data-parallel ranks, packs] of three epochs; without a seed in order."""
    every = range(ranks)
    for epoch in range(3):
        if sampler == "InternRepoSampler":
            yield [intern_repo_sampler(packs, epoch=epoch, rank=rank, ranks=ranks) for rank in every]
        elif seed is not None:
            yield [default_sampler(packs, seed=seed, epoch=epoch, rank=rank, ranks=ranks) for rank in every]
        else:
            yield [[*range(rank, packs, ranks)] for rank in every]


def whole_steps(steps: Steps, packs: int) -> Steps:
    """All of three epochs where each is whole steps, and else those of the first."""
    size = sum(map(len, steps[0]))
    return steps[: packs // size] if packs % size else steps


@pytest.mark.parametrize(
    ("sampler", "seed", "general", "packs_seed", "varlen", "size", "counts", "sp", "gpus"),
    [
        ("InternRepoSampler", 1024, None, 1024, True, 1, 1, 1, 3),
        ("InternRepoSampler", 7, 7, 3, False, 2, 2, 1, 2),  # its seed is 1024, whatever is said
        ("SequenceParallelSampler", None, 42, 1024, True, 1, 4, 2, 4),
        ("DefaultSampler", 5, 42, 1024, False, 1, 2, 1, 2),
    ],
)
def test_a_tokenized_run_of_xtuner(
    tmp_path: Path, sampler: str, seed: int | None, general: int | None, packs_seed: int, varlen: bool, size: int,
    counts: int, sp: int, gpus: int,
) -> None:  # fmt: skip
    files = tokenized(tmp_path)
    (tmp_path / "order").mkdir()
    (tmp_path / "order" / "data_order.txt").write_text("".join(f"{name}\n" for name in files))
    text = f"sampler = dict(type={sampler}, shuffle=True, seed={seed})\nrandomness = dict(seed={general})\n"
    found, pipeline = written(
        tmp_path, "xtuner", MODEL + text + TOKENIZED + LOOP, gpus=gpus, varlen=varlen, size=size, counts=counts, sp=sp,
        packs_seed=packs_seed,
    )  # fmt: skip
    assert not found.facts()["counts"]["decide"]
    run(pipeline, workers=1)
    packs = packs_of_xtuner(files, seed=packs_seed, packed_length=CAPACITY, min_length=8)
    ranks, drawn = gpus // sp, seed if seed is not None else general
    steps = steps_of_xtuner(
        xtuner_epochs(sampler, len(packs), ranks, drawn), batch_size=size, accumulative_counts=counts
    )
    documents = [pack.ends if varlen else [0, CAPACITY] for pack in packs]
    packed = [expected(*one) for one in zip(packs, documents, strict=True)]
    assert_same_steps(pipeline, packed, whole_steps(steps, len(packs)))


def samples_of(pipeline: Pipeline, folder: Path) -> list[list[int]]:
    """The samples as prep renders and cuts them, signed, in the order of their files."""
    overrides = ['run.name="samples"', 'prep.pack.strategy="none"', "prep.pack.drop_last=false"]
    overrides.append("prep.pack.cross_sample_attention=false")
    alone = load(folder / "ours.toml", overrides)
    run(alone, workers=1)
    packs = sorted(ShardReader(alone.home / "prep"), key=lambda pack: (int(pack.file[0]), int(pack.record[0])))
    assert {len(pack.file) for pack in packs} == {1}
    return [
        [int(id_) if label else -int(id_) for id_, label in zip(pack.tokens, pack.loss, strict=True)] for pack in packs
    ]


ONE_STREAM = "pack_to_max_length=True, shuffle_before_pack=False, map_num_proc=1"


@pytest.mark.parametrize(
    ("packed", "shuffle", "varlen", "size", "counts", "gpus"),
    [
        ("pack_to_max_length=False", True, False, 2, 2, 2),
        (ONE_STREAM, True, True, 1, 2, 3),
        (ONE_STREAM, False, False, 2, 1, 2),
    ],
)
def test_a_run_of_records_of_xtuner(
    tmp_path: Path, packed: str, shuffle: bool, varlen: bool, size: int, counts: int, gpus: int
) -> None:
    for name, count in (("b.jsonl", 40), ("a.jsonl", 60)):
        (tmp_path / name).write_text(conversations(count))
    text = f"sampler = dict(type=DefaultSampler, shuffle={shuffle})\nrandomness = dict(seed=42)\n"
    found, pipeline = written(
        tmp_path, "xtuner", MODEL + text + RECORDS + LOOP, gpus=gpus, varlen=varlen, size=size, counts=counts, sp=1,
        packed=packed,
    )  # fmt: skip
    assert not found.facts()["counts"]["decide"]
    assert not found.notes
    write_order(pipeline)
    run(pipeline, workers=1)
    samples = samples_of(pipeline, tmp_path)
    assert len(samples) == 75, "one in four has no label before its cut, and is left out, as there"
    if packed == ONE_STREAM:
        packs = stream_of(samples, range(len(samples)), packed_length=CAPACITY)
    else:
        packs = [Expected(sample, [0, len(sample)]) for sample in samples]
    epochs = xtuner_epochs("DefaultSampler", len(packs), gpus, 42 if shuffle else None)
    steps = steps_of_xtuner(epochs, batch_size=size, accumulative_counts=counts)
    documents = [pack.ends if varlen else [0, len(pack.ids)] for pack in packs]
    taken_there = [expected(*one) for one in zip(packs, documents, strict=True)]
    assert_same_steps(pipeline, taken_there, whole_steps(steps, len(packs)))


def test_what_of_a_run_of_xtuner_nobody_can_repeat_is_said(tmp_path: Path) -> None:
    sizes = {"varlen": True, "size": 1, "counts": 1, "sp": 1}
    text = MODEL + RECORDS + "sampler = dict(type=LengthGroupedSampler, per_device_batch_size=2)\n" + LOOP
    found, pipeline = written(tmp_path, "xtuner", text, gpus=1, packed="shuffle_before_pack=False", **sizes)
    by_key = {line.key: line for line in found.lines}
    assert by_key["sampler.type"].verdict == "decide"
    assert "no such order of packs here" in by_key["sampler.type"].note
    assert any("there 32 processes (map_num_proc) packed a part" in note for note in found.notes)
    assert pipeline.prep.order.shuffle == "none"
    (tmp_path / "ours.toml").unlink()
    text = MODEL + RECORDS + "sampler = dict(type=DefaultSampler, shuffle=True)\n" + LOOP
    found, pipeline = written(tmp_path, "xtuner", text, gpus=1, packed="", **sizes)
    assert (pipeline.prep.order.shuffle, pipeline.prep.pack.strategy) == ("hash", "concat_split")
    assert "samples in an order of their own, as that there was drawn by chance" in found.toml
    (tmp_path / "ours.toml").unlink()
    text = MODEL + TOKENIZED + "sampler = dict(type=DefaultSampler, shuffle=True)\n" + LOOP
    found, _ = written(tmp_path, "xtuner", text, gpus=1, packs_seed=1024, **sizes)
    assert found.notes == ("train.shuffle_seed: that run's sampler drew its seed by chance; its log says it",)


@pytest.mark.parametrize(("into_one", "size", "seed"), [(False, 1, None), (True, 2, 1024), (False, 4, 5)])
@pytest.mark.parametrize(("counts", "sp", "gpus"), [(3, 2, 4)])
def test_a_run_of_internevo(
    tmp_path: Path, into_one: bool, size: int, seed: int | None, counts: int, sp: int, gpus: int
) -> None:
    files = tokenized(tmp_path, counts=(90, 45, 1))
    (tmp_path / "data_order.txt").write_text("".join(f"{name}\n" for name in files))
    found, pipeline = written(
        tmp_path, "internevo", INTERNEVO, gpus=gpus, into_one=into_one, size=size, counts=counts, sp=sp,
        seq_len=CAPACITY // size, seed=f"seed={seed}" if seed else "",
    )  # fmt: skip
    decide = [line.key for line in found.lines if line.verdict == "decide"]
    assert decide == ["data.valid_folder"], "refused by name"
    run(pipeline, workers=1)
    packs = packs_of_xtuner(files, seed=1024, packed_length=CAPACITY, min_length=8)
    sampler = StaticBatchSampler(len(packs), seed or 1024, counts, gpus // sp)
    steps = [step for _ in range(3) for step in sampler.epoch()]
    documents = [documents_of_internevo(pack, into_one=into_one, seq_len=CAPACITY // size) for pack in packs]
    assert_same_steps(pipeline, [expected(*one) for one in zip(packs, documents, strict=True)], steps)
