"""What others wrote, on a terminal."""

import io

import pytest

from pipelines.terminal import columns, printable, wants_colour


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_text_cannot_command_the_terminal() -> None:
    text = "a\x1b[31mred\x07\r\x9b2J\u202egnirts\u2028\x00\x7f"
    assert printable(text) == r"a\x1b[31mred\x07\r\x9b2J\u202egnirts\u2028\x00\x7f"


def test_what_people_write_stays_as_it_is() -> None:
    text = "上海 café 🙂 👩\u200d👩\u200d👧 \\n"
    assert printable(text) == text
    assert printable("one\ntwo\t", keep="\n") == "one\ntwo\\t"


def test_chinese_takes_two_columns_and_an_accent_none() -> None:
    assert [columns(character) for character in "a上Ａ\u0301"] == [1, 2, 2, 0]


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"CI": "true"}, {"TERM": "dumb"}])
def test_colours_are_for_terminals_that_want_them(environment: dict[str, str]) -> None:
    assert wants_colour(Terminal(), {"TERM": "xterm"})
    assert not wants_colour(Terminal(), environment)
    assert not wants_colour(io.StringIO(), {"TERM": "xterm"})
