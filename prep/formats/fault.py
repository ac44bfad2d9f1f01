"""A fault in one input record."""


class RecordFault(Exception):  # noqa: N818 (the word of the documentation)
    """What is wrong with a record; the caller knows the file and where the chunk begins.

    Args:
        record: number within the chunk, from 0.
        message: finding and remedy.
        byte: position within the record, from 1, where it is known.
    """

    def __init__(self, record: int, message: str, byte: int | None = None) -> None:
        super().__init__(record, message, byte)
        self.record = record
        self.message = message
        self.byte = byte
