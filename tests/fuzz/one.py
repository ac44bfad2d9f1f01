"""Targets under atheris, each in a process of its own that is forked from one which has imported everything.

What an input must not do is kept below the target's directory, the smallest input of each kind, and fuzzing goes on;
only what ends the process (too much memory, a hang, a crash of native code) ends it, and leaves libFuzzer's own file.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
INSTRUMENTED = ("pipelines", "prep", "export")


__all__ = ["TARGETS", "forked"]


def compiled() -> list[str]:
    """Modules with numba's kernels: numba compiles what Python's own compiler made, and takes no other bytecode."""
    paths = [path for package in INSTRUMENTED for path in sorted((ROOT / package).rglob("*.py"))]
    kernels = [path for path in paths if "njit" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in kernels]


with (Path(os.devnull)).open("w") as nowhere:
    told, sys.stderr = sys.stderr, nowhere  # a line for every module
    with atheris.instrument_imports(include=list(INSTRUMENTED), exclude=compiled()):
        from tests.fuzz.findings import Findings
        from tests.fuzz.targets import TARGETS
    sys.stderr = told


def forked(name: str, folder: Path, log: Path, arguments: Sequence[str]) -> int:
    """Give libFuzzer its arguments in a new process; returns how that ended."""
    child = os.fork()
    if not child:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        atheris.Setup([name, *arguments], Findings(TARGETS[name], folder / "findings").take)
        atheris.Fuzz()  # does not come back
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
