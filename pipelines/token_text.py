"""Token ids as the text they stand for, token by token, whatever kind of tokenizer made them."""

import codecs
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

_SPACE = "\u2581"
"""What sentencepiece writes for a space."""


class TokenText:
    """The tokens of a tokenizer directory, as bytes of UTF-8 where they are pieces of text, else as their names.

    Byte-level BPE and sentencepiece cut characters into several tokens, and decoding such a token alone gives a
    replacement character. Here bytes are put together first.
    """

    def __init__(self, folder: Path) -> None:
        """Read its tokenizer.json, and the tokens that tokenizer_config.json adds.

        Raises:
            FileNotFoundError: if there is no tokenizer.json.
            ValueError: if it is not one.
        """
        import tokenizers

        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        try:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing more particular
            raise ValueError(f"{folder / 'tokenizer.json'}: not a tokenizer ({error})") from error
        self._tokenizer: Any = tokenizer
        self._added = {
            **_added_by_config(folder / "tokenizer_config.json"),
            **{id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items()},
        }
        self._steps = _steps(json.loads(text).get("decoder"))

    def of(self, ids: Iterable[int]) -> list[str]:
        """[tokens] the text that each token completes: a character of several tokens comes with the last of them.

        Special and other added tokens are their own text. Bytes that are no text, such as half a character where a
        sample was cut, are `\\xe4`; an id without a token is `[151999]`.
        """
        texts: list[str] = []
        pending = codecs.getincrementaldecoder("utf-8")("backslashreplace")
        for id_ in ids:
            name = self._name(id_)
            if name is None:
                texts.append(pending.decode(self._bytes(id_)))
                continue
            if left := pending.decode(b"", final=True):
                texts[-1] += left
            texts.append(name)
        if left := pending.decode(b"", final=True):
            texts[-1] += left
        return texts

    def _name(self, id_: int) -> str | None:
        """What a token is shown as that is no piece of text."""
        if id_ in self._added:
            return self._added[id_]
        return f"[{id_}]" if self._tokenizer.id_to_token(id_) is None else None

    def _bytes(self, id_: int) -> bytes:
        piece: str = self._tokenizer.id_to_token(id_)
        if "ByteLevel" in self._steps:
            table = _byte_of()
            return bytes(table[one] for one in piece) if all(one in table for one in piece) else piece.encode()
        if "ByteFallback" in self._steps and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes.fromhex(piece[3:5])
        if self._steps & {"ByteFallback", "Metaspace", "Replace"}:
            return piece.replace(_SPACE, " ").encode()
        # Of words: those that continue one are marked, and the rest have a space before them.
        return piece[2:].encode() if piece.startswith("##") else f" {piece}".encode()


def _steps(decoder: Mapping[str, Any] | None) -> set[str]:
    """The kinds of steps that a tokenizer.json decodes by."""
    if decoder is None:
        return set()
    return {decoder["type"]}.union(*map(_steps, decoder.get("decoders", ())))


def _added_by_config(path: Path) -> dict[int, str]:
    if not path.is_file():
        return {}
    listed = json.loads(path.read_bytes()).get("added_tokens_decoder") or {}
    return {int(id_): entry["content"] for id_, entry in listed.items()}


@cache
def _byte_of() -> Mapping[str, int]:
    """The byte for each character of a byte-level vocabulary: printable ones are themselves, the rest follow U+0100."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(0x100) if byte not in themselves]
    return {**{chr(byte): byte for byte in themselves}, **{chr(0x100 + at): byte for at, byte in enumerate(rest)}}
