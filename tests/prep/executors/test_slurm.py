"""Parts of a frozen plan, as the tasks of a Slurm array run them: same bytes, whatever is killed or runs twice."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.artifacts import exclusive, shared
from pipelines.cli import main
from pipelines.config import load
from pipelines.errors import BusyError, ConfigError, DataError
from prep.executors.slurm import NotTokenized, part_of, submission
from prep.formats import lines
from prep.part import run_part
from prep.run import run
from tests.prep.executors.maps import OBEDIENT, asking, noted
from tests.prep.small import MakePipeline, conversations, written

ON_SLURM = 'prep.executor="slurm"'


def array(task: int, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    """What Slurm tells a task."""
    told = {"ID": task, "COUNT": count, "MIN": first, "MAX": first + (count - 1) * step, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


def test_a_task_takes_the_part_of_its_place_in_the_array() -> None:
    assert part_of({}) is None
    assert part_of(array(3, 16)) == (3, 16)
    assert part_of(array(7, 3, first=5)) == (2, 3)
    assert part_of(array(9, 4, first=3, step=2)) == (3, 4)


@pytest.mark.parametrize("task", [7, 4, 1])
def test_an_array_with_gaps_is_refused(task: int) -> None:  # --array=1,4,7: Slurm tells no more than its ends
    told = array(task, 3, first=1, step=1) | {"SLURM_ARRAY_TASK_MAX": "7"}
    if task == 1:
        assert part_of(told) == (0, 3)
        return
    with pytest.raises(ConfigError, match="the array has gaps; submit a range, such as --array=0-2"):
        part_of(told)


@pytest.mark.parametrize(("name", "number"), [("COUNT", ""), ("STEP", "one")])
def test_an_environment_that_does_not_tell_the_array_is_refused(name: str, number: str) -> None:
    with pytest.raises(ConfigError, match=f"SLURM_ARRAY_TASK_{name} is '{number}', .* --part I/N"):
        part_of(array(0, 2) | {f"SLURM_ARRAY_TASK_{name}": number})


def freeze(file: Path) -> None:
    with pytest.raises(NotTokenized):
        run(load(file, [ON_SLURM, OBEDIENT]), workers=1)


def task(file: Path, number: int, count: int) -> "subprocess.Popen[bytes]":
    """A task of an array, as a process of its own."""
    command = [sys.executable, "-m", "pipelines", "prep", str(file), "--workers", "1"]
    return subprocess.Popen(
        [*command, "--set", ON_SLURM, "--set", OBEDIENT],
        env=os.environ | array(number, count),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_tasks_that_are_killed_and_run_twice_change_no_byte(
    make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 2000)
    note, barrier = tmp_path / "works", tmp_path / "barrier"
    record = asking(conversations(1), note=str(note), **{"while": str(barrier)})
    file = make_pipeline(conversations(100) + record + conversations(100))
    run(load(file, [OBEDIENT]), workers=1)
    once = written(file)
    (load(file).home / "prep" / "manifest.json").unlink()
    note.unlink()

    barrier.touch()
    freeze(file)
    tasks = [task(file, number, 3) for number in range(3)]
    while not (at_work := at_a_record(tasks, note)):
        assert None in [one.poll() for one in tasks]
        time.sleep(0.02)
    victim = next(one for one in tasks if one.pid in at_work)
    with pytest.raises(BusyError, match="another packtrain process works here"):
        run(load(file, [ON_SLURM, OBEDIENT]))
    victim.send_signal(signal.SIGKILL)
    assert sorted(one.wait() for one in tasks) == [-signal.SIGKILL, 0, 0]
    with pytest.raises(NotTokenized) as waiting:
        run(load(file, [ON_SLURM, OBEDIENT]), workers=1)
    assert 0 < waiting.value.left < waiting.value.chunks

    note.unlink()
    twice = [task(file, 0, 1), task(file, 0, 1)]
    while at_a_record(twice, note) != {one.pid for one in twice}:  # both are in the middle of the same chunk
        assert [one.poll() for one in twice] == [None, None]
        time.sleep(0.02)
    barrier.unlink()
    assert [one.wait() for one in twice] == [0, 0]
    run(load(file, [ON_SLURM, OBEDIENT]), workers=1)
    assert written(file) == once


def at_a_record(tasks: "list[subprocess.Popen[bytes]]", note: Path) -> set[int]:
    """Tasks whose map came to the record with this note, in their own process or in one that they started."""
    found = noted(note)
    stats = [Path(f"/proc/{process}/stat").read_text() for process in found if Path(f"/proc/{process}").exists()]
    parents = {int(stat.rpartition(")")[2].split()[1]) for stat in stats}
    return (found | parents) & {task.pid for task in tasks}


SBATCH = """\
#!{python}
import os, subprocess, sys
options = dict(one.lstrip("-").partition("=")[::2] for one in sys.argv[1:-1])
command = sys.argv[-1]
first, last = map(int, options.get("array", "0-0").split("-"))
for number in range(first, last + 1):
    told = dict(ID=number, COUNT=last - first + 1, MIN=first, STEP=1) if "array" in options else {{}}
    told = {{"SLURM_ARRAY_TASK_" + name: str(value) for name, value in told.items()}}
    subprocess.run(["sh", "-c", command], env=os.environ | told, check=True, stdout=sys.stderr)
