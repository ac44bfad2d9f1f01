"""Characters of rendered text are found in the record by changing it, whatever the map and the template do."""

from collections.abc import Mapping
from typing import Any

import pytest

from prep.provenance import Field, field_of

Record = Mapping[str, Any]


def place(rendered: str, text: str, *, after: str = "") -> tuple[int, int]:
    begin = rendered.index(text, rendered.index(after) if after else 0)
    return begin, begin + len(text)


def plain(record: Record) -> str:
    return "".join(f"<{turn['role']}>{turn['content'].strip()}</>" for turn in record["turns"])


RECORD = {"turns": [{"role": "user", "content": " the cat and the cat "}, {"role": "bot", "content": "the cat\n"}]}


def test_the_right_one_of_equal_texts_is_found() -> None:
    rendered = plain(RECORD)
    first, last = place(rendered, "cat"), place(rendered, "cat", after="and")
    other = place(rendered, "cat", after="bot")
    keys = ("turns", 0, "content")
    assert field_of(rendered, *first, RECORD, plain) == Field(keys, 5, 8)
    assert field_of(rendered, *last, RECORD, plain) == Field(keys, 17, 20)
    assert field_of(rendered, *other, RECORD, plain) == Field(("turns", 1, "content"), 4, 7)
    assert Field(keys, 5, 8).name == "turns[0].content"


def test_what_the_template_wrote_is_of_no_field() -> None:
    record = {"turns": [{"role": "x", "content": "</></></>"}]}
    rendered = plain(record)
    assert field_of(rendered, len(rendered) - 3, len(rendered), record, plain) is None
    assert field_of(rendered, 3, 6, record, plain) == Field(("turns", 0, "content"), 0, 3)


def test_a_token_across_the_border_of_a_field_is_cut_to_what_is_the_fields() -> None:
    rendered = plain(RECORD)
    begin, end = place(rendered, ">the")
    assert field_of(rendered, begin, end, RECORD, plain) == Field(("turns", 0, "content"), 1, 4)


def test_whitespace_that_a_map_would_strip_is_found_by_what_is_around_it() -> None:
    rendered = plain(RECORD)
    assert field_of(rendered, *place(rendered, " and"), RECORD, plain) == Field(("turns", 0, "content"), 8, 12)
    begin = rendered.index(" and")
    assert field_of(rendered, begin, begin + 1, RECORD, plain) == Field(("turns", 0, "content"), 8, 9)


def test_a_text_that_is_written_twice_is_found_in_both_places() -> None:
    def twice(record: Record) -> str:
        return f"{record['a']}|{record['a']}"

    record = {"a": "one", "b": "one"}
    assert field_of("one|one", 0, 3, record, twice) == Field(("a",), 0, 3)
    assert field_of("one|one", 4, 7, record, twice) == Field(("a",), 0, 3)


@pytest.mark.parametrize(("begin", "end"), [(0, 3), (1, 2)])
def test_text_that_is_changed_on_the_way_is_of_no_field(begin: int, end: int) -> None:
    def capital(record: Record) -> str:
        return str(record["a"]).upper()

    def picky(record: Record) -> str | None:
        return "dog" if record["a"] == "dog" else None

    assert field_of("DOG", begin, end, {"a": "dog"}, capital) is None
    assert field_of("dog", begin, end, {"a": "dog"}, picky) is None


def test_a_long_repetitive_text_takes_a_bounded_number_of_tries() -> None:
    tries = 0

    def counted(record: Record) -> str:
        nonlocal tries
        tries += 1
        return "x" + str(record["a"])[:10] + "y" * 500  # which the map did not take from the record

    record = {"a": "y" * 5000}
    rendered = counted(record)
    assert field_of(rendered, 400, 401, record, counted) is None
    assert tries <= 66
