"""Plain text: every line that is not blank is a document, as {"text": line}, read best with the map `pretrain`.

UTF-8; a line ends with LF or CR LF, which are no part of it, and a byte order mark at the beginning of the file is not
either. A document of several lines does not fit this format: write it as JSON lines.
"""

from collections.abc import Iterator
from pathlib import Path

from prep.formats.encoding import not_utf8
from prep.formats.fault import Outcome, RecordFault
from prep.formats.lines import chunks, lines

__all__ = ["chunks", "records"]


def records(path: Path, begin: int, end: int, *, max_bytes: int) -> Iterator[tuple[int, Outcome]]:
    """Every line that begins in begin..end: its number within the chunk, and its record or None if it is blank.

    A line that is not UTF-8 or longer than max_bytes is a fault.
    """
    for number, line in enumerate(lines(path, begin, end, max_bytes=max_bytes)):
        yield number, line if isinstance(line, RecordFault) else _record(line, number)


def _record(line: bytes, number: int) -> Outcome:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return RecordFault(number, not_utf8(line), error.start + 1)
    return {"text": text} if text.strip() else None
