"""Where the answers of a conversation are in its tokens, and what is wrong with a loss mask over them.

An answer begins where a prompt ends and goes to its closing tokens. Those it has to train, and nothing else: this is
worked out from prompts and stop tokens alone, so that it can be held against masks however they were made.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    """One answer, as a range of tokens."""

    begin: int
    """Its first token: what the model generates first."""
    stop: int
    """Its first closing token; where there is none, the token behind it."""
    end: int
    """The token behind its last closing token."""
    trained: bool = True

    @property
    def is_closed(self) -> bool:
        return self.stop < self.end


class Fault(NamedTuple):
    """One fault of a mask."""

    kind: str
    answer: int
    """Which answer it is about, from 0; -1 for the sample as a whole."""
    begin: int
    end: int
    """The tokens it is about."""


def answer_from(tokens: Sequence[int], begin: int, until: int, stops: Collection[int], *, trained: bool) -> Answer:
    """The answer that begins at a token and ends before another: at the first token that stops generation.

    Several of them can follow each other, such as an end of turn and an end of text; none of them twice.
    """
    stop = next((at for at in range(begin, until) if tokens[at] in stops), until)
    end, seen = stop, set[int]()
    while end < until and tokens[end] in stops and tokens[end] not in seen:
        seen.add(tokens[end])
        end += 1
    return Answer(begin, stop, end, trained)


def answers_behind(tokens: Sequence[int], header: Sequence[int], stops: Collection[int]) -> list[Answer]:
    """The answers in tokens that somebody else rendered: each begins behind a header.

    Args:
        header: tokens that stand before every answer, and nowhere else.
    """
    width, first = len(header), header[-1]
    wanted = list(header)
    begins = [
        at + 1 for at, token in enumerate(tokens) if token == first and list(tokens[at + 1 - width : at + 1]) == wanted
    ]
    bounds = [*(begin - width for begin in begins), len(tokens)][1:]
    return [answer_from(tokens, begin, until, stops, trained=True) for begin, until in zip(begins, bounds, strict=True)]


def mask_faults(loss: Sequence[bool] | Bools, answers: Sequence[Answer], *, end_of_turn: bool) -> Iterator[Fault]:
    """What a mask trains that it should not, and the other way round.

    Args:
        loss: [tokens] whether each is a target. The first never is, whatever it says.
        answers: in their order.
        end_of_turn: whether answers' closing tokens are trained.
    """
    given = np.array(loss, np.bool_)
    given[:1] = False
    expected = np.zeros_like(given)
    for answer in answers:
        if answer.trained:
            expected[answer.begin : answer.end if end_of_turn else answer.stop] = True
    expected[:1] = False
    if not given.any():
        if expected.any():
            yield Fault("mask-empty", -1, 0, given.size)
        return
    if given[1:].all() and not expected[1:].all():
        yield Fault("mask-full", -1, 0, given.size)
        return
    for shift, kind in ((1, "mask-late"), (-1, "mask-early")):
        if _is_shifted(given, expected, shift):
            yield Fault(kind, -1, int(np.flatnonzero(given)[0]), given.size)
            return
    yield from _untrained(expected & ~given, answers)
    yield from _trained(given & ~expected, answers)


def _is_shifted(given: Bools, expected: Bools, shift: int) -> bool:
    moved = np.zeros_like(expected)
    if shift > 0:
        moved[shift:] = expected[:-shift]
    else:
        moved[:shift] = expected[-shift:]
    moved[:1] = False
    return not np.array_equal(given, expected) and np.array_equal(given, moved)


def _untrained(missing: Bools, answers: Sequence[Answer]) -> Iterator[Fault]:
    for number, answer in enumerate(answers):
        begin, stop, end = answer.begin, answer.stop, answer.end
        if not missing[begin:end].any():
            continue
        body, closing = missing[begin:stop], missing[stop:end]
        if body.size and body.all():
            yield Fault("answer-untrained", number, begin, end)
            continue
        if body.any():
            first = begin + int(np.flatnonzero(body)[0])
            last = begin + int(np.flatnonzero(body)[-1]) + 1
            yield Fault("answer-start-untrained" if first == begin else "answer-part-untrained", number, first, last)
        if closing.any():
            yield Fault("end-untrained", number, stop, end)


def _trained(extra: Bools, answers: Sequence[Answer]) -> Iterator[Fault]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], extra, [False]]).astype(np.int8)))
    borders = {1, *(answer.end for answer in answers)}  # where what is no answer begins
    for begin, end in edges.reshape(-1, 2).tolist():
        number = next((number for number, one in enumerate(answers) if one.begin <= begin < one.end), None)
        before = next((number for number, one in enumerate(answers) if one.begin == end), None)
        if number is not None:
            kind = "end-trained" if begin >= answers[number].stop else "answer-trained"
        elif before is not None and begin not in borders:
            kind, number = "header-trained", before
        elif before is None and begin in borders - {1}:
            kind = "after-end-trained"
            number = next(number for number, one in enumerate(answers) if one.end == begin)
        else:
            kind, number = "prompt-trained", -1
        yield Fault(kind, number, begin, end)
