"""Did it work? What the page begins with: each stage's state, the figures that matter, and what to look at."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

from pipelines.artifacts import Json
from pipelines.report.numerals import count, real
from pipelines.report.run import Artefact, Run

REPEATS = 1.0
"""Passes over a source above which it is said that samples repeat."""
NAMED = 5
"""Of sources, or of ranges of steps, that are named where there are many."""
_RISE = 0.02  # of the lowest held-out loss: less is noise


@dataclass(frozen=True)
class Stage:
    """How far a stage has come."""

    name: str
    finished: bool
    text: str


def stages(run: Run) -> list[Stage]:
    """Prep, train and export, in this order."""
    return [_prep(run), _train(run), _export(run)]


def facts(run: Run) -> dict[str, Json]:
    """All of it for a program, with the digests of the artefacts."""
    return {
        "run": run.name,
        "stages": {stage.name: {"finished": stage.finished, "state": stage.text} for stage in stages(run)},
        "headline": headline(run),
        "warnings": warnings(run),
        "artefacts": [
            {
                "path": one.path,
                "kind": one.manifest.kind,
                "identity": one.manifest.identity,
                "parents": dict(one.manifest.parents),
            }
            for one in run.artefacts
        ],
    }


def headline(run: Run) -> dict[str, Json]:
    """The figures that matter; null for what is not known."""
    prep = run.prep.facts if run.prep else {}
    metrics, held_out = run.metrics, run.metrics.held_out
    return {
        "model": model_name(run),
        "trained_parameters": trained_parameters(run),
        "sources": [source["name"] for source in prep.get("sources", ())],
        "samples": prep.get("samples"),
        "tokens": prep.get("tokens"),
        "fill": prep.get("fill"),
        "step": last_step(run),
        "total_steps": total_steps(run),
        "loss_first": metrics.loss.first,
        "loss_last": metrics.loss.last,
        "loss_over_steps": metrics.loss.steps if metrics.steps else None,
        "held_out_loss_first": _loss(held_out.first),
        "held_out_loss_best": _loss(held_out.best),
        "held_out_loss_last": _loss(held_out.last),
        "tokens_trained": metrics.tokens or None,
        "tokens_per_s": metrics.tokens_per_s,
        "mfu": metrics.mfu,
        "training_seconds": metrics.seconds or None,
        "verified": sorted(name for name, one in run.targets.items() if one.facts.get("verified")),
        "accuracy": (evaluation(run) or {}).get("accuracy"),
    }


def model_name(run: Run) -> str | None:
    """What was trained: its repository, its directory's name where the pipeline file tells it, or its class."""
    newest = run.checkpoints[-1] if run.checkpoints else run.prep
    origins = newest.facts.get("origins", {}) if newest else {}
    name = origins.get("model", {}).get("repository") or run.model or _class_of(run)
    if newest and name and newest.facts.get("adapter"):
        return f"{name}, adapter"
    return name


def trained_parameters(run: Run) -> int | None:
    """Numbers that are trained; of an adapter its own."""
    if not run.checkpoints:
        return None
    shapes = run.checkpoints[-1].facts.get("parameters", {})
    return sum(int(math.prod(shape)) for shape in shapes.values())


def last_step(run: Run) -> int | None:
    """Optimizer steps done."""
    saved = int(run.checkpoints[-1].facts["step"]) if run.checkpoints else 0
    return max(saved, run.metrics.last_step) if run.has("train") else None


def total_steps(run: Run) -> int | None:
    """Optimizer steps of the whole training, which checkpoints know; None where it has gone beyond what they knew."""
    found = run.checkpoints[-1].facts.get("total_steps") if run.checkpoints else None
    return None if found is None or run.metrics.last_step > found else int(found)


def evaluation(run: Run) -> Mapping[str, Json] | None:
    """Of the exported model, where it was asked something; also of an export that failed by it."""
    if run.export:
        return run.export.facts.get("evaluation")
    return run.answers if run.targets and isinstance(run.answers, dict) else None


def warnings(run: Run) -> list[str]:
    """What a reader should know before trusting the rest."""
    return [*_of_data(run), *_of_training(run), *_of_export(run)]


def _prep(run: Run) -> Stage:
    if run.prep is None:
        return Stage("prep", False, "begun, not finished" if run.has("prep") else "has not run")
    facts = run.prep.facts
    return Stage("prep", True, f"finished: {count(facts['packs'], 'pack')} of {count(facts['capacity'], 'token')}")


def _train(run: Run) -> Stage:
    done, total = last_step(run), total_steps(run)
    if done is None:
        return Stage("train", False, "has not run")
    saved = run.checkpoints[-1].facts["step"] if run.checkpoints else 0
    if total and saved >= total:
        return Stage("train", True, f"finished: {count(total, 'step')}")
    return Stage("train", False, f"not finished: step {done:,}" + (f" of {total:,}" if total else ""))


