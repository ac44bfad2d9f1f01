"""A command run as users run it, with the processor time and the memory that it and its children took."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKTRAIN = str(Path(sys.executable).with_name("packtrain"))


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float
    """Of processor time, of all its processes that it waited for."""
    peak_mb: float
    """Of the process that held the most."""


def packtrain(*words: str | Path, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Ended:
    """Run the installed command and measure it."""
    return ended([PACKTRAIN, *map(str, words)], cwd=cwd, env=env)


def ended(command: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Ended:
    """Run any command to its end. GNU time is not everywhere, so a small Python waits for it."""
    words = [sys.executable, "-S", "-c", _MEASURE, *command]
    done = subprocess.run(
        words, capture_output=True, text=True, errors="replace", cwd=cwd, env={**os.environ, **(env or {})}, timeout=300
    )
    err, _, told = done.stderr.rpartition("\n#measured ")
    seconds, kb = told.split()
    return Ended(done.returncode, done.stdout, err, float(seconds), float(kb) / 1024)


_MEASURE = """
import os, resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_CHILDREN)
sys.stderr.write(f"\\n#measured {used.ru_utime + used.ru_stime} {used.ru_maxrss}")
sys.exit(code if code >= 0 else 128 - code)
"""
