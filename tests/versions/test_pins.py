"""Every package is pinned, and a file with another hash than the pinned one ends the installation."""

import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import tomli
from packaging.requirements import Requirement

from tests.versions.pins import APART, HASHED, ROOT, normal, pins


def installed() -> dict[str, str]:
    """Versions of all that packtrain, its training and its tests stand on here."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    open_ = [(Requirement(line), "") for line in (*project["dependencies"], *extras["train"], *extras["dev"])]
    found: dict[str, str] = {}
    while open_:
        wanted, extra = open_.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        package, name = distribution(wanted.name), normal(wanted.name)
        below = [*wanted.extras, *([] if name in found else [""])]
        found[name] = package.version.partition("+")[0]
        open_ += [(Requirement(line), one) for one in below for line in package.requires or ()]
    return found


def test_all_that_is_installed_is_pinned() -> None:
    try:
        found = installed()
    except PackageNotFoundError as error:
        pytest.skip(f"{error} is not installed here")
    assert len(found) > 60
    assert found.items() <= pins().items()


def test_hashes_are_of_pinned_versions_and_each_is_in_one_file() -> None:
    pinned = pins()
    names: list[str] = []
    for file in HASHED:
        hashed = pins_with_hashes(ROOT / file)
        assert hashed.items() <= pinned.items(), "run `make pins`"
        names += hashed
    assert len(names) == len(set(names)) > 50
    assert "torch" not in names, "each machine has its own build"
    assert set(pins(APART)) == {"transformers", "tokenizers", "huggingface-hub"}


def pins_with_hashes(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"\S+==\S+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)
    return {normal(name): version for name, _, version in (line.split()[0].partition("==") for line in lines)}


def test_a_line_that_pins_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "constraints.txt"
    path.write_text("numpy>=2\n")
    with pytest.raises(ValueError, match=r"constraints\.txt:1: expected name==version"):
        pins(path)


def write_wheel(folder: Path) -> str:
    """A wheel of one empty module; returns its digest."""
    path = folder / "probe-1.0-py3-none-any.whl"
    files = {
        "probe.py": b"",
        "probe-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: probe\nVersion: 1.0\n",
        "probe-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(data)}\n")
        archive.writestr("probe-1.0.dist-info/RECORD", "".join(rows) + "probe-1.0.dist-info/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_wrong_hash_ends_make(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    digest = write_wheel(tmp_path)
    (tmp_path / "constraints.txt").write_text("probe==1.0\n")
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    said = []
    for hashed in ("0" * 64, digest):
        (tmp_path / "hashes.txt").write_text(f"probe==1.0 --hash=sha256:{hashed}\n")
        answer = subprocess.run(
            ["make", ".venv/.ready", f"PYTHON={sys.executable}"],
            cwd=tmp_path,
            env=os.environ | offline,
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 2
        assert not (tmp_path / ".venv" / ".ready").exists()
        said.append(answer.stderr)
    assert "DO NOT MATCH THE HASHES" in said[0]
    assert "DO NOT MATCH" not in said[1], "the right hash gets as far as torch, which no folder here has"
    assert "torch" in said[1]
    assert list((tmp_path / ".venv").glob("lib/python3*/site-packages/probe.py"))
