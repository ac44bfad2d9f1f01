"""metrics.jsonl as the report reads it: sums, edges, what is cut off, what is not finite, answers."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from pipelines.report.metrics import ANSWERS, EDGE, PROMPTS, Answer, Answers, Metrics
from tests.pipelines.report.written import rows


def written(folder: Path, lines: list[str]) -> Metrics:
    (folder / "metrics.jsonl").write_text("".join(lines))
    return Metrics.read(folder / "metrics.jsonl")


def test_sums_and_edges_are_those_of_the_rows(tmp_path: Path) -> None:
    told = list(rows(150))
    found = written(tmp_path, [json.dumps(row) + "\n" for row in told])
    steps = [row for row in told if row["kind"] == "train"]
    losses = [row["loss"] for row in steps if row["loss"] is not None]
    assert (found.steps, found.last_step, found.tokens) == (150, 150, 22_500_000)
    assert found.tokens_per_s == pytest.approx(100_000)
    assert found.loss.first == pytest.approx(sum(losses[:EDGE]) / EDGE)
    assert found.loss.last == pytest.approx(sum(losses[-EDGE:]) / EDGE)
    assert found.mfu == pytest.approx(0.41)
    assert found.skipped == found.nonfinite == [50, 51]
    assert len(found.series["loss"]) == 148
    held_out = [row for row in told if row["kind"] == "eval"]
    assert (found.held_out.first, found.held_out.last) == (held_out[0], held_out[-1])
    assert found.held_out.best == min(held_out, key=lambda row: row["loss"])


def test_the_mean_at_the_edges_weighs_steps_by_their_loss_tokens(tmp_path: Path) -> None:
    lines = [f'{{"kind": "train", "step": {step}, "loss": {step}, "loss_tokens": {step}}}\n' for step in range(1, 13)]
    found = written(tmp_path, lines).loss
    assert found.steps == 2  # a fifth of so few
    assert found.first == (1 * 1 + 2 * 2) / 3
    assert found.last == (11 * 11 + 12 * 12) / 23


def test_a_row_that_is_being_written_is_left_out_and_a_broken_one_is_counted(tmp_path: Path) -> None:
    row = '{"kind": "train", "step": 1, "loss": 2.0, "loss_tokens": 3}'
    found = written(tmp_path, [f"{row}\n", "not json\n", "[]\n", '{"kind": "new kind", "step": 1}\n', row])
    assert (found.steps, found.unreadable) == (2, 2)  # the last is whole all the same
    found = written(tmp_path, [f"{row}\n", row[:-9]])
    assert (found.steps, found.unreadable) == (1, 0)


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert Metrics.read(tmp_path / "metrics.jsonl").steps == 0


@pytest.mark.parametrize("count", [1, 2, ANSWERS, ANSWERS + 1, 100, 1_000])
def test_answers_are_few_evenly_spread_with_the_first_and_the_last(count: int) -> None:
    answers = Answers()
    for step in range(count):
        answers.add(Answer(step, "", 1, "stop", None))
    steps = [answer.step for answer in answers]
    assert len(steps) <= ANSWERS + 1
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1], answers.count) == (0, count - 1, count)
    assert len({after - before for before, after in pairwise(steps[:-1])}) <= 1


def test_many_prompts_are_counted_and_not_kept(tmp_path: Path) -> None:
    found = written(
        tmp_path,
        [
            f'{{"kind": "chat", "step": {s}, "prompt": "{p}", "answer": ""}}\n'
            for s in (1, 2)
            for p in range(PROMPTS + 3)
        ],
    )
    assert (len(found.answers), len(found.prompts_left_out)) == (PROMPTS, 3)


@pytest.mark.parametrize(
    "row",
    [
        '{"kind": "train", "step": "1"}',
        '{"kind": "train", "step": 1, "loss": []}',
        '{"kind": "train", "step": 1, "tokens": true}',
        '{"kind": "train", "step": 1, "loss_by_source": {"a": "x"}}',
        '{"kind": "eval", "step": 1, "loss_by_source": 3}',
        '{"kind": "chat", "step": 1}',
        '{"kind": "chat", "step": 1, "prompt": {"x": 1}}',
        '{"kind": "train", "step": 1, "loss": 1' + "0" * 400 + "}",
        "[" * 100_000,
    ],
)
def test_a_row_of_other_kinds_of_values_is_counted_and_left_out(row: str, tmp_path: Path) -> None:
    found = written(tmp_path, [row + "\n", '{"kind": "train", "step": 2, "loss": 1.5}\n'])
    assert (found.unreadable, found.steps, found.last_step) == (1, 1, 2)
