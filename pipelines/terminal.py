"""Text on a terminal: what of others' may be there, how wide it is, whether it takes colours; and the log's lines."""

import logging
import os
import sys
import unicodedata
from collections.abc import Mapping
from typing import TextIO

from pipelines.secret_text import without_secrets

_ESCAPED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Categories of characters that a terminal obeys, or shows as nothing."""
_SHAPING = "\u200c\u200d"
"""Joiners, which are of the category but only shape the letters and emoji around them."""


def printable(text: str, *, keep: str = "") -> str:
    """Text in which no character commands the terminal or hides: those are escaped as in Python, `keep` excepted.

    So what a record holds, or a model answers, cannot move the cursor, recolour the screen or turn text around.
    """
    if text.isprintable() or all(character in keep or not _is_escaped(character) for character in text):
        return text
    return "".join(
        character if character in keep or not _is_escaped(character) else _escape(character) for character in text
    )


def plural(number: int, one: str, many: str = "") -> str:
    """`1 pack`, `2 packs`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def columns(character: str) -> int:
    """Columns that one printable character takes: 0 where it joins the one before it, 2 in Chinese text."""
    if unicodedata.combining(character) or character in _SHAPING or character == "\ufe0f":
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def wants_colour(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether to write colours: to a terminal that has them, outside of CI, where nobody set NO_COLOR."""
    if any(environment.get(name) for name in ("NO_COLOR", "CI")) or environment.get("TERM") == "dumb":
        return False
    return stream.isatty()


class LogLines(logging.Handler):
    """Writes to standard error as it is at that time, where a progress bar makes room for the line."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(printable(without_secrets(self.format(record)), keep="\n\t") + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _is_escaped(character: str) -> bool:
    return unicodedata.category(character) in _ESCAPED and character not in _SHAPING


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
