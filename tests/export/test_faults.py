"""Exports that are killed, starved of disk or started twice: nothing unfinished looks finished, and nothing is lost."""

import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import export.destination
from export.internevo.exporter import to_internevo
from export.internevo.importer import import_internevo
from export.plan import Plan
from export.run import run
from pipelines.artifacts import MANIFEST, Manifest, exclusive_name
from pipelines.errors import BusyError, MachineError
from pipelines.schema import Pipeline
from tests.export.adapted import adapted_pipeline, write_adapted_run
from tests.export.test_adapter import LORA
from tests.export.tiny import pipeline, write_run

SERVER = multiprocessing.get_context("forkserver")
"""Starts processes as copies of one that has imported everything."""
SERVER.set_forkserver_preload(["export.run", "export.verify", "export.published", "peft", __name__])
CHANGES = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}
POINTS = 5


def settings(folder: Path, dtype: str) -> Pipeline:
    hf = {"dtype": dtype, "max_shard_size": 100_000}
    return adapted_pipeline(folder, LORA, targets=["hf", "adapter"], verify={"greedy_tokens": 0}, hf=hf)


def tree(folder: Path) -> dict[str, bytes]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def strike(folder: Path, at: int) -> Callable[[], int]:
    """SIGKILL to this process at its change number `at` below a directory; returns what tells how many there were.

    A change is a file that is opened, moved or removed, and every write at a place or flush of any file.
    """
    made = 0

    def change() -> None:
        nonlocal made
        made += 1
        if made == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event in CHANGES and isinstance(given[0], str | bytes) and os.fsdecode(given[0]).startswith(str(folder)):
            change()

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any) -> Any:
            change()
            return call(*given)

        return counting

    sys.addaudithook(hook)
    os.pwrite, os.fsync = counted(os.pwrite), counted(os.fsync)
    return lambda: made


def killed_export(folder: Path, dtype: str, at: int) -> None:
    changes = strike(folder / "work/tiny/export", at)
    run(settings(folder, dtype))
    (folder / "changes").write_text(str(changes()))


def in_a_process(work: Callable[..., None], *given: Any) -> int | None:
    process = SERVER.Process(target=work, args=given)
    process.start()
    process.join(120)
    return process.exitcode


@pytest.mark.slow
def test_export_killed_at_any_change_looks_unfinished_and_finishes_with_the_same_bytes(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    write_adapted_run(ready, LORA)
    run(settings(ready, "float32"))  # an earlier export, which is replaced
    folder = tmp_path / "here"  # always, since an adapter says where its base is
    home = folder / "work/tiny/export"
    shutil.copytree(ready, folder)
    assert in_a_process(killed_export, folder, "bfloat16", 0) == 0
    expected, changes = tree(home), int((folder / "changes").read_text())
    draw = random.Random(5)
    assert changes > 40
    for at in sorted(draw.sample(range(1, changes + 1), POINTS)):
        shutil.rmtree(folder)
        shutil.copytree(ready, folder)
        assert in_a_process(killed_export, folder, "bfloat16", at) == -signal.SIGKILL
        assert not Plan.of(settings(folder, "bfloat16")).is_done()
        for target in ("hf", "adapter"):
            manifest = Manifest.read(home / target)
            if manifest is not None:  # the earlier one or the new one, each whole
                manifest.verify(home / target)
        assert in_a_process(killed_export, folder, "bfloat16", 0) == 0
        assert tree(home) == expected, f"killed at change {at}"


def starved_export(folder: Path, nbytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, nbytes))
    try:
        run(settings(folder, "bfloat16"))
    except MachineError as error:
        (folder / "said").write_text(str(error))
        raise SystemExit(error.exit_code) from error


@pytest.mark.slow
def test_disk_that_takes_no_more_is_told_with_bytes_and_the_earlier_export_stays(tmp_path: Path) -> None:
    write_adapted_run(tmp_path, LORA)
    run(settings(tmp_path, "float32"))
    home = tmp_path / "work/tiny/export"
    before = tree(home)
    for nbytes in (5_000, 90_000):  # inside the first shard; inside its last
        assert in_a_process(starved_export, tmp_path, nbytes) == 5
        said = (tmp_path / "said").read_text()
        assert "cannot be written (File too large), 0.5 MB are needed in all and " in said
        del before[MANIFEST]
        assert tree(home) == before
        run(settings(tmp_path, "float32"))
        before = tree(home)


def test_too_little_space_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    run(pipeline(tmp_path, hf={"dtype": "float32"}))
    home = tmp_path / "work/tiny/export"
    before = tree(home / "hf")
    monkeypatch.setattr(export.destination, "free_space", lambda folder: 400_000)
    with pytest.raises(MachineError, match=r"hf: needs 0.5 MB beside what is there, and 0.4 MB are free; free space"):
        run(pipeline(tmp_path, hf={"dtype": "bfloat16"}))
    assert tree(home / "hf") == before
    assert not [path for path in home.iterdir() if path.suffix == ".tmp"]


def counting(folder: Path) -> None:
    for _ in range(200):
        try:
            with exclusive_name(folder / "name"):
                path = folder / "count"
                path.write_text(str(int(path.read_text()) + 1))
        except BusyError:
            pass
        else:
            with (folder / "done").open("a") as file:
                file.write(".")


def test_name_is_held_by_one_process_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    others = [SERVER.Process(target=counting, args=(tmp_path,)) for _ in range(3)]
    for process in others:
        process.start()
    for process in others:
        process.join(60)
        assert process.exitcode == 0
    assert int((tmp_path / "count").read_text()) == len((tmp_path / "done").read_text())
    assert not (tmp_path / ".name.lock").exists()


def test_second_internevo_conversion_to_a_place_ends_at_once(tmp_path: Path) -> None:
    for work in (import_internevo, to_internevo):
        with exclusive_name(tmp_path / "out"), pytest.raises(BusyError, match="out: another packtrain process works"):
            work(tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.slow
def test_bytes_are_the_same_at_any_number_of_threads(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    write_adapted_run(tmp_path, LORA, quantization={})
    found = []
    code = (
        "import sys, pathlib; from tests.export.adapted import adapted_pipeline; from export.run import run\n"
        "run(adapted_pipeline(pathlib.Path(sys.argv[1]), {'r': 4, 'lora_alpha': 8}, {}, verify={'greedy_tokens': 1}))"
    )
    for threads in ("1", "4"):
        shutil.rmtree(tmp_path / "work/tiny/export", ignore_errors=True)
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], check=True, env=os.environ | dict.fromkeys(names, threads)
        )
        found.append(tree(tmp_path / "work/tiny/export"))
    assert found[0] == found[1]
