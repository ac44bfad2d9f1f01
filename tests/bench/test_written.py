"""Results are written with the machine and the versions, and equal figures give equal bytes."""

import json
import math
from pathlib import Path

from bench.table import Figure
from bench.written import machine, versions, write_results

FIGURES = [Figure("read | parse", 1000.0, "MB/s", "peer", 50.0, ">= 15 x"), Figure("bench.x", math.nan, "", "failed")]
MACHINE: dict[str, str | int] = {"processor": "a processor", "cores": 2, "memory_gb": 8}
VERSIONS = {"ours": {"numpy": "2.0"}, "peers": {}}


def test_results_hold_every_figure_with_its_ratio(tmp_path: Path) -> None:
    write_results(tmp_path, "prep", FIGURES, machine=MACHINE, versions=VERSIONS)
    written = json.loads((tmp_path / "prep.json").read_text())
    assert written["machine"] == MACHINE
    assert written["versions"] == VERSIONS
    assert [(one["what"], one["value"], one["ratio"], one["met"]) for one in written["figures"]] == [
        ("read | parse", 1000.0, 20.0, True),
        ("bench.x", None, None, None),
    ]


def test_the_page_has_a_row_for_every_figure(tmp_path: Path) -> None:
    write_results(tmp_path, "prep", FIGURES, machine=MACHINE, versions=VERSIONS)
    page = (tmp_path / "prep.md").read_text()
    assert "a processor, 2 cores, 8 GB. Ours: numpy 2.0. Peers: none." in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert table[2] == "| read \\| parse | 1,000 | MB/s | >= 15 x | yes | peer | 50 | 20 |"
    assert len(table) == 2 + len(FIGURES)


def test_equal_figures_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_results(tmp_path / name, "prep", FIGURES, machine=MACHINE, versions=VERSIONS)
    for file in ("prep.json", "prep.md"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_machine_and_the_versions_are_those_of_this_process() -> None:
    assert machine()["processor"]
    assert int(machine()["cores"]) >= 1
    assert {"python", "numpy", "numba"} <= set(versions(["numpy", "numba"], [])["ours"])
