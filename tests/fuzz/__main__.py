"""`make fuzz`: every target under atheris for a while; exits 1 if an input did what none may do.

What was found goes to tests/fuzz/corpus, so that the tests fail until it is mended; so do the smallest of the inputs
that reached something new, as far as there is room.
"""

import argparse
import importlib.util
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import MachineError
from tests.fuzz import limits

if TYPE_CHECKING:
    from tests.fuzz.target import Target  # which brings readers that are not instrumented yet

CORPUS = Path(__file__).with_name("corpus")
ROOM = 20_000
"""Bytes of a target's inputs in the corpus, found ones aside; all of it has to stay small, as it is in git."""
_LARGEST = 4_096  # bytes of an input that fuzzing makes, the seeds aside
_ITSELF = 700 << 20  # bytes that a process takes which has imported everything
_RESTARTS = 20


@dataclass
class Tally:
    """What became of a target."""

    name: str
    executions: int = 0
    seconds: int = 0
    findings: list[str] = field(default_factory=list)
    kept: int = 0
    """Inputs new in the corpus."""

    def __str__(self) -> str:
        found = ", ".join(self.findings) or "none"
        return f"{self.name:22}{self.executions:12,}{self.seconds:8,} s   new {self.kept:4}   findings: {found}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, print the table."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--only", action="append", help="these targets alone")
    parser.add_argument("--work", type=Path, default=Path("work/fuzz"), help="where fuzzing goes on from the last time")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where inputs are kept")
    asked = parser.parse_args(arguments)
    try:
        require_atheris()
    except MachineError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    from tests.fuzz.one import TARGETS  # imports atheris

    names = asked.only or list(TARGETS)
    if unknown := [name for name in names if name not in TARGETS]:
        parser.error(f"no target {unknown[0]}; there are {', '.join(TARGETS)}")
    tallies = []
    for name in names:
        tallies.append(fuzz(TARGETS[name], asked.seconds, asked.work, asked.corpus))
        print(tallies[-1], flush=True)
    findings = sum(len(tally.findings) for tally in tallies)
    executions, seconds = sum(tally.executions for tally in tallies), sum(tally.seconds for tally in tallies)
    print(f"{len(tallies)} targets, {executions:,} executions in {seconds:,} s, {findings} findings")
    return int(findings > 0)


def require_atheris() -> None:
    """Refuse to begin without the fuzzer.

    Raises:
        MachineError: if it is not installed.
    """
    if importlib.util.find_spec("atheris") is None:
        version = ".".join(map(str, sys.version_info[:2]))
        raise MachineError(
            f"fuzzing: atheris is not installed for Python {version}; pip install atheris, or take a Python that it "
            "has a wheel for (3.11 to 3.13 on Linux x86-64)"
        )


def fuzz(target: "Target", seconds: int, work: Path, corpus: Path) -> Tally:
    """Fuzz one target for a while, started again where an input ended the process."""
    span, kept = work / target.name, corpus / target.name
    (span / "inputs").mkdir(parents=True, exist_ok=True)
    kept.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(span / "findings", ignore_errors=True)
    (span / "tokens").write_text("".join(f'"{_escaped(token)}"\n' for token in target.tokens))
    tally, began = Tally(target.name), time.monotonic()
    for _ in range(_RESTARTS):
        left = seconds - round(time.monotonic() - began)
        if left <= 0:
            break
        code, log = _run(target, span, [f"-max_total_time={left}", str(span / "inputs"), str(kept)])
        counted = re.findall(r"number_of_executed_units: *(\d+)", log) or re.findall(r"^#(\d+)", log, re.M) or ["0"]
        tally.executions += int(counted[-1])
        if not code:
            break
    tally.seconds = round(time.monotonic() - began)
    tally.findings = _keep_findings(span, kept)
    tally.kept = _keep_inputs(target, span, kept)
    return tally


def _run(target: "Target", span: Path, arguments: Sequence[str]) -> tuple[int, str]:
    """How libFuzzer ended, and what it said."""
    from tests.fuzz.one import forked  # imports atheris

    most = [
        f"-rss_limit_mb={(_ITSELF + limits.BYTES) >> 20}",
        f"-timeout={3 * limits.SECONDS:.0f}",
        "-report_slow_units=1000",
    ]
    found = [f"-artifact_prefix={span}/ended-", f"-max_len={4 * _LARGEST}"]
    found += [f"-dict={span / 'tokens'}"] if target.tokens else []
    log = span / "log.txt"
    code = forked(target.name, span, log, [*most, *found, "-print_final_stats=1", "-verbosity=1", *arguments])
    text = log.read_text(errors="replace")
    if code and not list(span.glob("ended-*")):
        raise RuntimeError(f"{target.name}: the fuzzer itself failed, see {log}:\n{text[-2000:]}")
    return code, text


def _keep_findings(span: Path, kept: Path) -> list[str]:
    """Copy what an input must not do to the corpus; returns their names there."""
    names = []
    for path in sorted((span / "findings").glob("*.input")):
        names.append(f"found-{path.stem}")
        shutil.copyfile(path, kept / names[-1])
    for path in sorted(span.glob("ended-*")):  # of libFuzzer: too much memory, a hang, native code
        names.append(f"found-{path.name.removeprefix('ended-')[:20]}")
        path.rename(kept / names[-1])
    return names


def _keep_inputs(target: "Target", span: Path, kept: Path) -> int:
    """Add the smallest inputs that reach what those in the corpus do not; returns how many."""
    inputs = sorted(
        (path for path in (span / "inputs").iterdir() if path.stat().st_size <= _LARGEST),
        key=lambda path: (path.stat().st_size, path.name),
    )
    room = ROOM - sum(path.stat().st_size for path in kept.iterdir() if not path.name.startswith("found-"))
    reached: set[str] = set()
    added = 0
    for path, features in _features(target, span, [*sorted(kept.iterdir()), *inputs]):
        size = path.stat().st_size
        if path.parent != kept and features - reached and size <= room:
            content = path.read_bytes()
            (kept / sha256(content).hexdigest()[:16]).write_bytes(content)
            room, added = room - size, added + 1
            reached |= features
        elif path.parent == kept:
            reached |= features
    return added


def _features(target: "Target", span: Path, paths: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """What each input reaches, as libFuzzer tells it when it merges: the step of it that runs them, and no more."""
    control = span / "control"
    control.write_text("\n".join([str(len(paths)), "0", *map(str, paths), ""]))
    _run(target, span, ["-merge_inner=1", f"-merge_control_file={control}"])
    for line in control.read_text().splitlines():
        kind, *numbers = line.split()
        if kind == "FT":
            yield paths[int(numbers[0])], set(numbers[1:])


def _escaped(token: bytes) -> str:
    """As libFuzzer's dictionaries spell it."""
    return "".join(chr(byte) if 32 < byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in token)


if __name__ == "__main__":
    sys.exit(main())
