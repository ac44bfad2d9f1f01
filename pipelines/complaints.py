"""What the schema finds wrong with a document, in the words of the TOML: a key path and one sentence each."""

import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from pydantic import ValidationError

from pipelines.keys import Key, expectation, find, is_known, item_kind
from pipelines.toml_text import KeyPath, spell_key, spell_value, value_at
from pipelines.vocabulary import UNKNOWN, advice, is_planned_value

Complaint = tuple[KeyPath, str]


def complaints(error: ValidationError, document: Mapping[str, Any]) -> Iterator[Complaint]:
    """Every problem of a document that the schema refused.

    One key may come several times, from each type that it could have had; the first says most.
    """
    for one in sorted(error.errors(), key=lambda one: one["type"] != "value_error"):
        location = one["loc"]
        match one["type"]:
            case "extra_forbidden":
                yield from _unknown(location, value_at(document, location))
            case "missing" if isinstance(location[-1], str):
                yield location, _missing(location)
            case "fault":
                yield (*location, *one["ctx"]["path"]), one["ctx"]["finding"]
            case "value_error":
                path = _present(document, location)
                yield path, _own_words(path, str(one["ctx"]["error"]))
            case _:
                path = _present(document, location)
                yield path, mismatch(path, value_at(document, path))


def unknown_keys(error: ValidationError) -> list[KeyPath]:
    """The keys that the schema does not have."""
    return [one["loc"] for one in error.errors() if one["type"] == "extra_forbidden"]


def mismatch(path: KeyPath, value: object) -> str:
    """What a key takes, what it was given where that is another kind of thing, and what to write instead."""
    kind = _kind(path)
    expected = expectation(kind)
    if is_planned_value(path, value):
        return f"not supported yet; expected {expected}"
    found = "" if isinstance(value, str) and '"' in expected else f", found {_found(value)}"
    if isinstance(value, int | Decimal) and not isinstance(value, bool) and "number" in expected:
        found = ""  # the number itself is shown
    return f"expected {expected}{found}{_remedy(path, expected, value)}"


def _own_words(path: KeyPath, finding: str) -> str:
    """A validator's finding, and the names that the key takes besides what the validator is for."""
    key = find(path)
    if key is None or not key.values or not finding.startswith("expected "):
        return finding
    return f"expected {', '.join(map(spell_value, key.values))} or {finding.removeprefix('expected ')}"


def _unknown(path: KeyPath, value: object) -> Iterator[Complaint]:
    finding = advice(path)
    if isinstance(value, dict):
        finding = finding.replace("unknown key", "unknown table")
    yield path, finding
    if finding.startswith("not supported yet"):
        return
    for key in _keys_inside(path, value):
        if not is_known(key) and (finding := advice(key)) != UNKNOWN:
            yield key, finding


def _keys_inside(path: KeyPath, value: object) -> Iterator[KeyPath]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _keys_inside((*path, key), item) if isinstance(item, dict) else [(*path, key)]


def _missing(path: KeyPath) -> str:
    key = find(path)
    assert key is not None
    purpose = re.sub(r"^\[+[\w.]+\]+: ", "", key.documentation)
    return f"missing; add {' and '.join(_needed(key))}: {purpose}"


def _needed(key: Key) -> Iterator[str]:
    """A key without a default, or a table with all its keys without one."""
    if key.table is None:
        yield key.example
        return
    inside = [found for name in key.table.model_fields if (found := find((*key.path, name))) and found.required]
    own = [found.example for found in inside if found.table is None]
    yield f"{key.header} with {', '.join(own)}" if own else key.header
    for found in inside:
        if found.table is not None:
            yield from _needed(found)


def _present(document: Mapping[str, Any], location: tuple[str | int, ...]) -> KeyPath:
    """A pydantic location without what it says of the type tried, which no key of the document has."""
    while True:
        try:
            value_at(document, location)
        except KeyError:
            location = location[:-1]
        else:
            return location


def _kind(path: KeyPath) -> Any:
    if isinstance(path[-1], int):
        return item_kind(_kind(path[:-1]))
    key = find(path)
    assert key is not None
    return key.kind


def _found(value: object) -> str:
    match value:
        case str():
            return "text"
        case bool():
            return "true or false"
        case int():
            return "a whole number"
        case Decimal():
            return "a number"
        case list():
            return f"an array of {len(value)}" if value else "an empty array"
        case dict():
            return "a table"
        case datetime.date() | datetime.time():
            return "a date or time"
    raise AssertionError(value)


def _remedy(path: KeyPath, expected: str, value: object) -> str:
    key = find(path)
    if key and key.table and key.is_array and isinstance(value, dict):
        return f"; write {key.header} above it"
    if key and key.table and not key.is_array and isinstance(value, str):
        name = next((name for name in ("name_or_path", "name", "type") if name in key.table.model_fields), None)
        return f"; write {key.header} and below it {name} = {spell_value(value)}" if name else f"; write {key.header}"
    if expected.startswith("an array,") and isinstance(value, str):
        return f"; write [{spell_value(value)}]"
    if expected.startswith("true or false"):
        instead = {"true": "true", "yes": "true", "on": "true", "1": "true"} | dict.fromkeys(_NO, "false")
        found = instead.get(str(value).lower())
        return f"; write {found}" if found else ""
    if isinstance(value, str) and ("number" in expected or re.match(r"-?\d", expected)):
        return _as_number(value)
    if "whole number" in expected and isinstance(value, Decimal) and value.is_finite() and value == int(value):
        return f"; write {spell_value(int(value))}"
    if "quotes" in expected and isinstance(value, int | Decimal | datetime.date | datetime.time):
        return f'; write "{spell_value(value)}"'
    return ""


_NO = ("false", "no", "off", "0")


def _as_number(text: str) -> str:
    """`32k` and `1e-4` in quotes were meant as numbers."""
    if thousands := re.fullmatch(r"(\d{1,9})\s*[kK]", text):
        return f"; write {int(thousands[1]) * 1024:_} or {int(thousands[1]) * 1000:_}"
    if millions := re.fullmatch(r"(\d{1,9})\s*[mM]", text):
        return f"; write {int(millions[1]) * 1_000_000:_}"
    plain = re.sub(r"[\s,]", "", text)
    is_number = re.fullmatch(r"[+-]?(0|[1-9](_?\d){0,20})(\.\d{1,20})?([eE][+-]?\d{1,3})?", plain, re.ASCII)
    return f"; write {plain} without quotes" if is_number else ""


def line(place: str, path: KeyPath, finding: str, document: Mapping[str, Any]) -> str:
    """One problem as the user reads it: `file:line:column: key = value: finding; remedy`."""
    text = spell_key(path)
    try:
        value = value_at(document, path)
    except KeyError:
        return f"{place}: {text}: {finding}"
    holds_tables = isinstance(value, dict) or (
        isinstance(value, Sequence) and any(isinstance(one, dict) for one in value)
    )
    if holds_tables or finding.startswith(("unknown", "not supported yet; remove")):
        return f"{place}: {text}: {finding}"
    return f"{place}: {text} = {spell_value(value)}: {finding}"