def _export(run: Run) -> Stage:
    verified = {name for name, one in run.targets.items() if one.facts.get("verified")}
    names = ", ".join(name if name in verified else f"{name} (not verified)" for name in run.targets)
    if run.export:
        return Stage("export", True, f"finished{' and verified' if verified == {*run.targets} else ''}: {names}")
    if names:
        return Stage("export", False, f"not finished: {names} written")
    return Stage("export", False, "begun, not finished" if run.has("export") else "has not run")


def _of_data(run: Run) -> Iterator[str]:
    if run.prep is None:
        return
    facts = run.prep.facts
    if rejected := facts.get("rejected"):
        yield f"{count(rejected)} of {count(facts['records'], 'record')} were faulty and left out"
    for reason, number in facts.get("dropped", {}).items():
        yield f"{count(number, 'record')}: {reason}"
    if repeated := [source for source in facts.get("sources", ()) if source.get("passes", 0) > REPEATS]:
        passes = [f"{source['name']} ({source['passes']:g} passes)" for source in repeated]
        more = f" and {len(passes) - NAMED} more" if len(passes) > NAMED else ""
        yield f"samples are repeated of {count(len(passes), 'source')}: {', '.join(passes[:NAMED])}{more}"
    given = sum(source.get("tokens", 0) for source in facts.get("sources", ()))
    if given and (left := given - facts.get("tokens", given)):
        yield f"{count(left, 'token')} behind the last full packs are left out (prep.pack.drop_last)"
    yield from _changed(run.prep)
    if run.lengths.why_not:
        yield f"prep: {run.lengths.why_not}; lengths and fill are counted without it"


def _of_training(run: Run) -> Iterator[str]:
    metrics = run.metrics
    if metrics.skipped:
        skipped = count(len(metrics.skipped), "step")
        yield f"{skipped} skipped, as loss or gradient was not finite: {_steps(metrics.skipped)}"
    if taken := sorted({*metrics.nonfinite} - {*metrics.skipped}):
        yield f"the loss of {count(len(taken), 'step')} was not finite: {_steps(taken)}"
    if metrics.unreadable:
        yield f"{count(metrics.unreadable, 'line')} of metrics.jsonl cannot be read"
    best, last = metrics.held_out.best, metrics.held_out.last
    if best and last["loss"] > best["loss"] * (1 + _RISE):
        yield (
            f"the held-out loss was lowest after step {best['step']:,}, {real(best['loss'])}, and is "
            f"{real(last['loss'])} after step {last['step']:,}"
        )
    if failed := [one for answers in metrics.answers.values() for one in answers if one.error]:
        yield f"prompts were not answered after step {failed[-1].step:,}: {failed[-1].error}"
    for one in run.checkpoints[-1:]:
        yield from _changed(one)
        if run.prep and one.manifest.parents.get("prep") != run.prep.manifest.identity:
            yield f"{one.path} was trained on other shards than those that are here now"


def _of_export(run: Run) -> Iterator[str]:
    for name, one in run.targets.items():
        yield from _changed(one)
        if vanished := one.facts.get("rounded_to_zero"):
            yield f"{name}: {count(vanished, 'number')} became zero in {one.facts['dtype']}"
    parents = {one.manifest.parents.get("checkpoint") for one in run.targets.values()}
    if run.checkpoints and parents - {run.checkpoints[-1].manifest.identity}:
        steps = sorted({one.facts["step"] for one in run.targets.values() if one.facts.get("step") is not None})
        told = f", but of step {', '.join(f'{step:,}' for step in steps)}" if steps else ""
        yield f"the export is not of the newest checkpoint, step {run.checkpoints[-1].facts['step']:,}{told}"


def _changed(one: Artefact) -> Iterator[str]:
    if one.missing:
        more = f" and {count(len(one.missing) - 1)} more" if len(one.missing) > 1 else ""
        yield f"{one.path}: {one.missing[0]}{more} missing, or of another size than when it was written"


def _steps(found: list[int]) -> str:
    """Steps as ranges, the first few of them."""
    borders = [0, *(at + 1 for at, (one, other) in enumerate(pairwise(found)) if other > one + 1), len(found)]
    runs = [(found[first], found[end - 1]) for first, end in pairwise(borders)]
    text = ", ".join(f"{first:,}" if first == last else f"{first:,} to {last:,}" for first, last in runs[:NAMED])
    return f"{'step' if len(found) == 1 else 'steps'} {text}" + (", ..." if len(runs) > NAMED else "")


def _class_of(run: Run) -> str | None:
    architectures = run.model_config.get("architectures")
    return architectures[0] if architectures else run.model_config.get("model_type")


def _loss(row: Json) -> float | None:
    return row["loss"] if row else None
