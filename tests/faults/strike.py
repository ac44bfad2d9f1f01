"""The library that injects faults: compiled once, loaded into every process of a stage before the C library."""

import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

_HOOK = Path(__file__).with_name("hook")


@cache
def library() -> Path | None:
    """`hook/strike.c` as a shared library, or None where there is no C compiler."""
    source = _HOOK / "strike.c"
    built = _HOOK / "__pycache__" / f"strike-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}.so"
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    if not built.exists():
        built.parent.mkdir(exist_ok=True)
        made = built.with_suffix(f".{os.getpid()}")  # several processes may begin at once
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", made, source, "-ldl"], check=True)
        made.replace(built)
    return built


def fault(what: str, kind: str, at: int, folder: Path, counter: Path) -> dict[str, str]:
    """The environment of a process that is to meet a fault below a directory.

    Args:
        what, kind, at: as `hook/strike.c` explains them.
        counter: a file for the changes or reads of all processes of this run, made anew.
    """
    counter.write_bytes(bytes(8))
    return {"FAULT": f"{what} {kind} {at} {folder}", "FAULT_COUNTER": str(counter), "LD_PRELOAD": str(library())}
