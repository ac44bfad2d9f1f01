"""The harness strikes where it says, and a loss is seen: what proves the promises has to be able to fail."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.artifacts import FileRecord, Manifest
from tests.faults import damage, elastic
from tests.faults.case import Case
from tests.faults.disk import _clear
from tests.faults.kill import spread
from tests.faults.strike import fault
from tests.faults.table import Tally, table

WRITES = "from pathlib import Path\nfor at in range(5):\n    Path(f'at-{at}').write_text('x' * 10)\n"
"""Each file is opened and written: ten changes."""
READS = "from pathlib import Path\nPath('a').write_bytes(bytes(1000))\nprint(len(Path('a').read_bytes()))\n"
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here (cc)")


def strike(
    folder: Path, asked: tuple[str, str, int], code: str = WRITES, **env: str
) -> "subprocess.CompletedProcess[str]":
    """Run code below a folder under a fault."""
    injected = fault(*asked, folder, folder.with_name("counter"))
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **injected, **env},
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )


@needs_compiler
@pytest.mark.parametrize(("kind", "left"), [("kill", [10, 10, 0]), ("torn", [10, 10, 5])])
def test_a_process_is_killed_before_a_change_or_in_the_middle_of_it(tmp_path: Path, kind: str, left: list[int]) -> None:
    assert strike(tmp_path, ("change", kind, 6)).returncode == -signal.SIGKILL
    assert [path.stat().st_size for path in sorted(tmp_path.iterdir())] == left


@needs_compiler
def test_changes_and_reads_fail_from_the_one_on_that_was_asked_for(tmp_path: Path) -> None:
    assert "No space left on device" in strike(tmp_path, ("change", "ENOSPC", 8)).stderr
    assert len(list(tmp_path.iterdir())) == 4
    assert strike(tmp_path, ("read", "count", 0), READS).stdout == "1000\n"
    assert "Input/output error" in strike(tmp_path, ("read", "EIO", 2), READS).stderr
    assert strike(tmp_path, ("read", "short", 2), READS).stdout == "1000\n"


@needs_compiler
def test_sites_are_listed_and_those_of_workers_are_counted_as_well(tmp_path: Path) -> None:
    listed = tmp_path.with_name("sites")
    code = WRITES + "import subprocess, sys; subprocess.run([sys.executable, '-c', \"open('in-another', 'w')\"])"
    strike(tmp_path, ("change", "count", 0), code + "\nPath('at-0').rename('b')", FAULT_SITES=str(listed))
    sites = [line.split("\t") for line in listed.read_text().splitlines()]
    assert [event for event, _ in sites] == ["open", "write"] * 5 + ["open", "rename"]
    assert sites[-2][1] == str(tmp_path / "in-another")
    assert int.from_bytes(tmp_path.with_name("counter").read_bytes(), "little") == 12


def test_the_clock_and_the_order_of_directories_are_changed(tmp_path: Path) -> None:
    code = WRITES + "import os, time\nprint(time.time() < 100, [one.name for one in os.scandir('.')])"
    said = set()
    for seed in range(6):
        hook = {"PYTHONPATH": str(Path(__file__).with_name("hook")), "FAULT_CLOCK": "60", "FAULT_SHUFFLE": str(seed)}
        said.add(subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | hook, text=True))
    assert all(one.startswith("True") for one in said)
    assert len(said) > 1


@pytest.mark.parametrize("name", damage.DAMAGES)
def test_each_damage_is_found_by_the_digests_and_not_without_them(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "weights").write_bytes(random.Random(0).randbytes(4000))
    record = FileRecord.of(tmp_path, tmp_path / "weights")
    Manifest("prep", 1, "id", {}, [record], {}).write(tmp_path)
    before = (tmp_path / "weights").read_bytes()

    def lost() -> int:
        return sum(damage.one_of(tmp_path, damage.DAMAGES[name], random.Random(seed)) is not None for seed in range(20))

    assert lost() == 0
    assert (tmp_path / "weights").read_bytes() == before
    monkeypatch.setattr(Manifest, "verify", lambda *_: None)
    assert lost() > 0


def test_points_are_spread_over_all_changes() -> None:
    assert spread(5, 9, random.Random(0)) == [1, 2, 3, 4, 5, 1, 2, 3, 4]
    found = spread(100, 10, random.Random(0))
    assert [(at - 1) // 10 for at in found] == list(range(10))


def test_an_end_is_clear_where_it_names_the_place_and_what_is_needed() -> None:
    full = "work/case: No space left on device (prep needs about 1,234 bytes in all, 96 bytes free); make room"
    assert _clear(5, full, lacks_room=True) is None
    assert "does not say" in str(_clear(5, "work/case: No space left on device; make room", lacks_room=True))
    assert "names no place" in str(_clear(5, "Input or output error; look at the disk"))
    assert "a traceback" in str(_clear(1, "Traceback (most recent call last)"))
    assert "exit 1" in str(_clear(1, "work/case"))


def test_packs_that_are_computed_twice_or_in_part_are_no_whole_sequence(tmp_path: Path) -> None:
    case = Case(tmp_path / "case", forks=False)

    def packs(*computed: tuple[int, int, int, str]) -> list[str]:
        elastic._written(case).write_text("".join(json.dumps(one) + "\n" for one in computed))
        return elastic._packs(case, 0, 1)[:2]

    assert packs((0, 0, 1, "a"), (1, 0, 1, "b")) == ["a", "b"]
    assert packs((1, 1, 2, "b"), (0, 0, 1, "a"), (1, 0, 2, "b")) == ["a", "b"]
    assert packs((0, 0, 1, "a"), (0, 0, 1, "a"), (1, 0, 2, "b")) == [
        "parts [(0, 1), (0, 1)] of 1 packs",
        "parts [(0, 2)] of 1 packs",
    ]


def test_the_table_says_what_was_lost() -> None:
    tally = Tally("kill prep")
    tally.add(None)
    tally.add("change 3: other bytes\nin a file")
    assert tally.survived == 1
    assert table([tally]).splitlines()[1:] == [
        "kill prep         2         1     1",
        "LOST  kill prep: change 3: other bytes | in a file",
    ]
