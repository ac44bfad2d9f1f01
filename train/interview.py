"""The user's prompts, answered between two steps by the model as it stands.

Prompts and what is answered so far run end to end as the documents of one pack, through the attention that trains, so
that one forward pass gives the next token of every answer. Nothing is cached between tokens: the weights are read, and
under ZeRO 3 gathered, as often as with a cache, and the few tokens before are cheap beside that.

Ranks cannot lose each other: after each forward pass they share the tokens that were chosen, and whether one of them
failed, in one exchange. All of them know all answers then, and stop, or go on, for the same reason.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from pipelines.progress import progress_bar
from train.attention import Segments
from train.batches import MicroBatch, empty
from train.engine import Engine
from train.metrics import ChatRow
from train.questions import Question, Questions
from train.sequence_parallel import pad_for_sequence_parallel, split_for_sequence_parallel


class Interview:
    """The questions of [train.eval], as the ranks answer them together.

    Every group of ranks that trains on packs of its own answers its share of the questions.

    Args:
        capacity: tokens of a pack, which no group of ranks gets more of at a time.
    """

    def __init__(self, questions: Questions, engine: Engine, capacity: int) -> None:
        self._questions, self._engine = questions, engine
        lengths = [len(question.ids) + question.room for question in questions.all]
        self._turns = list(turns(lengths, engine.parallel.data.size, capacity))

    def rows(self, step: int) -> list[ChatRow]:
        """The answers after `step` steps, in the order of the prompts, the same on every rank. All ranks call this.

        Weights stay as they are, and so do the numbers of later steps: nothing here draws a random number, and a step
        puts the model into training mode itself.

        Raises:
            Exception: what ended a forward pass in which ranks wait for each other: such a run cannot go on.
        """
        began = time.perf_counter()
        answers = [_Answer(question, self._questions.stop) for question in self._questions.all]
        error = None
        with progress_bar("answering", len(answers), "prompt") as progress:
            for turn in self._turns:
                while error is None and (open_ := [index for index in turn if answers[index].finish is None]):
                    chosen, error = self._next_tokens(open_, answers, step)
                    for index, token in zip(open_, chosen, strict=error is None):
                        answers[index].add(token, time.perf_counter() - began)
                        progress(int(answers[index].finish is not None))
        return [self._row(step, answer, error, time.perf_counter() - began) for answer in answers]

    def _next_tokens(
        self, open_: Sequence[int], answers: "Sequence[_Answer]", step: int
    ) -> tuple[Sequence[int], str | None]:
        """The most likely token for each open answer, or none and what kept a rank from finding them, on every rank.

        Args:
            open_: numbers of the answers to go on with.
        """
        engine = self._engine
        chosen = torch.zeros(len(open_) + 1, dtype=torch.int64, device=engine.device)  # the last: ranks that failed
        finding = None
        try:
            self._choose(open_, answers, chosen)
        except Exception as error:
            if engine.zero_stage == 3 or engine.parallel.size > 1:
                # The other ranks are inside this forward pass and wait for this one, which they have to be told by its
                # end: the launcher stops them.
                error.add_note(f"While answering train.eval.prompts after step {step}. The same command continues.")
                raise
            finding = " ".join(f"{type(error).__name__}: {error}".split())
            chosen.zero_()[-1] = 1
        if engine.ranks > 1:
            dist.all_reduce(chosen)
        *tokens, failed = chosen.tolist()
        return ([], _first_finding(finding, engine.ranks)) if failed else (tokens, None)

    def _choose(self, open_: Sequence[int], answers: "Sequence[_Answer]", chosen: Tensor) -> None:
        """Fill in what this rank has to say; elsewhere there are zeros."""
        data = self._engine.parallel.data
        mine = [place for place, index in enumerate(open_) if index % data.size == data.rank]
        if not mine:  # it takes part all the same: ZeRO 3 gathers weights from all ranks
            self._engine.logits(empty(self._engine.device))
            return
        batch, here = self._batch([answers[open_[place]].ids for place in mine])
        logits = self._engine.logits(batch)
        if here:
            places = torch.tensor([mine[at] for at in here], device=self._engine.device)
            chosen[places] = logits.float().argmax(-1)

    def _batch(self, documents: Sequence[Sequence[int]]) -> tuple[MicroBatch, list[int]]:
        """Documents as the model takes them, on this rank its part; and whose last token is in that part."""
        parallel, device = self._engine.parallel, self._engine.device
        ids = torch.tensor([id_ for document in documents for id_ in document], device=device)
        positions = torch.cat([torch.arange(len(document), device=device) for document in documents])
        ids, positions = (
            split_for_sequence_parallel(pad_for_sequence_parallel(whole, parallel), parallel)
            for whole in (ids, positions)
        )
        segments = Segments.of([len(document) for document in documents], device)
        first, end = parallel.rank * ids.numel(), -1
        lasts: dict[int, int] = {}
        for at, document in enumerate(documents):
            end += len(document)
            if first <= end < first + ids.numel():
                lasts[at] = end - first
        predictors = torch.tensor([*lasts.values()], dtype=torch.int64, device=device)
        unknown = predictors.new_zeros(0)
        return MicroBatch(ids[None], positions[None], predictors, unknown, segments, seed=0), [*lasts]

    def _row(self, step: int, answer: "_Answer", error: str | None, seconds: float) -> ChatRow:
        finished = answer.finish is not None
        spoken = answer.tokens[:-1] if answer.finish == "stop" else answer.tokens
        return ChatRow(
            step=step,
            prompt=answer.question.text,
            system=self._questions.system,
            answer=self._questions.spoken(spoken) if finished else None,
            tokens=len(answer.tokens),
            finish=answer.finish or "error",
            seconds=answer.seconds if finished else seconds,
            error=None if finished else error,
        )


class _Answer:
    """An answer as it grows."""

    def __init__(self, question: Question, stop: frozenset[int]) -> None:
        self.question = question
        self.tokens: list[int] = []
        self.finish: Literal["stop", "length"] | None = None
        self.seconds = 0.0
        self._stop = stop

    @property
    def ids(self) -> list[int]:
        return self.question.ids + self.tokens

    def add(self, token: int, seconds: float) -> None:
        self.tokens.append(token)
        if token in self._stop:
            self.finish = "stop"
        elif len(self.tokens) == self.question.room:
            self.finish = "length"
        self.seconds = seconds


def turns(lengths: Sequence[int], groups: int, capacity: int) -> Iterator[list[int]]:
    """Questions to answer at the same time: as many as no group of ranks gets more tokens of than a pack has.

    Args:
        lengths: [questions] tokens, the answer included; question i is group i % groups's.
    """
    turn: list[int] = []
    taken = [0] * groups
    for index, length in enumerate(lengths):
        group = index % groups
        if taken[group] and taken[group] + length > capacity:
            yield turn
            turn, taken = [], [0] * groups
        turn.append(index)
        taken[group] += length
    if turn:
        yield turn


def _first_finding(finding: str | None, ranks: int) -> str:
    """What the first rank that failed says, on every rank."""
    findings = [finding]
    if ranks > 1:
        findings = [None] * ranks
        dist.all_gather_object(findings, finding)
    return next(f"rank {rank}: {one}" if ranks > 1 else one for rank, one in enumerate(findings) if one)
