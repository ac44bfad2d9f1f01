"""TOML as text: where each key stands, and how a key or a value is spelt.

tomli says what a document means but not where it says it, so a second, simpler pass over text that tomli accepted
finds the places.
"""

import datetime
import json
import re
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import tomli

KeyPath = tuple[str | int, ...]
"""A key below the top of a document; an element of an array by its index."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_LONGEST_TEXT, _LONGEST_VALUE = 200, 60  # characters shown in a message; a path should be whole


class Spot(NamedTuple):
    """Where something begins, counted from 1 in lines and characters."""

    line: int
    column: int


class Statement(NamedTuple):
    """A key, or an element of an array, where the text names it."""

    path: KeyPath
    offset: int
    """Characters before it."""
    whole: bool
    """False for a table that is only passed through, as `a` in `[a.b]` or `a.b = 1`."""


def key_places(text: str) -> dict[KeyPath, Spot]:
    """The place of every key, table and array element of a TOML document that tomli accepts.

    A table stands at its own header where it has one, otherwise where it is first passed through; an element of an
    array of tables at its `[[header]]`.
    """
    offsets: dict[KeyPath, int] = {}
    for statement in statements(text):
        if statement.whole:
            offsets[statement.path] = statement.offset
        else:
            offsets.setdefault(statement.path, statement.offset)
    return dict(zip(offsets, spots(text, offsets.values()), strict=True))


def spots(text: str, offsets: Iterable[int]) -> Iterator[Spot]:
    """The place of each character, given by how many stand before it."""
    lines = [0, *(match.end() for match in re.finditer("\n", text))]
    for offset in offsets:
        line = bisect_right(lines, offset)
        yield Spot(line, offset - lines[line - 1] + 1)


def statements(text: str) -> Iterator[Statement]:
    """Everything the text names, in its order, up to its end or to the first thing that is not TOML."""
    try:
        yield from _Scanner(text).document()
    except _EndError:
        return


def first_fault(text: str) -> int:
    """Where the first thing begins that is not TOML, such as text without a closing quote; the text's end if none."""
    scanner = _Scanner(text)
    try:
        for _ in scanner.document():
            pass
    except _EndError:
        pass
    return scanner.at


def value_at(document: Any, path: KeyPath) -> Any:
    """The value at a path.

    Raises:
        KeyError: if nothing stands there.
    """
    for part in path:
        if isinstance(document, str):
            raise KeyError(path)
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError) as error:
            raise KeyError(path) from error
    return document


def split_assignment(text: str) -> tuple[tuple[str, ...], str]:
    """The key parts and the value's text of `a.b = value`.

    Raises:
        ValueError: if no key and equals sign stand at the beginning.
    """
    scanner = _Scanner(text)
    try:
        parts = scanner.key()
        scanner.take(_EQUALS)
    except _EndError as error:
        raise ValueError("expected key = value") from error
    return tuple(part for part, _ in parts), text[scanner.at :]


def spell_key(path: Sequence[str | int]) -> str:
    """A key path as TOML has it, quoted where needed; an index is a part of its own: `prep.source.0.weight`."""
    return ".".join(part if isinstance(part, str) and _BARE_KEY.fullmatch(part) else _quote(part) for part in path)


def spell_value(value: object, *, longest: int | None = None) -> str:
    """A value as TOML has it, on one line, shortened where it is longer than `longest` characters."""
    text = _spell(value)
    if longest is None:
        longest = _LONGEST_TEXT if isinstance(value, str | Path) else _LONGEST_VALUE
    return text if len(text) <= longest else text[: longest - 1] + "…"


def on_one_line(text: str) -> str:
    """Text that a terminal shows as one line: what does not print is escaped as in TOML."""
    return "".join(letter if letter.isprintable() else f"\\U{ord(letter):08x}" for letter in text)


def _quote(value: str | int) -> str:
    return on_one_line(json.dumps(value, ensure_ascii=False))


