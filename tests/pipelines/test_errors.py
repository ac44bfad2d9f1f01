"""Errors of the user: their lines stay readable whatever a file made a library say."""

import pickle

import pytest

from pipelines.errors import CheckError, ConfigError


def test_a_line_keeps_its_beginning_and_its_end_however_long_it_is() -> None:
    lines = str(ConfigError("a.toml: short; mend it", f"x.pt: damaged ({'y' * 100_000}); copy it again")).splitlines()
    assert lines[0] == "a.toml: short; mend it"
    assert lines[1].startswith("x.pt: damaged (yyy")
    assert lines[1].endswith("yyy); copy it again")
    assert len(lines[1]) < 2_100


@pytest.mark.parametrize("text", ["", "one\n", "a\n\nb", "a\rb\u2028c"])
def test_what_is_short_is_said_as_it_is_also_by_another_process(text: str) -> None:
    assert str(pickle.loads(pickle.dumps(CheckError(text)))) == text
