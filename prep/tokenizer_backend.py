"""What serves a tokenizer: the library whose ids are the right ones, behind one interface."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from prep.encoded import Encoded

Prefix = Literal["none", "first", "always"]
"""Where a tokenizer puts a space of its own: nowhere, before a text, or also after each special token within it."""


@dataclass(frozen=True)
class AddedToken:
    """A token outside the model's own vocabulary, or singled out within it."""

    text: str
    id: int
    special: bool
    lstrip: bool = False
    """Swallows the whitespace before it."""
    rstrip: bool = False
    """Swallows the whitespace behind it."""


class TokenizerBackend(Protocol):
    """Text to ids and back, and what else a library knows of its tokenizer."""

    library: str
    added: Sequence[AddedToken]
    vocab_size: int
    prefix: Prefix
    adds_bos: bool
    unknown_id: int | None
    """What text without a token of its own becomes."""

    def encode(self, texts: Sequence[str], *, prefixed: bool) -> Encoded: ...
    def table(self) -> Mapping[str, Any] | None:
        """What a tokenizer.json of it holds, or None where there is none."""
        ...

    def offsets(self, text: str, *, prefixed: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and begin and end of the characters that each stands for; all of the text where that is not known."""
        ...

    def decode(self, ids: list[int]) -> str: ...
    def id_of(self, text: str) -> int | None: ...
