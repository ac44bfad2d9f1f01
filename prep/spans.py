"""Spans: rendered text in the runs it is tokenized in."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prep.tokenizer import Tokenizer


@dataclass(frozen=True)
class Span:
    """One special token, or one run of plain text that is tokenized by itself.

    A run ends at a special token, and where an answer begins or ends: at that place the model starts to generate, so
    no token may reach across it, whether the answer is trained or not.
    """

    text: str
    loss: bool = False
    special: bool = False
    """The text is one special token of the tokenizer."""
    opens: bool = False
    """The tokenizer's own leading space, if it has one, belongs before the text."""


def cut(text: str, tokenizer: Tokenizer, *, opens: bool, loss: bool = False) -> Iterator[Span]:
    """The special tokens that text spells, and the plain runs between them.

    Args:
        text: what a template wrote.
        tokenizer: knows the special tokens.
        opens: the text is one of its own, not the continuation of another run.
        loss: for all of it.
    """
    for part, id_ in tokenizer.split(text):
        yield Span(part, loss, special=id_ is not None, opens=opens and id_ is None)
        opens = id_ is not None and tokenizer.prefix == "always"


def joined(spans: Iterable[Span]) -> list[Span]:
    """Runs of plain text that belong together made one: the second does not open, and both carry loss or neither."""
    runs: list[Span] = []
    for span in spans:
        last = runs[-1] if runs else None
        if last and not (last.special or span.special or span.opens) and last.loss == span.loss:
            runs[-1] = Span(last.text + span.text, span.loss, opens=last.opens)
        elif span.text:
            runs.append(span)
    return runs
