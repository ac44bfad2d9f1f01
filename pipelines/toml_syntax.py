"""What is wrong with text that is not TOML, and what to write instead."""

import re
from collections.abc import Mapping

import tomli

from pipelines.toml_text import Spot, Statement, first_fault, spell_key, spell_value, spots, statements

_WORD = re.compile(r"[^\s\]}#]*")
_INSTEAD: Mapping[str, str] = {"True": "write true", "False": "write false", "None": "leave the key out"}


def explain(text: str, error: tomli.TOMLDecodeError) -> tuple[Spot, str]:
    """Where and what, in one line: `the value is not TOML; text needs quotes: "bf16"`."""
    offset, finding = _explain(text, error.pos, error.msg)
    (place,) = spots(text, [offset])
    return place, finding


def _explain(text: str, at: int, message: str) -> tuple[int, str]:
    following = text[at : at + 1]
    match message:
        case "Invalid value":
            if re.compile(r"[\w.-]+[ \t]*=").match(text, at):
                return at, "expected a value, found a key; close the array or table before it"
            return at, _bad_value(_word(text, at).rstrip(","))
        case "Expected newline or end of document after a statement" if following == "\r":
            return at, "a carriage return without a line feed; save the file with LF at the ends of lines"
        case "Expected newline or end of document after a statement":
            return _bad_ending(text, at)
        case "Expected '=' after a key in a key/value pair" if following == ":":
            return at, "expected = after the key, found a colon; write key = value"
        case "Expected '=' after a key in a key/value pair":
            return at, "expected = and a value after the key"
        case "Invalid statement":
            return at, "expected a key, a [table] or a # comment; other letters than A-Z in a key need quotes"
        case "Unterminated string" | 'Expected "\'"' | r"Found invalid character '\n'" | r"Illegal character '\n'":
            return first_fault(text), "the text that begins here has no closing quote"
        case "Unclosed array" if not following:
            return _opening(text, at), "the array that begins here has no closing bracket"
        case "Unclosed array":
            return at, "expected a comma or ] here"
        case r"Unescaped '\' in a string" | "Invalid hex value":
            return at, r"a backslash begins an escape; write \\, or put the text in single quotes"
    if message.startswith(("Cannot overwrite", "Cannot declare", "Cannot mutate", "Duplicate")):
        return _repeated(text, at)
    return at, message[:1].lower() + message[1:]


def _bad_ending(text: str, at: int) -> tuple[int, str]:
    """Something stands where a line should end: a second statement, or the rest of a word that began as a value."""
    line = text[text.rfind("\n", 0, at) + 1 : at]
    begun = line.rpartition("=")[2].lstrip()
    if line.lstrip().startswith("["):
        return at, "expected the line to end after the table's name"
    if not begun or begun[-1] in " \t\"']}":
        return at, "expected the line to end after the value; one key a line"
    return at - len(begun), _bad_value(begun + _word(text, at))


def _word(text: str, at: int) -> str:
    found = _WORD.match(text, at)
    return found.group() if found else ""


def _bad_value(word: str) -> str:
    if not word:
        return "the value is missing; write one after the equals sign"
    if instead := _INSTEAD.get(word):
        return f"{word} is not a TOML value; {instead}"
    for pattern, remedy in _NUMBERS:
        if re.fullmatch(pattern, word):
            return f"{word} is not a TOML number; {remedy}"
    return f"{spell_value(word)[1:-1]} is not a TOML value; text needs quotes: {spell_value(word)}"


_NUMBERS = (
    (r"[+-]?0\d[\d_]*", "write it without the leading 0"),
    (r"[+-]?\.\d.*", "write a digit before the point"),
    (r"[+-]?\d[\d_]*\.", "write a digit after the point"),
    (r"[+-]?\d[\d_.,]*", "digits may be grouped like 32_768"),
    (r"[+-]?\d[\d_.]*[a-zA-Z]+", "write all its digits, without a unit"),
)


def _opening(text: str, at: int) -> int:
    """Where the value of the newest key begins."""
    last = [one for one in statements(text[:at]) if isinstance(one.path[-1], str)][-1]
    equals = re.compile(r"[^=]*=[ \t]*").match(text, last.offset)
    return equals.end() if equals else at


def _repeated(text: str, at: int) -> tuple[int, str]:
    """A key or table that stood before, or that cannot be added to one that did."""
    *before, last = statements(text[:at])
    path = _names(last)
    same = [one for one in before if one.whole and one.offset != last.offset and _names(one) == path]
    above = [one for one in before if one.whole and _names(one) == path[: len(_names(one))]]
    if not (first := next(iter(same or above[::-1]), None)):
        return last.offset, f"{spell_key(path)} stood before; keep one"
    (place,) = spots(text, [first.offset])
    if same:
        return last.offset, f"{spell_key(path)} stood before, at {place.line}:{place.column}; keep one"
    complete = f"{spell_key(_names(first))}, which is complete at {place.line}:{place.column}"
    return last.offset, f"{spell_key(path)} cannot be added to {complete}; write it there"


def _names(statement: Statement) -> list[str]:
    return [part for part in statement.path if isinstance(part, str)]
