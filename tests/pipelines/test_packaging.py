"""The sdist and the wheel: what is in them, and that they run in a folder with somebody's own train.py and export/."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prep.small import conversations
from tests.test_secrets import TOML

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipelines", "prep", "train", "export")


def tracked() -> Iterator[str]:
    """What is in version control, or would be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("this is no checkout")
    return (name for name in answer.stdout.decode().rstrip("\0").split("\0") if (ROOT / name).is_file())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from the sdist."""
    pytest.importorskip("setuptools", "77")
    folder = tmp_path_factory.mktemp("built")
    for name in tracked():
        if name.partition("/")[0] not in ("tests", "bench", "docs"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    backend = "from setuptools.build_meta import build_{0} as build; print(build({1!r}))"
    for kind, where in (("sdist", folder / "source"), ("wheel", folder / "unpacked" / "packtrain-0.1.0")):
        program = backend.format(kind, str(folder))
        subprocess.run([sys.executable, "-c", program], cwd=where, check=True, capture_output=True)
        if kind == "sdist":
            with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
                archive.extractall(folder / "unpacked", filter="data")
    return folder


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages_and_the_licence_and_no_test(built: Path) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        found = set(archive.namelist())
        metadata = archive.read("packtrain-0.1.0.dist-info/METADATA").decode()
    wanted = {name for name in tracked() if name.partition("/")[0] in PACKAGES}
    assert len(wanted) > 200
    assert {name for name in found if "dist-info" not in name} == wanted
    assert "packtrain-0.1.0.dist-info/licenses/LICENSE" in found
    assert "License-Expression: Apache-2.0" in metadata


@pytest.mark.slow
def test_the_wheel_runs_where_somebody_has_a_train_py_and_an_export_folder(built: Path, tmp_path: Path) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(next(built.glob("*.whl")))], check=True)
    for name in ("train.py", "prep.py", "export/__init__.py", "pipelines/__init__.py"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("raise SystemExit('somebody else was imported')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(site)}
    packtrain = str(site / "bin" / "packtrain")

    def run(*arguments: str) -> str:
        command = [sys.executable, packtrain, *arguments]
        answer = subprocess.run(command, cwd=home, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
        assert answer.returncode == 0, answer.stdout
        return answer.stdout

    assert run("--version").startswith("packtrain")
    where = [sys.executable, "-P", "-c", "import pipelines, prep, train; print(pipelines.__file__, train.__file__)"]
    imported = subprocess.run(where, cwd=home, env=environment, check=True, stdout=-1, text=True).stdout
    assert imported.count(str(site)) == 2, "the wheel is tried, not the checkout"
    shutil.copytree(site / "pipelines" / "quickstart" / "tokenizer", home / "tokenizer")
    (home / "s.jsonl").write_text(conversations(60))
    (home / "small.toml").write_text(TOML)
    run("order", "write", "small.toml")
    for stage in ("prep", "train", "export"):
        run(stage, "small.toml")
    run("verify", "work/small")
    assert (home / "work" / "small" / "export" / "hf" / "config.json").is_file()
    for kind in ("train.py", "prep.py"):
        assert (home / kind).read_text().startswith("raise"), "nothing of theirs is touched"
