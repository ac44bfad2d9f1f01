"""`make versions`: prep's bytes and tests under every Python here, with the oldest, the pinned and the latest packages.

Each pair has an environment of its own below a temporary directory, with packtrain as a wheel and without torch. The
quickstart is prepared in it and held to the golden digests of the tree; then the tests run that a version could break.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.versions.pins import CONSTRAINTS, ROOT, pins

PYTHONS = ("3.11", "3.12", "3.13")
KINDS: Mapping[str, Path | None] = {
    "oldest": ROOT / "tests" / "versions" / "oldest.txt",
    "pinned": CONSTRAINTS,
    "latest": None,
}
"""What holds the versions of each kind; the latest are what `pip install packtrain` takes without a word."""
TOOLS = ("pytest", "hypothesis", "zstandard")
SHOWN = ("numpy", "pyarrow", "numba", "tokenizers", "pydantic")
TESTS = (
    "tests/pipelines/test_artifacts.py",
    "tests/pipelines/test_config.py",
    "tests/pipelines/test_golden.py",
    "tests/pipelines/test_model_source.py",
    "tests/pipelines/test_reference.py",
    "tests/pipelines/test_shards.py",
    "tests/prep/test_assemble.py",
    "tests/prep/test_best_fit.py",
    "tests/prep/test_concat_split.py",
    "tests/prep/test_encoder.py",
    "tests/prep/test_gather.py",
    "tests/prep/test_hash_sort.py",
    "tests/prep/test_in_order.py",
    "tests/prep/test_interleave.py",
    "tests/prep/test_segments.py",
    "tests/prep/test_shuffle.py",
    "tests/prep/test_tokenize.py",
)
"""Kernels, configuration, files between stages: what numpy, numba, pyarrow, pydantic and tokenizers decide."""


@dataclass(frozen=True)
class Outcome:
    """What one environment came to."""

    python: str
    kind: str
    versions: Mapping[str, str]
    failure: str
    """The step that failed and the last line it wrote; empty where all passed."""

    def row(self) -> str:
        shown = [self.versions.get(name, "") for name in SHOWN]
        return f"| {' | '.join([self.python, self.kind, *shown, self.failure or 'same bytes'])} |"


def pythons() -> dict[str, Path]:
    """The interpreters that can be found: on the path, and below pyenv."""
    found = {}
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for wanted in PYTHONS:
        on_path = shutil.which(f"python{wanted}")
        paths = [Path(on_path)] if on_path else []
        for path in [*paths, *sorted(root.glob(f"{wanted}.*/bin/python"))]:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if match := re.match(rf"Python ({re.escape(wanted)}\.\d+)$", said.stdout):
                found[match[1]] = path
                break
    return found


def tried(python: Path, version: str, kind: str, folder: Path, *, tests: bool = True) -> Outcome:
    """Make the environment, prepare the quickstart in it, run the tests."""
    own = folder / f"{version}-{kind}"
    ours = own / "venv" / "bin" / "python"
    source = folder / "source"
    held = KINDS[kind]
    constraint = ["--constraint", str(held)] if held else []
    wheel = next(folder.glob("packtrain-*.whl"))
    pinned = pins()
    tools = [f"{name}=={pinned[name]}" for name in TOOLS]
    pip = [str(ours), "-m", "pip", "--disable-pip-version-check"]
    quick = ["--quiet", "--no-compile", "--only-binary", ":all:"]
    packtrain = str(ours.with_name("packtrain"))
    quickstart = "pipelines/quickstart.toml"  # its work directory is beside its folder
    golden = str(source / "pipelines" / "quickstart" / "golden.json")
    pytest = [str(ours), "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *TESTS]
    steps: Sequence[tuple[str, Path, Sequence[str]]] = (
        ("venv", folder, [str(python), "-m", "venv", str(own / "venv")]),
        ("install", own, [*pip, "install", *quick, *constraint, str(wheel)]),
        ("tools", own, [*pip, "install", *quick, *tools]),
        ("pip check", own, [*pip, "check"]),
        ("init", own, [packtrain, "init", "quickstart", "pipelines"]),
        ("prep", own, [packtrain, "prep", quickstart]),
        ("golden", own, [packtrain, "order", "check", quickstart, "--golden", golden]),
        ("verify", own, [packtrain, "verify", "work/quickstart"]),
        *([("tests", source, pytest)] if tests else []),
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(own / "numba"), "PYTHONDONTWRITEBYTECODE": "1"}
    failure = ""
    for name, where, command in steps:
        where.mkdir(exist_ok=True)
        failure = _failure(name, command, where, environment)
        if failure:
            break
    return Outcome(version, kind, _versions([*pip, "list", "--format", "json"]), failure)


def table(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The outcomes as Markdown."""
    yield f"| Python | packages | {' | '.join(SHOWN)} | prep |"
    yield "|---|---|" + "---|" * (len(SHOWN) + 1)
    for outcome in outcomes:
        yield outcome.row()


def write_wheel(folder: Path) -> None:
    """Copy what is in version control, as it is now, to `folder`/source and make a wheel of it."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
    )
    for name in names.stdout.decode().rstrip("\0").split("\0"):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
    subprocess.run([*command, str(folder / "source")], check=True)


def main() -> int:
    """Parse, try every pair, print the table; 1 where one failed, 5 where a Python is missing."""
    parser = argparse.ArgumentParser(prog="make versions", description=__doc__)
    parser.add_argument("--python", choices=PYTHONS, action="append", help="these alone")
    parser.add_argument("--kind", choices=KINDS, action="append", help="these alone")
    parser.add_argument("--bytes-only", action="store_true", help="without the tests")
    given = parser.parse_args()
    wanted = given.python or PYTHONS
    found = {version: path for version, path in pythons().items() if version.rpartition(".")[0] in wanted}
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="packtrain-versions-") as name:
        folder = Path(name)
        write_wheel(folder)
        for version, path in found.items():
            for kind in given.kind or KINDS:
                outcome = tried(path, version, kind, folder, tests=not given.bytes_only)
                outcomes.append(outcome)
                print(outcome.row(), file=sys.stderr, flush=True)
                shutil.rmtree(folder / f"{version}-{kind}", ignore_errors=True)
    print("\n".join(table(outcomes)))
    missing = [one for one in wanted if one not in {version.rpartition(".")[0] for version in found}]
    for one in missing:
        print(f"Python {one} was not tried: it is neither on the path nor below pyenv")
    return 1 if any(outcome.failure for outcome in outcomes) else 5 if missing else 0


def _failure(name: str, command: Sequence[str], where: Path, environment: Mapping[str, str]) -> str:
    answer = subprocess.run(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if answer.returncode == 0:
        return ""
    said = [line for line in answer.stdout.splitlines() if line.strip()]
    print(*said[-40:], sep="\n", file=sys.stderr)
    return f"{name}: {said[-1].replace('|', ' ') if said else f'exit {answer.returncode}'}"


def _versions(command: Sequence[str]) -> dict[str, str]:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = json.loads(answer.stdout) if answer.returncode == 0 else []
    return {row["name"]: row["version"] for row in rows}


if __name__ == "__main__":
    sys.exit(main())
