"""A JSON array is read element by element as the json module reads it whole."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from prep.formats import json_array
from prep.formats.fault import RecordFault
from tests.prep.formats import strict

VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-99, 99), st.text(st.characters(codec="utf-8"), max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), inner, max_size=3),
    ),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), VALUES, max_size=3), max_size=8)


def read(path: Path, max_bytes: int = 9999) -> list[Any]:
    return [
        record
        for begin, end in json_array.chunks(path)
        for _, record in strict(json_array.records(path, begin, end, max_bytes=max_bytes))
    ]


@given(
    objects=OBJECTS,
    indent=st.sampled_from([None, 2]),
    ascii_only=st.booleans(),
    sizes=st.tuples(st.sampled_from([1, 7, 1 << 20]), st.sampled_from([1, 30, 1 << 20])),
)
def test_every_element_is_read_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, objects: list[Any], indent: Any, ascii_only: bool, sizes: tuple[int, int]
) -> None:
    path = tmp_path_factory.mktemp("json") / "data.json"
    path.write_text(json.dumps(objects, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_array, "_READ_BYTES", sizes[0])
        patch.setattr(json_array, "CHUNK_BYTES", sizes[1])
        assert read(path) == objects


@pytest.mark.parametrize("ending", ["json.gz", "json.zst"])
def test_a_compressed_array_is_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data.{ending}"
    text = json.dumps([{"a": 1}, {"a": 2}]).encode()
    path.write_bytes(gzip.compress(text) if ending.endswith("gz") else zstandard.compress(text))
    assert read(path) == [{"a": 1}, {"a": 2}]


def test_json_lines_in_a_json_file_are_read_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert read(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("text", "record", "finding"),
    [
        ('[{"a": 1}, {"a": tru}]', 1, "not valid JSON"),
        ('[{"a": 1},]', 1, "not valid JSON"),
        ('[,{"a": 1}]', 0, "not valid JSON"),
        ('[{"a": 1}', 0, "not closed"),
        ('[{"a": 1}, {"a"', 1, "not closed"),
        ('[{"a": 1}] [{"a": 2}]', 1, "text follows"),
        ('[{"a": 1}, [2]]', 1, "expected a JSON object, found an array"),
        ('[{"a": 1}, {"a": "' + "x" * 200 + '"}]', 1, "max_record_bytes"),
    ],
)
def test_a_faulty_element_is_named(tmp_path: Path, text: str, record: int, finding: str) -> None:
    path = tmp_path / "data.json"
    path.write_text(text)
    with pytest.raises(RecordFault, match=finding) as fault:
        read(path, max_bytes=100)
    assert fault.value.record == record


def test_a_repeated_key_of_an_element_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text('[{"a": 1},\n {"b": 1, "b": 2}]')
    with pytest.raises(RecordFault, match='the key "b" stands twice') as fault:
        read(path)
    assert (fault.value.record, fault.value.byte) == (1, 10)


def test_a_faulty_element_does_not_stop_those_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_array, "_READ_BYTES", 64)
    path = tmp_path / "data.json"
    path.write_text('\ufeff[{"a": 1}, {"a": "' + "x" * 2000 + '"}, {"a": x}, , {"a": 2}' + "]")
    [(begin, end)] = json_array.chunks(path)
    outcomes = [outcome for _, outcome in json_array.records(path, begin, end, max_bytes=100)]
    assert (outcomes[0], outcomes[4]) == ({"a": 1}, {"a": 2})
    for outcome, finding in zip(
        outcomes[1:4], ["max_record_bytes", "not valid JSON", "without an element"], strict=True
    ):
        assert isinstance(outcome, RecordFault)
        assert finding in outcome.message
