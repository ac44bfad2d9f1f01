"""One run on other ranks again and again: the same packs in the same places, and the same loss.

A run is killed after some steps and goes on with more or fewer ranks, and with packs shared by more or fewer of them.
What each rank computes is written down as it is handed to the model, so nothing here trusts the run's own account.
"""

import hashlib
import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.faults.case import Case
from tests.faults.kill import before, taken_for_finished
from tests.faults.process import PATIENCE
from tests.faults.ranks import start
from tests.faults.table import Tally

Layout = tuple[int, int]
"""Ranks, and how many of them share a pack."""
CHAINS: tuple[tuple[Layout, ...], ...] = (
    ((1, 1), (2, 1), (4, 1), (2, 1)),
    ((1, 1), (2, 2), (4, 4), (4, 2)),
    ((4, 4), (2, 2), (1, 1), (2, 1)),
)
BATCH, STEPS = 4, 2
"""Packs of a step, and steps with each layout."""
SEED = 1024
"""run.seed where the file does not say."""
CLOSE = 1e-6
"""How far a loss in fp32 may be from that of one rank."""
_MODEL = ("num_attention_heads", "num_key_value_heads")


def changes(ready: Case, folder: Path) -> Tally:
    """Every chain of layouts beside one rank that does it all."""
    tally, farthest = Tally("other ranks and shares of packs in one run"), 0.0
    steps = STEPS * len(CHAINS[0])
    alone = before(ready, "train", folder / "alone")
    if finding := _go_on(alone, (1, 1), steps, steps):
        raise SystemExit(finding)
    expected = _packs(alone, 0, steps)
    for chain in CHAINS:
        case = before(ready, "train", folder / "elastic")
        for at, layout in enumerate(chain):
            where = f"{chain}, {layout[0]} ranks, {layout[1]} to a pack"
            finding = _go_on(case, layout, STEPS * (at + 1), steps) or taken_for_finished(case)
            first, last = STEPS * at, STEPS * (at + 1)
            if finding is None and _packs(case, first, last) != expected[BATCH * first : BATCH * last]:
                finding = "other packs"
            difference = 0.0 if finding else _difference(alone, case, last)
            farthest = max(farthest, difference)
            if difference > CLOSE:
                finding = f"a loss is {difference:.1e} away"
            tally.add(f"{where}: {finding}" if finding else None)
    tally.note = f"losses within {farthest:.1e}"
    return tally


def _go_on(case: Case, layout: Layout, until: int, steps: int) -> str | None:
    """Train until there is a checkpoint after so many steps, and kill all ranks then, if it is not the last."""
    ranks, shared = layout
    keys = {
        **dict.fromkeys((f"model.scratch.{name}" for name in _MODEL), 4),
        "train.global_batch_size": BATCH,
        "train.max_steps": steps,
        "train.checkpoint.save_steps": STEPS,
        "train.parallel.sequence_parallel_size": shared,
    }
    options = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
    written = _written(case)
    written.unlink(missing_ok=True)
    processes = start(case, ranks, *options, together=True, first=_recorder(written))
    saved = case.home / "train" / "checkpoints" / f"step-{until:08d}"
    deadline = time.monotonic() + PATIENCE
    while until < steps and not saved.exists() and processes[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if until < steps:
        processes[0].send_group(signal.SIGKILL)
    for process in processes:
        code, said = process.wait()
        if code not in ((0, -signal.SIGKILL) if until < steps else (0,)):
            return f"exit {code}: {said[-600:]}"
    return None if saved.exists() else f"no {saved.name}"


def _recorder(written: Path) -> Callable[[], None]:
    """What a rank does first: write down every part of a pack that it is about to compute, and where that stands."""

    def record() -> None:
        from train import batches

        make = batches.micro_batch
        places = {batches._seed_at(at, SEED, part): at for at in range(1000) for part in range(4)}

        def recorded(pack, device, *, seed=0, part=0, parts=1, **others):  # type: ignore[no-untyped-def]
            digest = hashlib.sha256(pack.tokens.tobytes() + pack.cu_seqlens.tobytes()).hexdigest()
            with written.open("a") as file:
                file.write(json.dumps([places[seed], part, parts, digest]) + "\n")
            return make(pack, device, seed=seed, part=part, parts=parts, **others)

        batches.micro_batch = recorded

    return record


def _packs(case: Case, first: int, last: int) -> list[str]:
    """The packs of steps first..last - 1 in their order, each computed once and whole; a text where one was not."""
    found: dict[int, list[list[object]]] = {}
    for line in _written(case).read_text().splitlines():
        place, *computed = json.loads(line)
        found.setdefault(place, []).append(computed)
    return [_whole(found.get(place, [])) for place in range(BATCH * first, BATCH * last)]


def _whole(computed: Sequence[list[object]]) -> str:
    """The digest of a pack whose parts were computed once each."""
    parts, digests = sorted((part, of) for part, of, _ in computed), {str(digest) for *_, digest in computed}
    whole = parts == [(part, len(parts)) for part in range(len(parts))] and len(digests) == 1
    return digests.pop() if whole else f"parts {parts} of {len(digests)} packs"


def _difference(alone: Case, case: Case, last: int) -> float:
    """How far losses are apart at most; endless where other numbers of tokens are behind them."""
    rows = []
    for one in (alone, case):
        lines = (one.home / "train" / "metrics.jsonl").read_text().splitlines()
        rows.append({row["step"]: row for row in map(json.loads, lines) if row["step"] <= last})
    counts = [[(step, row["tokens"], row["loss_tokens"]) for step, row in sorted(found.items())] for found in rows]
    if counts[0] != counts[1] or len(counts[0]) < last:
        return float("inf")
    return max(abs(float(rows[0][step]["loss"]) - float(rows[1][step]["loss"])) for step in rows[0])


def _written(case: Case) -> Path:
    return case.folder.with_name(f"packs-of-{case.folder.name}")