print("17;cluster")
"""


@pytest.mark.slow
def test_the_printed_lines_submit_what_finishes_the_run(
    make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 100)
    file = make_pipeline(conversations(100))
    odd = tmp_path / "a run's.toml"
    file.rename(odd)
    run(load(odd), workers=1)
    once = written(odd)
    (load(odd).home / "prep" / "manifest.json").unlink()

    result = CliRunner().invoke(main, ["prep", str(odd), "--set", ON_SLURM])
    assert result.exit_code == 75
    assert result.stderr.splitlines()[-1].startswith("prep: ")
    assert result.stdout.splitlines() == submission(odd, [ON_SLURM], left=len(lines.chunks(tmp_path / "data/a.jsonl")))
    assert "--array=0-1 " in result.stdout
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(SBATCH.format(python=sys.executable))
    (tools / "packtrain").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m pipelines "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-e"], input=result.stdout, text=True, env=os.environ | path, check=True)
    assert written(odd) == once


def test_what_waits_is_told_to_a_program_too(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(3))
    result = CliRunner().invoke(main, ["prep", str(file), "--set", ON_SLURM, "--json"])
    assert result.exit_code == 75
    told = json.loads(result.stdout)
    assert (told["chunks"], told["left"], len(told["submit"])) == (1, 1, 2)
    result = CliRunner().invoke(main, ["prep", str(file), "--part", "0/2", "--json"])
    assert json.loads(result.stdout) == {"part": 0, "of": 2, "tokenized": 1, "there": 0}
    assert CliRunner().invoke(main, ["prep", str(file), "--part", "2/2"]).exit_code == 2


def test_a_part_is_refused_where_its_plan_is_not_frozen(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(3))
    with pytest.raises(ConfigError, match="no plan is frozen here; run 'packtrain prep'"):
        run_part(load(file), 0, 1, workers=1)
    freeze(file)
    with pytest.raises(ConfigError, match="frozen with other settings"):
        run_part(load(file), 0, 1, workers=1)  # without the map


def test_data_that_changed_since_it_was_frozen_is_refused(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    file = make_pipeline(conversations(3))
    freeze(file)
    make_pipeline(conversations(4))
    with pytest.raises(DataError, match=r"a\.jsonl: changed"):
        run_part(load(file, [OBEDIENT]), 0, 1, workers=1)
    (tmp_path / "data" / "a.jsonl").unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read"):
        run_part(load(file, [OBEDIENT]), 0, 1, workers=1)


def test_parts_and_the_command_that_freezes_and_finishes_exclude_each_other(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(3))
    freeze(file)
    with shared(load(file).home / "prep"):
        assert run_part(load(file, [OBEDIENT]), 0, 1, workers=1)["tokenized"] == 1
        with pytest.raises(BusyError):
            run(load(file, [ON_SLURM, OBEDIENT]), workers=1)
    with exclusive(load(file).home / "prep"), pytest.raises(BusyError):
        run_part(load(file, [OBEDIENT]), 0, 1, workers=1)


def test_a_fault_is_placed_by_counting_what_other_parts_have_not_tokenized_yet(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 200)
    file = make_pipeline(conversations(10) + "\n\n{\n" + conversations(10))
    freeze(file)
    told = []
    for part in range(6):
        try:
            run_part(load(file, [OBEDIENT]), part, 6, workers=1)
        except DataError as error:
            told.append(str(error))
    assert len(told) == 1
    assert "a.jsonl:13:2: not valid JSON" in told[0]
