"""Which characters of a record a piece of rendered text is, found by changing them and rendering again.

Maps and templates are programs, some of them the user's, so nothing about them is assumed. A character of the record is
what a character of the rendering was made of if, with that one character swapped for one that stands nowhere else, the
rendering is the same but for that character there. Which to try is guessed from the text around it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from prep.conversation import Json

_TRIES = 64
_WINDOWS = (64, 24, 8, 3, 1, 0)
"""Characters on either side by which a place is looked for, the most first."""
_STRANGER = 0x100000
"""Of the second private plane."""

Keys = tuple[str | int, ...]
"""Keys and indices that lead to a value of a record."""


class Field(NamedTuple):
    """A run of characters of one string of a record."""

    keys: Keys
    begin: int
    end: int

    @property
    def name(self) -> str:
        """The string as a path: `messages[1].content`."""
        path = ""
        for key in self.keys:
            path += f"[{key}]" if isinstance(key, int) else f".{key}" if path else key
        return path


def field_of(
    rendered: str,
    begin: int,
    end: int,
    record: Mapping[str, Json],
    render: Callable[[Mapping[str, Json]], str | None],
) -> Field | None:
    """The characters of the record that rendered[begin:end] is, or as much of it as is the record's.

    Args:
        rendered: what `render` makes of the record.
        record: objects, arrays and strings.
        render: None for a record that it refuses.
    Returns:
        None where none of it is the record's as it stands there: the template wrote it, or the map changed it.
    """
    strings = dict(_strings(record, ()))
    stranger = next(chr(code) for code in range(_STRANGER, _STRANGER + 0xFFFD) if chr(code) not in rendered)
    tries = _TRIES
    for place in _anchors(rendered, begin, end):
        for keys, at in _candidates(rendered, place, strings):
            if not tries:
                return None
            tries -= 1
            text = strings[keys]
            changed = render(_with(record, keys, text[:at] + stranger + text[at + 1 :]))
            if changed is not None and _is_only(changed, rendered, place, stranger):
                return _widened(keys, text, at, rendered, place, begin, end)
    return None


def _is_only(changed: str, rendered: str, place: int, stranger: str) -> bool:
    """Whether two renderings differ in nothing but the stranger, which stands in one for what stood there."""
    return (
        len(changed) == len(rendered)
        and changed[place] == stranger
        and changed.replace(stranger, rendered[place]) == rendered
    )


def _anchors(rendered: str, begin: int, end: int) -> Iterator[int]:
    """Characters to find, of words first: whitespace is what maps and templates strip."""
    inside = range(begin, end)
    yield from [place for place in inside if not rendered[place].isspace()][:3]
    yield from [place for place in inside if rendered[place].isspace()][:3]


def _candidates(rendered: str, place: int, strings: Mapping[Keys, str]) -> Iterator[tuple[Keys, int]]:
    """Characters of strings that may be the rendered one, those in the most similar surroundings first."""
    seen = set()
    for width in _WINDOWS:
        first = max(0, place - width)
        for window, offset in (
            (rendered[first : place + width + 1], place - first),
            (rendered[place : place + width + 1], 0),
            (rendered[first : place + 1], place - first),
        ):
            for keys, text in strings.items():
                at = text.find(window)
                while at >= 0:
                    if (keys, at + offset) not in seen:
                        seen.add((keys, at + offset))
                        yield keys, at + offset
                    at = text.find(window, at + 1)


def _widened(keys: Keys, text: str, at: int, rendered: str, place: int, begin: int, end: int) -> Field:
    """As much of rendered[begin:end] as stands around the character in the string too."""
    first = last = 0
    while place - first > begin and at - first > 0 and rendered[place - first - 1] == text[at - first - 1]:
        first += 1
    while place + last + 1 < end and at + last + 1 < len(text) and rendered[place + last + 1] == text[at + last + 1]:
        last += 1
    return Field(keys, at - first, at + last + 1)


def _strings(value: Json, keys: Keys) -> Iterator[tuple[Keys, str]]:
    if isinstance(value, str):
        yield keys, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _strings(part, (*keys, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _strings(part, (*keys, index))


def _with(value: Any, keys: Keys, text: str) -> Any:
    """The record with another text in one place."""
    if not keys:
        return text
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[keys[0]] = _with(value[keys[0]], keys[1:], text)
    return copy
