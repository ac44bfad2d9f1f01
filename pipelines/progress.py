"""The bars that long steps show on a terminal: what is done of how much, how fast, and how long it takes still.

They stand below the log lines, on standard error, and vanish with their step; a step within a step has the line below.
Nothing is shown where standard error is no terminal, in CI, with --json, or by ranks other than the first.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import TYPE_CHECKING, TextIO

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID  # only a terminal waits for it

REFRESH_S = 0.25
"""How long a line stays as it is, whatever is done meanwhile."""
WINDOW_S = 60.0
"""The rate is that of the last minute, so that a slow beginning does not spoil it."""
_WIDE, _NARROW = 24, 10
"""Columns of a bar, where a line has 100 and where it has fewer."""
_display: ContextVar["Progress | None"] = ContextVar("display", default=None)
"""The lines that are shown now, in the thread that opens bars."""


class Bar:
    """A step that goes on and that nobody looks at. Called with what was done since the last call, by any thread."""

    def __call__(self, done: int = 1, note: str | None = None) -> None:
        """Count `done` more; `note` stands beside the numbers until there is another."""


@contextmanager
def progress_bar(title: str, total: int, unit: str, *, done: int = 0) -> Iterator[Bar]:
    """Show how far `title` is.

    Args:
        total: units in all.
        unit: one of them, such as "file"; "B" are bytes, in powers of 1,000.
        done: units that were done before.
    """
    if not is_shown(sys.stderr):
        yield Bar()
        return
    with _lines() as lines:
        task = lines.add_task(title, total=total, completed=done, numbers=numbers(done, total, unit, 0))
        lines.refresh()
        try:
            yield _Line(lines, task, total, unit, done)
        finally:
            lines.remove_task(task)
            lines.refresh()


def is_shown(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a person sees bars: a terminal that can show them, outside of CI, a command without --json, one rank."""
    command = click.get_current_context(silent=True)
    if command is not None and command.params.get("as_json"):
        return False
    if environment.get("CI") or environment.get("TERM") == "dumb" or environment.get("RANK", "0") != "0":
        return False
    return stream.isatty()


def numbers(done: int, total: int, unit: str, rate: float) -> str:
    """What stands beside a bar; `rate` is in units a second, 0 where it is not known yet."""
    if unit == "B":
        text = f"{_bytes(done)} of {_bytes(total)}"
        return f"{text}, {_bytes(rate)}/s, {_time((total - done) / rate)} left" if rate > 0 else text
    text = f"{done:,} of {total:,} {unit}{'' if total == 1 else 's'}"
    if rate <= 0:
        return text
    speed = f"{1 / rate:.1f} s a {unit}" if rate < 1 else f"{rate:.1f}/s" if rate < 10 else f"{rate:,.0f}/s"
    return f"{text}, {speed}, {_time((total - done) / rate)} left"


class _Line(Bar):
    """One line of the display, drawn again when something was done and the last time is long enough ago."""

    def __init__(self, lines: "Progress", task: "TaskID", total: int, unit: str, done: int) -> None:
        self._lines, self._task, self._total, self._unit, self._done = lines, task, total, unit, done
        self._note = ""
        self._drawn = time.monotonic()
        self._seen = deque([(self._drawn, done)])
        self._lock = Lock()

    def __call__(self, done: int = 1, note: str | None = None) -> None:
        with self._lock:
            self._done += done
            if note is not None:
                self._note = f", {note}"
            now = time.monotonic()
            if now - self._drawn >= REFRESH_S:
                self._drawn = now
                self._draw(now)

    def _draw(self, now: float) -> None:
        while now - self._seen[0][0] > WINDOW_S and len(self._seen) > 1:
            self._seen.popleft()
        since, before = self._seen[0]
        self._seen.append((now, self._done))
        text = numbers(self._done, self._total, self._unit, (self._done - before) / (now - since)) + self._note
        self._lines.update(self._task, completed=self._done, numbers=text, refresh=True)


@contextmanager
def _lines() -> Iterator["Progress"]:
    """The display, which lasts as long as the outermost bar."""
    if (outer := _display.get()) is not None:
        yield outer
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
    from rich.table import Column

    # No thread draws: a process may fork in the middle of a step, and may be busy outside of Python.
    console = Console(file=sys.stderr, soft_wrap=True)
    shown = Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, min_width=10)),
        BarColumn(_WIDE if console.width >= 100 else _NARROW),
        TextColumn("{task.fields[numbers]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        auto_refresh=False,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    with shown:
        shown.console.show_cursor(True)  # a process that is killed would leave the terminal without one
        token = _display.set(shown)
        try:
            yield shown
        finally:
            _display.reset(token)


def _bytes(number: float) -> str:
    for prefix in ("", "k", "M", "G"):
        if number < 999.5:
            return f"{number:.3g} {prefix}B"
        number /= 1000
    return f"{number:,.3g} TB"


def _time(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
