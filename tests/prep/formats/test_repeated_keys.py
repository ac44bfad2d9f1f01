"""Repeated keys are found where the json module, told to keep every pair, sees them."""

import json
from itertools import starmap
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.formats import repeated_keys
from prep.formats.repeated_keys import ALIKE, DEEP, DEEPEST, FINE, Repeated, judge, repeated_key

TEXT = st.text(st.sampled_from('ab:"\\{}[],é\n ' + "x" * 9), max_size=40)
KEY = st.one_of(st.sampled_from(["a", "b", "é", 'a":', "a\\", ""]), TEXT)


def member(before: str, key: str, ascii_only: bool, between: str, value: str) -> str:
    return f"{before}{json.dumps(key, ensure_ascii=ascii_only)}{between}:{value}"


def written(value: Any) -> st.SearchStrategy[str]:
    """A value's JSON, with objects as lists of pairs so that keys can be repeated; space anywhere."""
    space = st.sampled_from(["", " ", "\n\t"])
    if isinstance(value, tuple):
        members = [st.tuples(space, st.just(key), st.booleans(), space, written(inner)) for key, inner in value]
        return st.tuples(*members).map(lambda found: "{" + ",".join(starmap(member, found)) + "}")
    if isinstance(value, list):
        return st.tuples(*map(written, value)).map(lambda found: "[" + ",".join(found) + "]")
    return st.tuples(space, space).map(lambda around: around[0] + json.dumps(value) + around[1])


VALUES = st.recursive(
    st.one_of(TEXT, st.integers(-9, 9), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.lists(st.tuples(KEY, inner), max_size=5).map(tuple)),
    max_leaves=15,
)
DOCUMENTS = VALUES.flatmap(written)


def repeats(text: str) -> bool:
    """Whether any object of the text has a key twice, as the json module tells it."""
    found = False

    def pairs(members: list[tuple[str, Any]]) -> None:
        nonlocal found
        found |= len({key for key, _ in members}) < len(members)

    json.loads(text, object_pairs_hook=pairs)
    return found


@given(documents=st.lists(DOCUMENTS, max_size=5))
def test_no_repeated_key_is_cleared(documents: list[str]) -> None:
    texts = [text.encode() for text in documents]
    for text, verdict in zip(documents, judge(texts), strict=True):
        assert (verdict == ALIKE and repeated_key(text.encode()) is not None) == repeats(text)


@given(text=DOCUMENTS)
def test_the_place_is_that_of_the_second_key(text: str) -> None:
    found = repeated_key(text.encode())
    if found is not None:
        for byte in (found.first, found.byte):
            key, _ = json.JSONDecoder().raw_decode(text.encode()[byte:].decode())
            assert key == found.key
        assert found.first < found.byte


@given(text=st.binary(max_size=200), pieces=st.lists(st.sampled_from([b"{", b"[", b"}", b"]", b'"', b"\\", b'"a":'])))
def test_what_is_no_json_is_judged_without_harm(text: bytes, pieces: list[bytes]) -> None:
    garbled = b"".join(piece + text[index : index + 3] for index, piece in enumerate(pieces)) + text
    first, second = judge([garbled, b'{"a":1}'])
    assert first in (FINE, ALIKE, DEEP)
    assert second == FINE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1,"a":2}', Repeated("a", 7, 1)),
        ('{"é":1, "\\u00e9":2}', Repeated("é", 9, 1)),
        ('[{"a":{"b":1,"c":[{"b":1}],"b":2}}]', Repeated("b", 27, 7)),
        ('{"a":1,"b":{"a":1},"c":"a\\":"}', None),
        ('{"a\\\\":1,"a":1}', None),
        ('{"a\\n":1,"a\\u000a":1}', Repeated("a\n", 9, 1)),
    ],
)
def test_keys_are_compared_as_characters_within_one_object(text: str, expected: Repeated | None) -> None:
    assert repeated_key(text.encode()) == expected
    if expected:
        assert judge([text.encode()]) == [ALIKE]


def test_an_object_of_many_keys_is_looked_at_again() -> None:
    many = {f"key {number}": number for number in range(repeated_keys._MANY + 1)}
    assert judge([orjson.dumps(many)]) == [ALIKE]
    assert repeated_key(orjson.dumps(many)) is None
    del many["key 0"]
    assert judge([orjson.dumps(many)]) == [FINE]


def test_nesting_is_allowed_to_a_fixed_depth() -> None:
    assert judge([b"[" * DEEPEST + b"]" * DEEPEST]) == [FINE]
    assert judge([b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), b"{}"]) == [DEEP, FINE]
    assert judge([b'{"a":1,"a":' + b"[" * 3000]) == [DEEP]
