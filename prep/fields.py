"""Reading the fields of a parsed JSON record; what is wrong with one is said by its path."""

import json
from collections.abc import Mapping

from prep.conversation import Json, RecordError
from prep.formats.repeated_keys import ALIKE, DEEP, DEEPEST, judge, repeated_key


def text(table: Mapping[str, Json], key: str, path: str = "", *, default: str | None = None) -> str:
    value = table.get(key)
    if isinstance(value, str):
        return value
    where = f"{path}.{key}" if path else key
    if value is None and default is not None:
        return default
    if key not in table:
        raise RecordError(where, f"expected a string, {_absent(table, path)}")
    raise RecordError(where, f"expected a string, found {kind(value)}")


def array(table: Mapping[str, Json], key: str) -> list[Json]:
    value = table.get(key)
    if isinstance(value, list):
        return value
    if key not in table:
        raise RecordError(key, f"expected an array, {_absent(table)}")
    raise RecordError(key, f"expected an array, found {kind(value)}")


def objects(values: Json, path: str) -> list[Mapping[str, Json]]:
    if not isinstance(values, list):
        raise RecordError(path, f"expected an array, found {kind(values)}")
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise RecordError(f"{path}[{index}]", f"expected an object, found {kind(value)}")
    return values


def json_text(value: str, path: str) -> Json:
    """What a string of a record says that is JSON itself: held to what the record is held to.

    Raises:
        RecordError: if it is no JSON, holds NaN or a key twice in one object, or is nested too deep.
    """
    encoded = value.encode("utf-8", "replace")
    [verdict] = judge([encoded])
    if verdict == DEEP:
        raise RecordError(path, f"JSON nested deeper than {DEEPEST} objects and arrays; flatten it")
    try:
        found = json.loads(value, parse_constant=_refused)
    except ValueError as error:
        raise RecordError(path, f"not valid JSON: {error}") from error
    if verdict == ALIKE and (repeated := repeated_key(encoded)):
        raise RecordError(path, f"the key {json.dumps(repeated.key)} stands twice in one object of its JSON; keep one")
    return found


def _refused(constant: str) -> Json:
    raise ValueError(f"{constant} is no number")


def kept_exactly(value: Json, path: str) -> None:
    """Refuse a whole number beyond 64 bits, which the reader of a line has rounded by now.

    Raises:
        RecordError: naming it; `value` itself is what chat templates print.
    """
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, float) and abs(one) >= 2.0**63:
            raise RecordError(
                path, f"holds a number beyond 64 bits, {one:.6g}, which would be rounded; write it as text"
            )
        left += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()


def _absent(table: Mapping[str, Json], path: str = "") -> str:
    """That a key is not there, and which map reads records with the keys that are."""
    found = f"found no such key among {some_keys(table)}"
    fitting = [] if path else [name for name, keys in _READ_BY.items() if all(key in table for key in keys)]
    if not fitting:
        return found
    keys = " and ".join(_READ_BY[fitting[0]])
    return f'{found}; set map = "{fitting[0]}" in [[prep.source]], which reads {keys}'


_READ_BY = {
    "openai": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "pretrain": ("text",),
}
"""Keys that tell the map of most data."""


def some_keys(table: Mapping[str, Json]) -> str:
    """The first few keys of a table, in words."""
    names = [key if len(key) <= 40 else f"{key[:40]}..." for key in list(table)[:6]]
    return ", ".join([*names, "..."] if len(table) > 6 else names) or "none"


def kind(value: Json) -> str:
    """A JSON value's type in words."""
    names = {type(None): "null", bool: "true or false", str: "a string", list: "an array", dict: "an object"}
    if type(value) in names:
        return names[type(value)]
    return "a number" if isinstance(value, int | float) else str(value)  # a column that JSON has not says itself
