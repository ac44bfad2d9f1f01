"""Answers between steps: those of Transformers, on every layout, and training does not notice."""

import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.distributed as dist

from pipelines.schema import Pipeline
from tests.train import talks
from tests.train.ranks import run_on_ranks
from tests.train.runs import checkpoints, pipeline, rows, share, state
from tests.train.talks import EVAL, MODEL, PROMPTS, answers, from_checkpoint, generated, write_chat_prep
from train import interview, loop
from train.audit import _transformers_attention
from train.engine import Engine
from train.interview import turns
from train.metrics import ChatRow
from train.questions import Questions
from train.run import run

SETTINGS: dict[str, Any] = {"max_steps": 3, "optimizer": {"lr": Decimal("0.01")}}
SHARDED: dict[str, Any] = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""ZeRO 3 keeps small weights on every rank, else."""
GPT2 = talks.TALKATIVE | {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prep directory of 10 packs with a chat template, and 3 held out."""
    return write_chat_prep(tmp_path_factory.mktemp("chats") / "prep", held_out=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "deepspeed",
    [{"zero_stage": 1}, {"zero_stage": 3, "offload_param": "cpu", "offload_optimizer": "cpu", "extra": SHARDED}],
    ids=["zero 1", "zero 3 with offload"],
)
def test_training_is_bitwise_the_same_and_answers_are_those_of_transformers(
    deepspeed: dict[str, Any], tmp_path: Path, chats: Path
) -> None:
    without, with_ = share(chats, tmp_path / "without"), share(chats, tmp_path / "with")
    how = {"model": {"scratch": GPT2}, "deepspeed": deepspeed, **SETTINGS}  # with dropout
    run(pipeline(without, **how))
    run(pipeline(with_, **how, **EVAL))
    one, other = state(with_), state(without)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    found = rows(with_)
    losses = [[row["loss"] for row in of if row["kind"] == "train"] for of in (found, rows(without))]
    assert losses[0] == losses[1]
    kinds = [(row["kind"], row["step"]) for row in found]
    chat = ["chat"] * len(PROMPTS)
    order = [*chat, "train", "train", "eval", *chat, "train", "eval", *chat]
    steps = [*[0] * 3, 1, *[2] * 5, *[3] * 5]
    assert kinds == list(zip(order, steps, strict=True))
    assert answers(found, 3) == from_checkpoint(with_, GPT2)
    assert {row["finish"] for row in found if row["kind"] == "chat"} == {"stop", "length"}  # or this tests one of them


@pytest.mark.slow
@pytest.mark.parametrize("quantization", [{}, {"quantization": {}}], ids=["lora", "qlora"])
def test_an_adapter_answers_as_transformers_does_with_it(
    quantization: dict[str, Any], tmp_path: Path, chats: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if quantization:
        pytest.importorskip("bitsandbytes")
    expected: list[list[tuple[str, int, str]]] = []

    class Compared(interview.Interview):
        def __init__(self, questions: Questions, engine: Engine, capacity: int) -> None:
            super().__init__(questions, engine, capacity)
            self.engine = engine

        def rows(self, step: int) -> list[ChatRow]:
            with _transformers_attention(self.engine.model):
                expected.append(generated(self.engine.model, chats / "tokenizer"))
            self.engine.model.train()  # as a step leaves it, with dropout
            return super().rows(step)

    monkeypatch.setattr(loop, "Interview", Compared)
    folder = share(chats, tmp_path / "work")
    scratch = MODEL["scratch"] | ({"hidden_size": 64, "intermediate_size": 128} if quantization else {})  # whole blocks
    model = {"scratch": scratch, "lora": {"r": 4, "lora_alpha": 64, "lora_dropout": Decimal("0.1")}} | quantization
    run(pipeline(folder, model=model, **SETTINGS, **EVAL))
    assert [answers(rows(folder), step) for step in (0, 2, 3)] == expected
    assert expected[0] != expected[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "prompts"),
    [
        # Weights that are really gathered, and a rank that has nothing to answer.
        ({"deepspeed": {"zero_stage": 3, "extra": SHARDED}}, PROMPTS[:1]),
        ({"deepspeed": {"zero_stage": 2}, "parallel": {"sequence_parallel_size": 2}}, PROMPTS),
    ],
    ids=["zero 3", "sequence parallel"],
)
def test_every_layout_answers_as_transformers_does(
    how: dict[str, Any], prompts: list[str], tmp_path: Path, chats: Path
) -> None:
    folder = share(chats, tmp_path / "work")
    settings = pipeline(folder, model=MODEL, **SETTINGS, **how, eval=EVAL["eval"] | {"prompts": prompts})
    assert run_on_ranks(2, run, settings) == [0, 0]
    assert answers(rows(folder), 3) == from_checkpoint(folder, MODEL["scratch"])[: len(prompts)]


class Faulty(interview.Interview):
    """Rank 1 fails in the interview after 2 steps."""

    step = 0

    def rows(self, step: int) -> list[ChatRow]:
        self.step = step
        return super().rows(step)

    def _choose(self, *arguments: Any) -> None:
        if dist.get_rank() == 1 and self.step == 2:
            raise RuntimeError("the GPU is\nout of memory")
        super()._choose(*arguments)


def run_with_a_fault(settings: Pipeline) -> None:
    loop.Interview = Faulty  # type: ignore[attr-defined]  # in this rank's process alone
    run(settings)


@pytest.mark.slow
def test_a_rank_that_fails_alone_is_told_of_and_training_goes_on(tmp_path: Path, chats: Path) -> None:
    folder = share(chats, tmp_path / "work")
    settings = pipeline(folder, model=MODEL, **SETTINGS, **EVAL, deepspeed={"zero_stage": 1})
    assert run_on_ranks(2, run_with_a_fault, settings) == [0, 0]
    failed = [row for row in rows(folder) if (row["kind"], row["step"]) == ("chat", 2)]
    error = "rank 1: RuntimeError: the GPU is out of memory"
    assert [(row["answer"], row["finish"], row["error"]) for row in failed] == [(None, "error", error)] * len(PROMPTS)
    assert answers(rows(folder), 3) == from_checkpoint(folder, MODEL["scratch"])


@pytest.mark.slow
def test_a_rank_that_others_wait_for_ends_the_run(tmp_path: Path, chats: Path) -> None:
    folder = share(chats, tmp_path / "work")
    settings = pipeline(folder, model=MODEL, **SETTINGS, **EVAL, deepspeed={"zero_stage": 3, "extra": SHARDED})
    assert 0 not in run_on_ranks(2, run_with_a_fault, settings)  # and not killed, which would be -9
    assert not checkpoints(folder)


def test_a_run_that_begins_again_has_its_first_answers_once(
    tmp_path: Path, chats: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = share(chats, tmp_path / "work")
    settings = pipeline(folder, model=MODEL, max_steps=1, **EVAL)
    caplog.set_level(logging.INFO)
    run(settings)
    (checkpoints(folder)[-1] / "manifest.json").unlink()
    run(settings)
    assert [row["step"] for row in rows(folder) if row["kind"] == "chat"] == [0] * 3 + [1] * 3
    assert "  上海是什么？\n    " in caplog.text
    assert "sample 1 of 1, pack " in caplog.text


def test_questions_take_turns_where_they_do_not_fit_a_pack() -> None:
    assert list(turns([4, 4, 4, 4, 90, 1], groups=2, capacity=10)) == [[0, 1, 2, 3], [4, 5]]
    assert list(turns([6, 6, 6], groups=1, capacity=10)) == [[0], [1], [2]]
    assert list(turns([], groups=3, capacity=10)) == []
