"""The same bytes whatever the machine, the environment and the kills; nothing half-written looks finished."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.artifacts import Manifest
from pipelines.config import load
from prep.formats import lines
from prep.run import run
from tests.prep.small import MakePipeline, conversations, written

NAMES = ["b.jsonl", "a.jsonl", "B.jsonl", "below/ä.jsonl", "below/a.jsonl", "10.jsonl", "9.jsonl"]
CHUNK_BYTES = 2000
KILLED = 9


@pytest.fixture
def several(make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline of several files, chunks and shards, of which a part is held out and some records are faulty."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", CHUNK_BYTES)
    settings = 'on_bad_record = "skip"\nmax_bad_fraction = 0.5\noutput.shard_tokens = 1000\neval.fraction = 0.2'
    file = make_pipeline("", settings)
    make_files(tmp_path / "data", NAMES)
    return file


def make_files(folder: Path, names: list[str]) -> None:
    """The files of NAMES, made in this order."""
    shutil.rmtree(folder)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        told = conversations(10 + NAMES.index(name) * 5).replace("word", f"wört {name}")
        (folder / name).write_text(told + "{\n", encoding="utf-8")


def again(file: Path, *overrides: str, workers: int = 1) -> dict[str, bytes]:
    """What prep writes when nothing is left of an earlier run."""
    shutil.rmtree(load(file).home, ignore_errors=True)
    load(file).prep.order.file.unlink(missing_ok=True)
    run(load(file, overrides), workers=workers)
    return written(file) | {"data_order.txt": load(file).prep.order.file.read_bytes()}


@pytest.mark.slow
def test_any_number_of_workers_writes_the_same_bytes(several: Path) -> None:
    once = again(several)
    assert {"manifest.json", "rejects.jsonl", "shards/shard-00002.arrow", "eval/shards/shard-00000.arrow"} <= set(once)
    for workers in (2, 3):
        assert again(several, workers=workers) == once


@pytest.mark.parametrize("names", [sorted(NAMES), sorted(NAMES, reverse=True)])
def test_the_order_in_which_files_were_made_changes_no_byte(several: Path, tmp_path: Path, names: list[str]) -> None:
    once = again(several)
    make_files(tmp_path / "data", names)
    assert again(several) == once


def test_the_order_in_which_a_file_system_lists_files_changes_no_byte(
    several: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = again(several)
    scandir = os.scandir

    class Reversed:
        """A folder, last entry first."""

        def __init__(self, path: str | Path = ".") -> None:
            with scandir(path) as entries:
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> "Reversed":
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> "Reversed":
            return self

        def __next__(self) -> "os.DirEntry[str]":
            if not self._entries:
                raise StopIteration
            return self._entries.pop(0)

        def close(self) -> None: ...

    with monkeypatch.context() as patch:
        shutil.rmtree(load(several).home)
        patch.setattr(os, "scandir", Reversed)
        load(several).prep.order.file.unlink()
        run(load(several), workers=1)
    assert written(several) | {"data_order.txt": load(several).prep.order.file.read_bytes()} == once


ENVIRONMENTS = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C.UTF-8", "TZ": "Asia/Shanghai", "PYTHONHASHSEED": "1"},
    {"LC_ALL": "tr_TR.UTF-8", "TZ": "America/St_Johns", "PYTHONHASHSEED": "2", "LANGUAGE": "tr"},
    {"LC_ALL": "POSIX", "PYTHONHASHSEED": "3", "PYTHONOPTIMIZE": "2", "OMP_NUM_THREADS": "3"},
]


@pytest.mark.slow
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda told: told["LC_ALL"])
def test_the_environment_changes_no_byte(several: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    lines.CHUNK_BYTES = 4 << 20  # as the processes have it; the fixture restores it
    once = again(several)
    shutil.rmtree(load(several).home)
    load(several).prep.order.file.unlink()
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(
        [sys.executable, "-m", "pipelines", "prep", str(several), "--workers", "2"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), **environment},
        cwd=tmp_path / "elsewhere",
        umask=0o077,
        check=True,
        capture_output=True,
    )
    assert written(several) | {"data_order.txt": load(several).prep.order.file.read_bytes()} == once


CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
"""Python's names for what changes a folder."""


def run_and_die(file: Path, changes: int) -> None:
    """Prep, killed before it changes a folder once more than so often."""
    left = changes

    def count(event: str, _: object) -> None:
        nonlocal left
        if event in CHANGES:
            left -= 1
            if left < 0:
                os._exit(KILLED)

    lines.CHUNK_BYTES = CHUNK_BYTES
    sys.addaudithook(count)
    run(load(file), workers=1)


@pytest.mark.slow
def test_a_run_killed_anywhere_goes_on_to_the_same_bytes_and_never_looks_finished(
    several: Path, tmp_path: Path
) -> None:
    make_files(tmp_path / "data", NAMES[2:3])
    again(several)
    folder, before = load(several).home / "prep", tmp_path / "before"
    folder.rename(before)
    old = Manifest.read(before)
    make_files(tmp_path / "data", NAMES[:2])
    wanted = again(several)
    processes = multiprocessing.get_context("forkserver")  # a process is a copy of one that has imported prep
    processes.set_forkserver_preload(["prep.run"])
    ends: set[str] = set()
    changes, exit_code = 0, KILLED
    while exit_code == KILLED:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)
        load(several).prep.order.file.unlink(missing_ok=True)
        process = processes.Process(target=run_and_die, args=(several, changes))
        process.start()
        process.join()
        assert process.exitcode in (0, KILLED)
        exit_code = process.exitcode
        seen = Manifest.read(folder)
        if seen is not None:
            seen.verify(folder)
        ends.add("none" if seen is None else "old" if seen == old else "new")
        run(load(several), workers=1)
        assert written(several) | {"data_order.txt": load(several).prep.order.file.read_bytes()} == wanted
        changes += 1
    assert ends == {"old", "none", "new"}
    assert changes > 30
