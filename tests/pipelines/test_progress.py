import io
import os
import pty
import re
import subprocess
import sys

import click
import pytest

from pipelines.progress import Bar, _Line, is_shown, numbers, progress_bar

STEPS = """
import logging, sys, time
from pipelines.progress import REFRESH_S, progress_bar
from pipelines.terminal import LogLines

logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[LogLines()])
with progress_bar("training", 4, "step", done=1) as training:
    for step in range(2, 5):
        time.sleep(REFRESH_S)
        training(1, f"loss {step}.5")
        logging.info("step [b]%d[/b] %s", step, "wide " * 30)
    with progress_bar("saving", 2_000_000_000, "B") as saving:
        time.sleep(REFRESH_S)
        saving(1_000_000_000)
    print("to standard output")
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_a_terminal(program: str, *, columns: int = 80) -> str:
    """What a program writes to a terminal that is its standard output and error."""
    ours, its = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "RANK")}
    environment |= {"TERM": "xterm-256color", "COLUMNS": str(columns)}
    with subprocess.Popen([sys.executable, "-c", program], stdout=its, stderr=its, env=environment):
        os.close(its)
        found = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # as it is told of the end
                break
            if not part:
                break
            found += part
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", found.decode())


def test_lines_show_what_is_done_how_fast_and_how_long_still_below_whole_log_lines() -> None:
    found = on_a_terminal(STEPS)
    drawn = re.split(r"\r|\n|\x1b\[2K", found)
    assert any(re.match(r"training .*━ 1 of 4 steps", line) for line in drawn)
    assert any(re.match(r"training .* 4 of 4 steps, [1-4]\.\d/s, 0:00 left, loss 4\.5", line) for line in drawn)
    assert any(re.match(r"saving .* 1 GB of 2 GB, [2-4](\.\d+)? GB/s, 0:00 left", line) for line in drawn)
    for step in (2, 3, 4):
        assert f"\x1b[2Kstep [b]{step}[/b] {'wide ' * 30}\r\n" in found
    assert "to standard output\r\n" in found
    assert found.rindex("\x1b[?25h") > found.rindex("\x1b[?25l")  # the cursor is there, also after a kill in the middle
    assert found.index("\x1b[?25h") < found.index("step [b]2")


def test_a_narrow_terminal_loses_the_end_of_a_line_and_no_line_wraps() -> None:
    found = on_a_terminal(STEPS, columns=40)
    for line in re.split(r"\r|\n|\x1b\[2K", found):
        assert len(line) <= 40 or "wide" in line


def test_the_rate_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, drawn = [0.0], []

    class Lines:
        def update(self, _: object, *, numbers: str, **__: object) -> None:
            drawn.append(numbers)

    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: clock[0])
    line = _Line(Lines(), 0, 1000, "step", 0)  # type: ignore[arg-type]  # of which nothing else is used
    for _ in range(3):  # slow at first
        clock[0] += 100
        line(1)
    for _ in range(60):
        clock[0] += 1
        line(10)
    line(0)  # too soon to be drawn
    assert drawn[2] == "3 of 1,000 steps, 100.0 s a step, 27:41:40 left"
    assert drawn[-1] == "603 of 1,000 steps, 10/s, 0:40 left"
    assert len(drawn) == 63


@pytest.mark.parametrize("environment", [{"CI": "true"}, {"TERM": "dumb"}, {"RANK": "1"}])
def test_ci_dumb_terminals_and_later_ranks_see_none(environment: dict[str, str]) -> None:
    assert is_shown(Terminal(), {})
    assert not is_shown(Terminal(), environment)
    assert not is_shown(io.StringIO(), {})


def test_a_command_with_json_shows_none() -> None:
    with click.Context(click.Command("prep"), info_name="prep") as context:
        context.params["as_json"] = False
        assert is_shown(Terminal(), {"RANK": "0"})
        context.params["as_json"] = True
        assert not is_shown(Terminal(), {"RANK": "0"})


def test_without_a_terminal_nothing_is_written_and_rich_not_imported() -> None:
    program = """
import sys
from pipelines.progress import progress_bar
with progress_bar("reading", 3, "file") as bar:
    bar(3)
assert "rich" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout + done.stderr == b""
    with progress_bar("reading", 3, "file") as bar:
        assert type(bar) is Bar


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((3, 1200, "file", 0), "3 of 1,200 files"),
        ((1, 1, "pack", 0), "1 of 1 pack"),
        ((1000, 10_000, "sample", 1500.4), "1,000 of 10,000 samples, 1,500/s, 0:06 left"),
        ((10, 100, "step", 0.1), "10 of 100 steps, 10.0 s a step, 15:00 left"),
        ((0, 20_000, "step", 2.5), "0 of 20,000 steps, 2.5/s, 2:13:20 left"),
        ((5 * 10**8, 3 * 10**12, "B", 2e9), "500 MB of 3 TB, 2 GB/s, 25:00 left"),
        ((999, 999_999, "B", 0), "999 B of 1 MB"),
    ],
)
def test_numbers_have_units_and_the_time_left(given: tuple[int, int, str, float], expected: str) -> None:
    assert numbers(*given) == expected
