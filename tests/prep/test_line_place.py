"""Characters of a record are found in the bytes of its line, however the line spells them."""

import gzip
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from prep.line_place import in_json, in_tokens, line_of
from prep.provenance import Field

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
VALUE = st.recursive(TEXT | st.integers() | st.none(), lambda one: st.lists(one, max_size=3), max_leaves=5)


@given(st.lists(st.tuples(TEXT, VALUE), max_size=3), TEXT, st.booleans(), st.sampled_from([None, 1]), st.data())
def test_what_stands_there_says_the_same_characters(
    others: list[tuple[str, Any]], text: str, escaped: bool, indent: int | None, data: Any
) -> None:
    record = dict(others) | {"messages": [{"role": 1}, {"x": None, "content": text}]}
    line = json.dumps(record, ensure_ascii=escaped, indent=indent).encode()
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    place = in_json(line, Field(("messages", 1, "content"), begin, end))
    assert place is not None
    assert json.loads(b'"' + line[slice(*place)] + b'"') == text[begin:end]


def test_what_is_not_there_has_no_place() -> None:
    line = b'{"a": "x", "b": 1}'
    for keys, end in ((("c",), 1), (("b",), 1), (("a",), 2), (("a", 0), 1)):
        assert in_json(line, Field(keys, 0, end)) is None
    assert in_json(b"\xff", Field(("a",), 0, 1)) is None


def test_lines_are_counted_from_where_the_chunk_begins(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfone\ntwo\r\n\nfour\nfive"
    (tmp_path / "a.txt").write_bytes(content)
    assert line_of(tmp_path / "a.txt", 0, 0) == (3, b"one\n")
    assert line_of(tmp_path / "a.txt", 0, 3) == (13, b"four\n")
    begins = content.index(b"two")
    assert line_of(tmp_path / "a.txt", begins - 1, 0) == (begins, b"two\r\n")  # the line before began earlier
    assert line_of(tmp_path / "a.txt", begins, 0) == (begins, b"two\r\n")
    assert line_of(tmp_path / "a.txt", begins, 3) == (content.index(b"five"), b"five")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    assert line_of(tmp_path / "a.txt.gz", 0, 3) == (content.index(b"four"), b"four\n")


def test_a_token_of_a_tokenized_line_is_one_of_its_numbers() -> None:
    line = b'{"tokens": [12, -3, 4]}\n'
    assert [line[slice(*(in_tokens(line, at) or ()))] for at in range(3)] == [b"12", b"-3", b"4"]
    assert in_tokens(line, 3) is None
