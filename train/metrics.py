"""What a run reports: metrics.jsonl with every step, a line on the terminal now and then, run.json at the ends."""

import json
import logging
import math
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import indent
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import torch

from pipelines.artifacts import Json, canonical_json, write_atomic
from pipelines.terminal import printable
from train.plan import Plan
from train.trackers import TrackedRun, Trackers, shown_settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One optimizer step."""

    step: int
    """From 1: optimizer steps done."""
    epoch: float
    """Passes over the packs done."""
    loss: float | None
    """Mean over the loss tokens of the global batch, before the update; null where it is no number."""
    loss_tokens: int
    tokens: int
    grad_norm: float | None
    """Before clipping; null where it is no number."""
    lr: float
    step_time_s: float
    tokens_per_s: float
    """Of all ranks."""
    mfu: float | None
    """Share of the devices' peak in half precision that the model's operations make up; null where either is unknown
    (`train.flops`)."""
    memory_gb: float
    """Most memory that rank 0 has used: of its GPU, or of the process."""
    skipped: bool = False
    """The weights stayed as they were because the gradient was not finite."""
    skipped_steps: int = 0
    """Such steps so far, from the run's first."""
    loss_by_source: Mapping[str, float] = field(default_factory=dict)
    """`loss` over the loss tokens of each source that has any in the global batch; null where it is no number."""
    kind: Literal["train"] = "train"


@dataclass(frozen=True)
class EvalRow:
    """An evaluation on what prep held out."""

    step: int
    """Optimizer steps done."""
    loss: float
    """Mean over all held-out loss tokens."""
    loss_tokens: int
    seconds: float
    loss_by_source: Mapping[str, float] = field(default_factory=dict)
    """`loss` over the held-out loss tokens of each source that has any."""
    kind: Literal["eval"] = "eval"


@dataclass(frozen=True)
class ChatRow:
    """The answer to one of train.eval.prompts."""

    step: int
    """Optimizer steps done."""
    prompt: str
    system: str
    """Empty: the template's own, if it has one."""
    answer: str | None
    """Without special tokens and the whitespace around it; null where there is an error."""
    tokens: int
    """Of the answer, the one that ended it included."""
    finish: Literal["stop", "length", "error"]
    """A token that ends answers came, or as many tokens as there may be."""
    seconds: float
    """Until it was there, beside the others."""
    error: str | None = None
    """What kept this and later prompts from being answered. Training goes on."""
    kind: Literal["chat"] = "chat"


