"""The harness strikes where it says, and a loss is seen: what proves the promises has to be able to fail."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.artifacts import FileRecord, Manifest
from tests.faults import damage
from tests.faults.case import HOOK
from tests.faults.kill import spread
from tests.faults.table import Tally, table

WRITES = "from pathlib import Path\nfor at in range(5):\n    Path(f'at-{at}').write_text('x')\n"


def strike(folder: Path, fault: str, code: str = WRITES, **env: str) -> "subprocess.CompletedProcess[str]":
    """Run code below a folder under a fault."""
    surroundings = {**os.environ, "PYTHONPATH": str(HOOK), "FAULT": f"{fault} {folder}", **env}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, start_new_session=True, check=False
    )


def test_a_process_is_killed_at_the_change_that_was_asked_for(tmp_path: Path) -> None:
    assert strike(tmp_path, "kill 3").returncode == -signal.SIGKILL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["at-0", "at-1"]


def test_a_change_fails_as_was_asked_for(tmp_path: Path) -> None:
    done = strike(tmp_path, "EIO 4")
    assert "Input/output error" in done.stderr
    assert len(list(tmp_path.iterdir())) == 3


def test_changes_are_counted_and_reading_is_none(tmp_path: Path) -> None:
    counts = tmp_path.with_name("counts")
    strike(tmp_path, "count 0", WRITES + "Path('at-0').read_text()\nPath('at-0').unlink()\n", FAULT_COUNTS=str(counts))
    assert counts.read_text() == "6\n"


def test_the_clock_and_the_order_of_directories_are_changed(tmp_path: Path) -> None:
    code = WRITES + "import os, time\nprint(time.time() < 100, [one.name for one in os.scandir('.')])"
    said = {
        strike(tmp_path, "count 0", code, FAULT_COUNTS="/dev/null", FAULT_CLOCK="60", FAULT_SHUFFLE=str(at)).stdout
        for at in range(6)
    }
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


def test_the_table_says_what_was_lost() -> None:
    tally = Tally("kill prep")
    tally.add(None)
    tally.add("change 3: other bytes\nin a file")
    assert tally.survived == 1
    assert table([tally]).splitlines()[1:] == [
        "kill prep         2         1     1",
        "LOST  kill prep: change 3: other bytes | in a file",
    ]
