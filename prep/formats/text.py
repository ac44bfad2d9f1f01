"""Plain text: every line that is not blank is a document, as {"text": line}."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prep.formats.fault import RecordFault
from prep.formats.lines import chunks, lines

__all__ = ["chunks", "records"]


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Every line that begins in begin..end: its number within the chunk, and its record or None if it is blank.

    Raises:
        RecordFault: on a line that is not UTF-8 or longer than max_bytes.
    """
    for number, line in enumerate(lines(path, begin, end, max_bytes=max_bytes)):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RecordFault(number, "not valid UTF-8; convert the file", error.start + 1) from error
        yield number, {"text": text} if text.strip() else None