class Metrics:
    """metrics.jsonl of a run, on rank 0; on other ranks, nothing happens."""

    def __init__(self, plan: Plan, *, done: int, write: bool, resume: bool = True) -> None:
        """Args:
        done: steps that the run goes on from.
        write: whether this is rank 0.
        resume: whether it may go on with what trackers have of this run.
        """
        self._plan, self._resume = plan, resume
        self._path = plan.home / "metrics.jsonl"
        self._done, self._total, self._every = done, plan.total_steps, plan.train.log.steps
        self._file: TextIO | None = None
        self._write = write
        self._trackers: Trackers | None = None
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        if self._write:
            former = _rows(self._path)
            kept = [(line, row) for line, row in former if row["step"] <= self._done and self._done > 0]
            write_atomic(self._path, b"".join(line for line, _ in kept))
            self._trackers = self._open_trackers([row for _, row in former], [row for _, row in kept])
            self._file = self._path.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()
        if self._trackers is not None:
            self._trackers.close(finished=kind is None)

    def _open_trackers(self, former: list[Json], kept: list[Json]) -> Trackers:
        pipeline = self._plan.pipeline
        run = TrackedRun(
            name=pipeline.run.name,
            group=pipeline.run.work_dir.name,
            config=shown_settings(pipeline),
            folder=self._plan.home,
            done=self._done,
        )
        return Trackers(
            self._plan.train.log.trackers,
            run,
            identity=self._plan.identity,
            resume=self._resume,
            kept=[row for row in kept if row["kind"] != "chat"],
            former=former,
        )

    def add(self, row: Row) -> None:
        """Write a step to the file, and to the terminal where it is due."""
        if self._file is None:
            return
        self._append(row)
        if row.step % self._every == 0 or row.step in (self._done + 1, self._total) or row.skipped:
            log.info("%s", self._line(row))

    def add_evaluation(self, row: EvalRow) -> None:
        """Write an evaluation to the file and the terminal."""
        if self._file is None:
            return
        self._append(row)
        log.info(
            "step %d/%d  held-out loss %.4f, of %s tokens in %s",
            row.step, self._total, row.loss, f"{row.loss_tokens:,}", duration(row.seconds),
        )  # fmt: skip

    def add_answers(self, rows: list[ChatRow]) -> None:
        """Write answers to the file and the terminal; trackers draw numbers."""
        if self._file is None or not rows:
            return
        for row in rows:
            self._append(row)
        if error := next((row.error for row in rows if row.error), None):
            log.warning("step %d/%d  prompts not answered: %s", rows[0].step, self._total, printable(error))
        answered = [row for row in rows if row.answer is not None]
        log.info(
            "step %d/%d  %d of %d prompts answered in %s%s", rows[0].step, self._total, len(answered), len(rows),
            duration(max(row.seconds for row in rows)), "".join(map(_as_talk, answered)),
        )  # fmt: skip
        if rows[0].step == self._done:
            self._began = time.monotonic()  # which says when the steps will be done

    def _append(self, row: Row | EvalRow | ChatRow) -> None:
        assert self._file is not None
        assert self._trackers is not None
        values = _finite_or_none(asdict(row))
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        if row.kind != "chat":
            self._trackers.add(values)

    def _line(self, row: Row) -> str:
        elapsed = time.monotonic() - self._began
        left = elapsed / (row.step - self._done) * (self._total - row.step)
        mfu = "" if row.mfu is None else f"  mfu {row.mfu:.1%}"
        loss = "not finite" if row.loss is None else f"{row.loss:.4f}"
        grad = "not finite" if row.grad_norm is None else f"{row.grad_norm:.2f}"
        skipped = f", skipped ({row.skipped_steps} so far)" if row.skipped else ""
        return (
            f"step {row.step:>{len(str(self._total))}}/{self._total}  epoch {row.epoch:.2f}  loss {loss}  "
            f"grad {grad}{skipped}  lr {row.lr:.2e}  {row.tokens_per_s:,.0f} tokens/s{mfu}  "
            f"{row.memory_gb:.1f} GB  {duration(left)} left"
        )


def memory_gb(device: torch.device) -> float:
    """Most memory used so far: of the GPU, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def write_run_json(path: Path, facts: Json) -> None:
    """Add to the record of when, where and how this ran: what no identity may depend on."""
    try:
        former: Json = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        former = {}
    write_atomic(path, canonical_json({**former, **facts}))


def duration(seconds: float) -> str:
    """`3 s`, `4:05`, `2:03:04`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{left:02d}"
    return f"{minutes}:{left:02d}" if minutes else f"{left} s"


def _finite_or_none(value: Any) -> Any:
    """A row with None where a number is not finite, as JSON has no such numbers."""
    if isinstance(value, dict):
        return {key: _finite_or_none(child) for key, child in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_talk(row: ChatRow) -> str:
    """Prompt and answer, on lines of their own."""
    cut = f" [cut at {row.tokens} tokens]" if row.finish == "length" else ""
    texts = (row.prompt, 2), (f"{row.answer}{cut}", 4)
    return "".join("\n" + indent(printable(text, keep="\n"), " " * by) for text, by in texts)


def _rows(path: Path) -> list[tuple[bytes, Json]]:
    """The rows of a file as far as they are whole, and how they are written there."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    found = []
    for line in lines:
        try:
            row = json.loads(line)
            if line.endswith(b"\n") and {"kind", "step"} <= row.keys():
                found.append((line, row))
        except (ValueError, AttributeError):
            continue  # cut off by a kill
    return found
