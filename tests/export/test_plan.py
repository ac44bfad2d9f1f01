"""Which checkpoint an export takes."""

import json
import logging
from pathlib import Path

import pytest

from export.plan import Plan
from pipelines.config import load
from pipelines.errors import ConfigError, DataError
from tests.export.tiny import LLAMA, pipeline, random_tensors, write_checkpoint
from tests.least import least

TOML = f"""{least(8)}
[model]
name_or_path = "model"
[export]
checkpoint = {{}}
"""


def write_steps(folder: Path, *steps: int) -> Path:
    """A run with finished checkpoints of these steps; returns its train directory."""
    home = folder / "work" / "tiny" / "train"
    for step in steps:
        write_checkpoint(home / "checkpoints" / f"step-{step:08d}", LLAMA, random_tensors(LLAMA, step))
    return home


def write_rows(home: Path, *rows: tuple[str, int, float | None]) -> None:
    lines = [json.dumps({"kind": kind, "step": step, "loss": loss}) for kind, step, loss in rows]
    (home / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "eval", "st']))


def chosen(folder: Path, wanted: object) -> str:
    return Plan.of(pipeline(folder, checkpoint=wanted)).checkpoint.name


def test_best_has_the_lowest_held_out_loss_of_those_that_are_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = write_steps(tmp_path, 3, 6, 9)
    write_rows(
        home,
        ("train", 9, 0.1),
        ("eval", 3, 2.5),
        ("eval", 6, 1.0),  # before a restart that came to another number
        ("eval", 4, 1.5),
        ("eval", 6, 2.0),
        ("eval", 9, None),
    )
    with caplog.at_level(logging.INFO):
        assert chosen(tmp_path, "best") == "step-00000006"
    assert "the best checkpoint is step 6, held-out loss 2.0000" in caplog.text
    assert "step 4 had 1.5000, and no checkpoint is left of it" in caplog.text
    assert chosen(tmp_path, "latest") == "step-00000009"
    assert chosen(tmp_path, 3) == "step-00000003"
    assert chosen(tmp_path, str(home / "checkpoints" / "step-00000003")) == "step-00000003"


def test_the_earliest_of_equals_is_the_best(tmp_path: Path) -> None:
    home = write_steps(tmp_path, 3, 6)
    write_rows(home, ("eval", 6, 2.0), ("eval", 3, 2.0))
    assert chosen(tmp_path, "best") == "step-00000003"


@pytest.mark.parametrize("rows", [[], [("train", 3, 1.0)], [("eval", 4, 1.0)], [("eval", 3, None)]])
def test_best_without_a_held_out_loss_is_refused(tmp_path: Path, rows: list[tuple[str, int, float | None]]) -> None:
    write_rows(write_steps(tmp_path, 3), *rows)
    with pytest.raises(DataError, match=r'export\.checkpoint = "best": .*metrics\.jsonl has no held-out loss at the'):
        chosen(tmp_path, "best")


def test_a_directory_that_is_not_there_says_what_else_there_is(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r'export\.checkpoint = .*lates.*: no such directory; name one, a step, "latest'
    ):
        chosen(tmp_path, "lates")


def test_a_directory_is_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(TOML.format('"runs/global_step5"'))
    assert Path(str(load(path).export.checkpoint)).resolve() == tmp_path / "runs" / "global_step5"
    for value in ('"latest"', '"best"', "500"):
        path.write_text(TOML.format(value))
        assert load(path).export.checkpoint == json.loads(value)


def test_a_base_to_merge_into_is_refused_where_nothing_is_merged(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text(TOML.format('"latest"'))
    with pytest.raises(
        ConfigError, match=r'export.merge_base = "dequantized": an adapter alone is merged into nothing'
    ):
        load(path, ['export.merge_base="dequantized"', 'export.targets=["adapter"]'])
    assert load(path, ['export.merge_base="dequantized"', 'export.targets=["adapter", "hf"]'])


@pytest.mark.parametrize("value", ["true", "-1", "1.5", "[]"])
def test_what_names_no_checkpoint_is_refused(tmp_path: Path, value: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(TOML.format(value))
    with pytest.raises(ConfigError) as caught:
        load(path)
    line = len(TOML.splitlines())
    assert f"{line}:1: export.checkpoint" in str(caught.value)
