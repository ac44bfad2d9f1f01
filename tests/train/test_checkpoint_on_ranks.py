"""Checkpoints on several ranks: resumed on any others, reading no more than needed, and given up together."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.checkpoints import Checkpoint
from pipelines.errors import MachineError
from pipelines.file_ranges import FileRanges
from pipelines.safetensors_header import Entry, read_header
from pipelines.schema import Pipeline
from tests.train.conftest import SETTINGS
from tests.train.ranks import run_in_turn
from tests.train.runs import checkpoints, pipeline, rows, same, share
from tests.train.test_optimizers import WIDE
from tests.train.test_run import undo
from train.run import run

pytestmark = pytest.mark.slow

STATE_OF_RANK_1 = "tiny/train/checkpoints/step-00000004/state-00001-of-00002.safetensors"
"""Fourth of its manifest's files, so of two ranks the second one digests it."""

UNREAD = f"unread/{STATE_OF_RANK_1}"


def copied(folder: Path, to: Path) -> Path:
    """A run as it was after step 4."""
    undo(Path(shutil.copytree(folder, to, symlinks=True)), 4)
    return to


def reported(pipelines: list[Pipeline], report: Path) -> None:
    """Run what is this rank's, and write down what its trainer says and how many bytes of state it reads."""
    rank = int(os.environ["RANK"])
    handler = logging.FileHandler(report.with_suffix(f".{rank}.log"))
    logging.getLogger("train").addHandler(handler)
    logging.getLogger("train").setLevel(logging.INFO)
    with counted() as bytes_read:
        run(pipelines[rank])
    logging.getLogger("train").removeHandler(handler)
    report.with_suffix(f".{rank}.json").write_text(json.dumps(sum(bytes_read)))


@contextmanager
def counted() -> Iterator[list[int]]:
    """Sizes of the stretches that are read from state files. Rank 1 cannot open that of `UNREAD`."""
    found: list[int] = []
    fill, header = FileRanges.read_bytes, read_header

    def read_bytes(ranges: FileRanges, path: Path, first: int, out: npt.NDArray[Any]) -> None:
        found.append(out.nbytes)
        fill(ranges, path, first, out)

    def refuse(*_: object) -> None:
        raise OSError("the disk says no")

    def read(path: Path) -> dict[str, Entry]:
        with pytest.MonkeyPatch.context() as failing:
            if os.environ["RANK"] == "1" and str(path).endswith(UNREAD):
                failing.setattr(Path, "open", refuse)
            return header(path)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FileRanges, "read_bytes", read_bytes)
        patched.setattr("pipelines.checkpoints.read_header", read)
        yield found


def test_ranks_resume_any_layout_and_give_up_damaged_checkpoints_together(tmp_path: Path, shards: Path) -> None:
    one, two, moved = (share(shards, tmp_path / name) for name in ("one", "two", "moved"))
    run(pipeline(one, **SETTINGS))
    expected = [row["loss"] for row in rows(one)]
    layouts: dict[str, dict[str, Any]] = {
        "halves of packs": {"parallel": {"sequence_parallel_size": 2}},
        "whole packs": {"deepspeed": {"zero_stage": 1}},
    }
    sp_2, zero_1 = (pipeline(moved, **layout, **SETTINGS) for layout in layouts.values())
    here = pipeline(two, **layouts["whole packs"], **SETTINGS)
    packed = {"optimizer": {"type": "adamw_8bit", "lr": Decimal("0.001")}, "deepspeed": {"zero_stage": 2}}
    eight, halves = share(shards, tmp_path / "eight"), tmp_path / "halves"

    def in_8_bits(folder: Path) -> Pipeline:
        return pipeline(folder, model=WIDE, **SETTINGS | packed)

    assert run_in_turn(2, [partial(run, each) for each in (sp_2, here, in_8_bits(eight))]) == [0, 0]

    # Sequence parallel on 2 ranks, then ZeRO 3 on 1, then ZeRO 1 on 2.
    undo(moved, 2)
    run(pipeline(moved, deepspeed={"zero_stage": 3}, **SETTINGS))
    undo(moved, 4)
    cut, flipped, unread, unseen, elsewhere = (
        copied(two, tmp_path / name) for name in ("cut", "flipped", "unread", "unseen", "elsewhere")
    )
    (cut / STATE_OF_RANK_1).write_bytes((cut / STATE_OF_RANK_1).read_bytes()[:100])
    content = bytearray((flipped / STATE_OF_RANK_1).read_bytes())
    content[-5] ^= 1
    (flipped / STATE_OF_RANK_1).write_bytes(content)
    # As on a node that sees the same directories, but not yet, or no longer, the same files.
    (elsewhere / STATE_OF_RANK_1).with_name("manifest.json").unlink()
    shutil.rmtree(elsewhere / "tiny/train/ranks", ignore_errors=True)
    (elsewhere / "tiny/train/ranks").symlink_to(unseen / "tiny/train/ranks")

    def on_both(folder: Path) -> list[Pipeline]:
        return [pipeline(folder, **layouts["whole packs"], **SETTINGS)] * 2

    apart = [on_both(folder)[0] for folder in (unseen, elsewhere)]
    works = {
        "moved": [zero_1] * 2,
        "halves": [in_8_bits(copied(eight, halves))] * 2,
        "cut": on_both(cut),
        "flipped": on_both(flipped),
        "unread": on_both(unread),
        "apart": apart,
    }
    turns = [partial(reported, each, tmp_path / f"{name}.report") for name, each in works.items()]
    codes = run_in_turn(2, turns, timeout_s=600)

    np.testing.assert_allclose([row["loss"] for row in rows(moved)], expected, rtol=1e-6)
    state = sum(
        array.nbytes for kind in ("parameter", "exp_avg", "exp_avg_sq")
        for _, array in Checkpoint(checkpoints(moved)[-1]).tensors(kind)
    )  # fmt: skip
    shares = [json.loads((tmp_path / f"moved.{rank}.json").read_text()) for rank in (0, 1)]
    assert sum(shares) == state
    assert max(shares) < 0.51 * state
    assert same(halves, eight)

    said = {name: (tmp_path / f"{name}.0.log").read_text() for name in works}
    assert same(cut, two)
    assert "step-00000004/state-00001-of-00002.safetensors: 100 bytes, manifest.json says" in said["cut"]
    assert same(flipped, two)
    assert "step-00000004/state-00001-of-00002.safetensors: SHA-256 differs" in said["flipped"]
    assert same(unread, two)
    assert "cannot be read (the disk says no)" in said["unread"]
    assert "elsewhere/tiny/train/checkpoints/step-00000004: rank 1 on " in said["apart"]
    assert "resuming after step 4 of 6" in said["halves"]
    for name in ("cut", "flipped", "unread", "apart"):
        assert "trying the checkpoint before it" in said[name]
        assert "resuming after step 2 of 6" in said[name]
    # And then nothing can be saved, which both ranks say at once.
    assert codes == [MachineError.exit_code] * 2
