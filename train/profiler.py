"""The window of steps that [train.profile] asks for: a trace of what they ran, and which operators took the time."""

import gzip
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pipelines.artifacts import make_directory
from train.plan import Plan

log = logging.getLogger(__name__)

MOST_OPERATORS = 10
"""Lines of the table that is logged."""
MOST_ALLOCATIONS = 1_000_000
"""Of the memory snapshot, which keeps the newest."""


class Profiler:
    """Watches rank 0 over a window of optimizer steps; on other ranks, nothing happens.

    What is computed stays as it is, and no failure to write ends the run. Steps in the window are slower.
    """

    def __init__(self, plan: Plan, *, done: int, write: bool) -> None:
        """Find the window, and say where it is not the one that was asked for.

        Args:
            done: steps that the run goes on from.
            write: whether this is rank 0.
        """
        table = plan.train.profile
        self._folder = plan.home / "profile"
        self._window = range(0)
        self._seen: list[int] = []
        self._profile: profile | None = None
        self._snapshot = False
        if table is None or not write:
            return
        asked = range(table.first_step, table.first_step + table.steps)
        self._window = range(max(asked.start, done + 1), min(asked.stop, plan.total_steps + 1))
        self._snapshot = table.memory and torch.cuda.is_available()
        where = plan.pipeline.cite("train.profile")
        if not self._window:
            why = f"the run has {plan.total_steps}" if asked.start > plan.total_steps else f"{done} were done before"
            log.warning("%s: no step is profiled: %s", where, why)
        elif len(self._window) < len(asked):
            log.warning("%s: of steps %s, %s are profiled", where, _span(asked), _span(self._window))
        if table.memory and not self._snapshot:
            log.warning("%s: no memory snapshot: there is no GPU", where)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._profile is not None:  # the run stops inside the window
            self._stop()

    @contextmanager
    def over(self, step: int) -> Iterator[None]:
        """Around optimizer step `step`, counted from 1."""
        if step not in self._window:
            yield
            return
        if self._profile is None:
            self._start()
        self._seen.append(step)
        with record_function(f"optimizer step {step}"):
            yield
        if step == self._window[-1]:
            self._stop()

    def _start(self) -> None:
        if self._snapshot:
            torch.cuda.memory._record_memory_history(max_entries=MOST_ALLOCATIONS)
        on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *on_gpu])
        self._profile.start()

    def _stop(self) -> None:
        done, self._profile = self._profile, None
        assert done is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        done.stop()
        name = f"steps-{self._seen[0]:08d}-{self._seen[-1]:08d}"
        try:
            make_directory(self._folder)
            trace = self._folder / f"{name}.json.gz"
            _write_trace(done, trace)
            if self._snapshot:
                self._write_snapshot(self._folder / f"{name}.pickle")
        except (OSError, RuntimeError) as error:
            log.warning("the profile is not written: %s; the run goes on", error)
            return
        log.info("profiled steps %s: %s\n%s", _span(self._seen), trace, operators(done, steps=len(self._seen)))

    def _write_snapshot(self, path: Path) -> None:
        partial = path.with_name(f".{path.name}")
        torch.cuda.memory._dump_snapshot(str(partial))  # type: ignore[no-untyped-call]
        torch.cuda.memory._record_memory_history(enabled=None)
        partial.replace(path)


def operators(found: profile, *, steps: int) -> str:
    """The operators that took most time, without what they called: of the GPU if there is one, else of the CPU."""
    events: list[Any] = [event for event in found.key_averages() if not event.key.startswith("optimizer step")]
    on_gpu = any(event.self_device_time_total for event in events)
    times = [(event.self_device_time_total if on_gpu else event.self_cpu_time_total, event) for event in events]
    whole = sum(time for time, _ in times) or 1
    longest = sorted(times, key=lambda one: (-one[0], one[1].key))[:MOST_OPERATORS]
    rows = [f"{'ms a step':>12} {'share':>6} {'calls':>8}  on the {'GPU' if on_gpu else 'CPU'}"]
    rows += [
        f"{time / 1000 / steps:12.3f} {time / whole:6.1%} {event.count / steps:8.0f}  {event.key[:80]}"
        for time, event in longest
    ]
    return "\n".join(rows)


def _write_trace(found: profile, path: Path) -> None:
    plain, packed = path.with_name(f".{path.stem}"), path.with_name(f".{path.name}")
    found.export_chrome_trace(str(plain))
    # PyTorch would pack it line by line, which takes long.
    with plain.open("rb") as text, gzip.open(packed, "wb", compresslevel=3) as file:
        shutil.copyfileobj(text, file, 1 << 20)
    plain.unlink()
    packed.replace(path)


def _span(steps: range | list[int]) -> str:
    return str(steps[0]) if len(steps) == 1 else f"{steps[0]}..{steps[-1]}"
