"""A sentencepiece `tokenizer.model`: a protobuf message, read and changed here without a protobuf library.

The sentencepiece package keeps the pieces' kinds and the normalizer's settings to itself, and the generated protobuf
module clashes with the one Transformers brings. The format is a few lines of wire encoding.
"""

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal


class Kind(IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    """Stands for no text, such as </s>: encoding text never gives it."""
    USER_DEFINED = 4
    """Matched before anything else."""
    UNUSED = 5
    BYTE = 6
    """One byte of a character that has no piece."""


@dataclass(frozen=True)
class Piece:
    """One entry of the vocabulary; its id is its position."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceModel:
    """What decides how the model tokenizes."""

    pieces: tuple[Piece, ...]
    algorithm: Literal["unigram", "bpe", "word", "char"]
    byte_fallback: bool
    """A character without a piece becomes its bytes, not the unknown piece."""
    dummy_prefix: bool
    """A space is put before every text."""
    remove_extra_whitespaces: bool
    """Runs of spaces become one, and spaces at both ends are dropped."""
    escape_whitespaces: bool
    """Spaces become U+2581."""
    whitespace_as_suffix: bool
    """The dummy space goes behind the text."""
    charsmap: bytes
    """Compiled normalization rules; empty for none."""

    @classmethod
    def parse(cls, data: bytes) -> "SentencePieceModel":
        """Read the bytes of a `tokenizer.model`.

        Raises:
            ValueError: if they are not a sentencepiece model.
        """
        pieces: list[Piece] = []
        trainer: dict[int, int | bytes] = {}
        normalizer: dict[int, int | bytes] = {}
        try:
            for number, value, _ in _fields(data):
                if number == _PIECE:
                    pieces.append(_piece(_message(value)))
                elif number == _TRAINER:
                    trainer.update((key, setting) for key, setting, _ in _fields(_message(value)))
                elif number == _NORMALIZER:
                    normalizer.update((key, setting) for key, setting, _ in _fields(_message(value)))
        except (IndexError, UnicodeDecodeError, struct.error) as error:
            raise ValueError("not a sentencepiece model") from error
        if not pieces:
            raise ValueError("not a sentencepiece model: it has no pieces")
        algorithm = _ALGORITHMS.get(trainer.get(3, 1))
        if algorithm is None:
            raise ValueError(f"a sentencepiece model of the unknown type {trainer[3]!r}")
        return cls(
            pieces=tuple(pieces),
            algorithm=algorithm,
            byte_fallback=bool(trainer.get(35, False)),
            dummy_prefix=bool(normalizer.get(3, True)),
            remove_extra_whitespaces=bool(normalizer.get(4, True)),
            escape_whitespaces=bool(normalizer.get(5, True)),
            whitespace_as_suffix=bool(trainer.get(24, False)),
            charsmap=_message(normalizer.get(2, b"")),
        )


def changed(data: bytes, *, control: Collection[int] = (), dummy_prefix: bool | None = None) -> bytes:
    """The model's bytes with some pieces made CONTROL, or with the dummy prefix switched.

    Later fields of a protobuf message override earlier ones, so changes are appended to the message they belong to.
    """
    parts: list[bytes] = []
    index = 0
    for number, value, raw in _fields(data):
        if number == _PIECE:
            if index in control:
                piece = _message(value) + bytes((3 << 3, Kind.CONTROL))
                raw = bytes((_PIECE << 3 | 2,)) + _varint(len(piece)) + piece
            index += 1
        parts.append(raw)
    if dummy_prefix is not None:
        parts.append(bytes((_NORMALIZER << 3 | 2, 2, 3 << 3, dummy_prefix)))
    return b"".join(parts)


_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3
_ALGORITHMS: Mapping[object, Literal["unigram", "bpe", "word", "char"]] = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


def _piece(data: bytes) -> Piece:
    text, score, kind = "", 0.0, Kind.NORMAL
    for number, value, raw in _fields(data):
        if number == 1:
            text = _message(value).decode("utf-8")
        elif number == 2:
            (score,) = struct.unpack("<f", raw[1:])
        elif number == 3:
            kind = Kind(value)  # type: ignore[arg-type]  # anything else than a number is a ValueError
    return Piece(text, score, kind)


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("not a sentencepiece model")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes, bytes]]:
    """Each field of a message: its number, its value, and its bytes as they stand."""
    position = 0
    while position < len(data):
        begin = position
        key, position = _read_varint(data, position)
        value: int | bytes
        match key & 7:
            case 0:
                value, position = _read_varint(data, position)
            case 1:
                value, position = data[position : position + 8], position + 8
            case 5:
                value, position = data[position : position + 4], position + 4
            case 2:
                size, position = _read_varint(data, position)
                value, position = data[position : position + size], position + size
            case _:
                raise ValueError("not a sentencepiece model")
        if position > len(data):
            raise ValueError("not a sentencepiece model: it ends too early")
        yield key >> 3, value, data[begin:position]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)