def _spell(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return f"{value:_}" if abs(value) >= 10_000 else str(value)
        case str() | Path():
            return _quote(str(value))
        case Decimal():
            return str(value).lower().replace("infinity", "inf")
        case float():
            return repr(value).replace("e-0", "e-")
        case datetime.date() | datetime.time():
            return value.isoformat()
        case Mapping():
            inside = ", ".join(f"{spell_key([key])} = {_spell(item)}" for key, item in value.items())
            return f"{{ {inside} }}" if inside else "{}"
        case list() | tuple():
            return f"[{', '.join(map(_spell, value))}]"
    return str(value)


class _EndError(Exception):
    """The text ends, or stops being TOML."""


_BLANK = re.compile(r"[ \t]*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_KEY_PART = re.compile(r'"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|[A-Za-z0-9_-]+')
_DOT = re.compile(r"[ \t]*\.[ \t]*")
_EQUALS = re.compile(r"[ \t]*=[ \t]*")
_SCALAR = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'  # up to two quotes may stand before the closing three
    r"|'''.*?'{3,5}"
    r'|"(?!"")(?:\\.|[^"\\\n])*"'
    r"|'(?!'')[^'\n]*'"
    r"|\d{4}-\d\d-\d\d \d\d:[^\s,\]}#]*"  # a date and a time may have a space between them
    r"|[^\s,\[\]{}#\"']+",
    re.DOTALL,
)


class _Scanner:
    """One pass over a document. Every method starts at `at` and leaves it behind what it read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._elements: dict[KeyPath, int] = {}  # index of the newest element of each array of tables

    def document(self) -> Iterator[Statement]:
        table: KeyPath = ()
        while True:
            self.take(_BLANK_LINES)
            if self.at == len(self.text):
                return
            if self.peek("["):
                table = yield from self.header()
            else:
                yield from self.assignment(table)

    def header(self) -> Generator[Statement, None, KeyPath]:
        bracket = "[[" if self.peek("[[") else "["
        self.at += len(bracket)
        self.take(_BLANK)
        *parents, (name, offset) = self.key()
        table: KeyPath = ()
        for parent, start in parents:
            table = (*table, parent)
            yield Statement(table, start, whole=False)
            if table in self._elements:
                table = (*table, self._elements[table])
        table = (*table, name)
        if bracket == "[[":
            yield Statement(table, offset, whole=False)
            self._elements[table] = self._elements.get(table, -1) + 1
            table = (*table, self._elements[table])
        yield Statement(table, offset, whole=True)
        self.take(_BLANK)
        for _ in bracket:
            self.expect("]")
        return table

    def assignment(self, table: KeyPath) -> Iterator[Statement]:
        *parents, (name, offset) = self.key()
        for parent, start in parents:
            table = (*table, parent)
            yield Statement(table, start, whole=False)
        yield Statement((*table, name), offset, whole=True)
        self.take(_EQUALS)
        yield from self.value((*table, name))

    def key(self) -> list[tuple[str, int]]:
        parts = [self.key_part()]
        while _DOT.match(self.text, self.at):
            self.take(_DOT)
            parts.append(self.key_part())
        return parts

    def key_part(self) -> tuple[str, int]:
        start = self.at
        part = self.take(_KEY_PART)
        try:
            return next(iter(tomli.loads(f"{part} = 0"))), start
        except tomli.TOMLDecodeError as error:
            raise _EndError from error

    def value(self, path: KeyPath) -> Iterator[Statement]:
        if self.peek("["):
            yield from self.array(path)
        elif self.peek("{"):
            yield from self.inline_table(path)
        else:
            self.take(_SCALAR)

    def array(self, path: KeyPath) -> Iterator[Statement]:
        self.expect("[")
        index = 0
        while not self.closed("]"):
            yield Statement((*path, index), self.at, whole=True)
            yield from self.value((*path, index))
            index += 1

    def inline_table(self, path: KeyPath) -> Iterator[Statement]:
        self.expect("{")
        while not self.closed("}"):
            yield from self.assignment(path)

    def closed(self, bracket: str) -> bool:
        """Go on to the next item, or behind the bracket that ends them."""
        self.take(_BLANK_LINES)
        if self.peek(","):
            self.expect(",")
            self.take(_BLANK_LINES)
        if not self.peek(bracket):
            return False
        self.expect(bracket)
        return True

    def peek(self, literal: str) -> bool:
        return self.text.startswith(literal, self.at)

    def expect(self, literal: str) -> None:
        if not self.peek(literal):
            raise _EndError
        self.at += len(literal)

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise _EndError
        self.at = match.end()
        return match.group()
