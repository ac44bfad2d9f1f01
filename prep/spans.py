"""Spans: rendered text in the runs it is tokenized in."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from prep.tokenizer import Tokenizer


class Span(NamedTuple):
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
    mute: tuple[tuple[int, int], ...] = ()
    """Begin and end of text within a trained run that carries no loss; the run is tokenized as if it did."""


def cut(text: str, tokenizer: Tokenizer, *, opens: bool, loss: bool = False) -> list[Span]:
    """The special tokens that text spells, and the plain runs between them.

    Args:
        text: what a template wrote.
        tokenizer: knows the special tokens.
        opens: the text is one of its own, not the continuation of another run.
        loss: for all of it.
    """
    spans = []
    always = tokenizer.prefix == "always"
    for part, id_ in tokenizer.split(text):
        spans.append(Span(part, loss, id_ is not None, opens and id_ is None))
        opens = id_ is not None and always
    return spans


def extend(spans: list[Span], more: Iterable[Span]) -> None:
    """Append spans; plain text that does not open joins the run before it where both carry loss or neither."""
    for span in more:
        last = spans[-1] if spans else None
        if last and not (last.special or span.special or span.opens) and last.loss == span.loss:
            spans[-1] = Span(last.text + span.text, span.loss, opens=last.opens)
        elif span.text:
            spans.append(span)


def audible(span: Span, tokens: Sequence[int], tokenizer: Tokenizer) -> list[bool]:
    """For each token of a trained run, whether it carries loss: not if it may hold any of the muted text.

    Tokens that the text before a muted part has by itself as well lie before it, and likewise behind it. Where the
    tokenizer joins the two sides otherwise, the few tokens around the border count as muted.

    Args:
        span: the run.
        tokens: its token ids, as the tokenizer gives them.
        tokenizer: that gave them.
    """
    loss = [True] * len(tokens)
    for begin, end in span.mute:
        before = tokenizer.encode(span.text[:begin], opens=span.opens)
        behind = tokenizer.encode(span.text[end:], opens=False)
        first = _alike(tokens, before, tokenizer.unknown_id)
        last = len(tokens) - _alike(tokens[::-1], behind[::-1], tokenizer.unknown_id)
        loss[first:last] = [False] * max(0, last - first)
    return loss


def _alike(tokens: Sequence[int], others: Sequence[int], unknown: int | None) -> int:
    """How many tokens both begin with; an unknown one tells nothing about its text."""
    for index, (one, other) in enumerate(zip(tokens, others, strict=False)):
        if one != other or one == unknown:
            return index
    return min(len(tokens), len(others))
