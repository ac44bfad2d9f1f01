"""What is measured is put together of parts, and one that fails does not take the others with it."""

import importlib
import math
from pathlib import Path

import pytest

from bench import parts, prep, train
from bench.ftdp import write
from bench.table import Figure
from bench.tree import cost
from prep.formats import ftdp


@pytest.mark.parametrize("part", [*prep.PARTS, *train.PARTS])
def test_every_part_has_figures(part: str) -> None:
    assert callable(importlib.import_module(f"bench.{part}").figures)


def test_a_part_that_fails_is_a_figure_that_says_so(tmp_path: Path) -> None:
    [figure] = parts.measured("not_there", tmp_path)
    assert math.isnan(figure.value)
    assert isinstance(figure, Figure)
    assert "ModuleNotFoundError" in figure.beside


def test_the_ftdp_file_that_is_measured_is_one(tmp_path: Path) -> None:
    samples = write(tmp_path / "data.bin", megabytes=1)
    [(begin, end)] = ftdp.chunks(tmp_path / "data.bin")
    found = ftdp.all_samples(tmp_path / "data.bin", begin, end, vocab_size=92_544)
    assert found is not None
    assert found[1].size == samples


def test_a_command_costs_the_memory_of_its_children_too() -> None:
    child = "import time; held = bytearray(60_000_000); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    taken = cost(["python3", "-c", parent])
    assert taken.memory > 60_000_000
    assert taken.pages >= taken.memory
    with pytest.raises(RuntimeError, match="not_there"):
        cost(["python3", "-c", "import not_there"])
