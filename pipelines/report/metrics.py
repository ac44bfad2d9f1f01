"""metrics.jsonl of a run, of any length, read once: what its charts and its figures need."""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from pipelines.artifacts import Json
from pipelines.progress import progress_bar
from pipelines.report.thinned import Thinned

EDGE = 20
"""Steps at the beginning and at the end whose mean loss is given, as that of one step is chance."""
ANSWERS = 12
"""To one prompt that are kept beside the last, from the first on, evenly spread."""
PROMPTS = 20
"""Whose answers are kept."""

_CHUNK = 4096  # rows between additions to the series
_BLOCK = 1 << 20  # bytes of rows that are read at a time


@dataclass
class Edges:
    """The weighted mean of a series over its first and its last steps: EDGE of them, or a fifth of a short run."""

    _count: int = 0
    _first: list[tuple[float, float]] = field(default_factory=list)
    _last: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=EDGE))

    def add(self, value: float, weight: float = 1.0) -> None:
        self._count += 1
        if len(self._first) < EDGE:
            self._first.append((value, weight))
        self._last.append((value, weight))

    @property
    def first(self) -> float | None:
        return _mean(self._first[: self.steps])

    @property
    def last(self) -> float | None:
        return _mean([*self._last][-self.steps :])

    @property
    def steps(self) -> int:
        """Steps that each mean is over."""
        return min(EDGE, max(1, self._count // 5))


@dataclass(frozen=True)
class Answer:
    """What the model said to a prompt at a step."""

    step: int
    text: str | None
    tokens: int
    finish: str
    error: str | None


class Answers:
    """The answers to one prompt: the last, and at most ANSWERS of those before, evenly spread from the first on."""

    def __init__(self) -> None:
        self.count = 0
        """Answers so far."""
        self._kept: list[Answer] = []
        self._every = 1
        self._last: Answer | None = None

    def add(self, answer: Answer) -> None:
        if self.count % self._every == 0:
            if len(self._kept) == ANSWERS:
                self._kept, self._every = self._kept[::2], 2 * self._every
            if self.count % self._every == 0:
                self._kept.append(answer)
        self.count += 1
        self._last = answer

    def __iter__(self) -> Iterator[Answer]:
        yield from self._kept
        if self._last is not None and (not self._kept or self._kept[-1] is not self._last):
            yield self._last


class HeldOut:
    """The losses of the evaluations."""

    def __init__(self) -> None:
        self.series = Thinned()
        self.by_source: dict[str, Thinned] = {}
        self.first: Json = None
        """Row of the first evaluation with a loss, null without one; likewise the lowest, and the last."""
        self.best: Json = None
        self.last: Json = None

    def add(self, row: Json) -> None:
        step, loss = row["step"], row.get("loss")
        if loss is None:
            return
        self.series.extend([step], [loss])
        for name, value in (row.get("loss_by_source") or {}).items():
            self.by_source.setdefault(name, Thinned()).extend([step], [value])
        self.first, self.last = self.first or row, row
        if self.best is None or loss < self.best["loss"]:
            self.best = row


class Metrics:
    """What metrics.jsonl says. Its memory does not grow with the number of rows, except by steps that were skipped."""

    def __init__(self) -> None:
        self.steps = 0
        """Rows of steps."""
        self.last_step = 0
        self.epoch = 0.0
        self.tokens = 0
        """That steps took in, padding and all ranks included."""
        self.loss_tokens = 0
        self.seconds = 0.0
        """That steps took, evaluations and saving left out."""
        self.memory_gb = 0.0
        self.skipped: list[int] = []
        """Steps that changed nothing because the gradient was not finite."""
        self.nonfinite: list[int] = []
        """Steps whose loss is no number."""
        self.unreadable = 0
        """Lines that are no row, an unfinished last one left out."""
        self.loss = Edges()
        self.by_source: dict[str, Edges] = {}
        self.held_out = HeldOut()
        self.answers: dict[tuple[str, str], Answers] = {}
        """By prompt and system text."""
        self.prompts_left_out: set[str] = set()
        self.series: Mapping[str, Thinned] = {name: Thinned() for name in _SERIES}
        self.loss_series: dict[str, Thinned] = {}
        """By source."""
        self._mfu = self._mfu_seconds = 0.0
        self._clear()

    @classmethod
    def read(cls, path: Path) -> "Metrics":
        """The rows so far, of a run that may be going on; none where there is no file."""
        found = cls()
        if path.is_file():
            with path.open("rb") as file, progress_bar("reading metrics", path.stat().st_size, "B") as progress:
                while lines := file.readlines(_BLOCK):
                    for line in lines:
                        found._take(line)
                    progress(sum(map(len, lines)))
            found._flush()
        return found

    @property
    def tokens_per_s(self) -> float | None:
        """Over all steps."""
        return self.tokens / self.seconds if self.seconds else None

    @property
    def mfu(self) -> float | None:
        """Over the time of the steps that know it."""
        return self._mfu / self._mfu_seconds if self._mfu_seconds else None

    def _take(self, line: bytes) -> None:
        row = _row(line)
        if row is None:
            self.unreadable += line.endswith(b"\n")  # without, it is being written
            return
        if row["kind"] == "train":
            self._step(row)
        elif row["kind"] == "eval":
            self.held_out.add(row)
        elif row["kind"] == "chat":
            self._answer(row)

    def _step(self, row: Json) -> None:
        step, loss, seconds = row["step"], row.get("loss"), row.get("step_time_s") or 0.0
        self.steps, self.last_step, self.epoch = self.steps + 1, step, row.get("epoch") or 0.0
        self.tokens += row.get("tokens") or 0
        self.loss_tokens += row.get("loss_tokens") or 0
        self.seconds += seconds
        self.memory_gb = max(self.memory_gb, row.get("memory_gb") or 0.0)
        if row.get("mfu") is not None:
            self._mfu, self._mfu_seconds = self._mfu + row["mfu"] * seconds, self._mfu_seconds + seconds
        if row.get("skipped"):
            self.skipped.append(step)
        if loss is None:
            self.nonfinite.append(step)
        else:
            self.loss.add(loss, row.get("loss_tokens") or 0)
        self._at.append(step)
        for name, values in self._values.items():
            values.append(row.get(name))
        for name, value in (row.get("loss_by_source") or {}).items():
            if value is not None:
                self._of_source(name, step, value)
        if len(self._at) == _CHUNK:
            self._flush()

    def _of_source(self, name: str, step: int, loss: float) -> None:
        if name not in self.by_source:
            self.by_source[name] = Edges()
        if name not in self._source_values:
            self._source_values[name] = ([], [])
        self.by_source[name].add(loss)
        steps, losses = self._source_values[name]
        steps.append(step)
        losses.append(loss)

    def _answer(self, row: Json) -> None:
        key = (row["prompt"], row.get("system") or "")
        if key not in self.answers and len(self.answers) == PROMPTS:
            self.prompts_left_out.add(row["prompt"])
            return
        answer = Answer(
            row["step"], row.get("answer"), row.get("tokens") or 0, row.get("finish") or "", row.get("error")
        )
        self.answers.setdefault(key, Answers()).add(answer)

    def _flush(self) -> None:
        for name, values in self._values.items():
            self.series[name].extend(self._at, values)
        for name, (at, known) in self._source_values.items():
            self.loss_series.setdefault(name, Thinned()).extend(at, known)
        self._clear()

    def _clear(self) -> None:
        self._at: list[int] = []
        self._values: dict[str, list[float | None]] = {name: [] for name in _SERIES}
        self._source_values: dict[str, tuple[list[int], list[float | None]]] = {}


_SERIES = ("loss", "lr", "grad_norm", "tokens_per_s")
_NUMBERS = (*_SERIES, "step", "tokens", "loss_tokens", "epoch", "step_time_s", "memory_gb", "mfu")
_TEXTS = ("prompt", "system", "answer", "finish", "error")
_MOST = 1e200  # a sum of such numbers is one


def _row(line: bytes) -> Json:
    """The row that a line holds, or None."""
    try:
        row = orjson.loads(line)
    except ValueError:
        try:
            row = json.loads(line)  # which also knows half a surrogate pair
        except (ValueError, RecursionError):
            return None
    return row if isinstance(row, dict) and _is_row(row) else None


def _is_row(row: dict[str, Json]) -> bool:
    """Whether what is read of it is of the kind that it has to be; anything may stand in a file."""
    by_source = row.get("loss_by_source")
    return (
        type(row.get("step")) is int
        and isinstance(row.get("kind"), str)
        and all(map(_is_number, map(row.get, _NUMBERS)))
        and all(isinstance(row.get(key), str | None) for key in _TEXTS)
        and (by_source is None or (isinstance(by_source, dict) and all(map(_is_number, by_source.values()))))
        and (row["kind"] != "chat" or row.get("prompt") is not None)
    )


def _is_number(value: Json) -> bool:
    return value is None or (type(value) in (int, float) and abs(value) < _MOST)


def _mean(weighted: list[tuple[float, float]]) -> float | None:
    whole = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted) / whole if whole else None
