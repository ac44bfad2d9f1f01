"""Errors of the user: their lines stay readable whatever a file made a library say."""

import logging
import pickle
from contextlib import redirect_stderr
from io import StringIO

import pytest

from pipelines.errors import CheckError, ConfigError
from pipelines.terminal import LogLines


def test_a_line_keeps_its_beginning_and_its_end_however_long_it_is() -> None:
    lines = str(ConfigError("a.toml: short; mend it", f"x.pt: damaged ({'y' * 100_000}); copy it again")).splitlines()
    assert lines[0] == "a.toml: short; mend it"
    assert lines[1].startswith("x.pt: damaged (yyy")
    assert lines[1].endswith("yyy); copy it again")
    assert len(lines[1]) < 2_100


@pytest.mark.parametrize("text", ["", "one\n", "a\n\nb", "a\tb"])
def test_what_is_short_is_said_as_it_is_also_by_another_process(text: str) -> None:
    assert str(pickle.loads(pickle.dumps(CheckError(text)))) == text


@pytest.mark.parametrize("text", ["a\x1b[2J", "a\rb", "a\u202eb", "a\u2028b", "\x9b1m", "a\u200bb"])
def test_no_character_of_a_file_commands_the_terminal(text: str) -> None:
    for shown in (str(CheckError(text)), logged(text)):
        assert shown.isprintable()
        assert shown == text.encode("unicode_escape").decode()


def logged(text: str) -> str:
    """What a log line of a text shows."""
    with redirect_stderr(StringIO()) as file:
        LogLines().emit(logging.makeLogRecord({"msg": text}))
    return file.getvalue().removesuffix("\n")
