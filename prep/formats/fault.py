"""What a reader gives for one record number: the record, nothing, or what is wrong with it."""

from typing import Any

from pipelines.toml_text import on_one_line


class RecordFault(Exception):  # noqa: N818 (the word of the documentation)
    """What is wrong with a record; the caller knows the file and where the chunk begins.

    Args:
        record: number within the chunk, from 0.
        message: finding and remedy.
        byte: position within the record, from 1, where it is known.
        fatal: nothing that prep.on_bad_record may leave out, such as what depends on the machine's speed.
    """

    def __init__(self, record: int, message: str, byte: int | None = None, fatal: bool = False) -> None:
        super().__init__(record, message, byte, fatal)
        self.record = record
        self.message = on_one_line(message)  # which may quote the record's keys
        self.byte = byte
        self.fatal = fatal


Outcome = dict[str, Any] | None | RecordFault
"""A record; None for a blank line; a fault after which the next record can still be read."""
