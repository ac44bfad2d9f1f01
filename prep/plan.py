"""What a run of prep will write: which samples, in which order, in which packs. Made from lengths alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import DataError
from pipelines.schema import PackTable, Pipeline
from prep.held_out import divide
from prep.inputs import Input
from prep.mix import Arrangement, arrange
from prep.packing import Packing, pack
from prep.store import Samples


@dataclass(frozen=True)
class Part:
    """Samples in order, and the packs they go into."""

    samples: Samples
    sequence: npt.NDArray[np.int64]
    """[positions] number of the sample at each position of the order."""
    packing: Packing


@dataclass(frozen=True)
class Plan:
    """What is trained on, and what is held out of it."""

    train: Part
    arrangement: Arrangement
    held_out: Part | None


def make_plan(samples: Samples, inputs: Sequence[Input], pipeline: Pipeline) -> Plan:
    """Divide, order, mix and pack.

    Raises:
        DataError: if a source, or one side of the division, is left without a sample; or no pack is full where only
            full ones are kept.
        ConfigError: if the mix asks a source for more than it may.
    """
    prep = pipeline.prep
    trained, held_out = divide(samples, inputs, prep, seed=pipeline.run.seed)
    train, rest = samples.taken(trained), samples.taken(held_out)
    del trained, held_out  # as long as the samples, like all that takes memory here
    arrangement = arrange(train, inputs, prep, seed=pipeline.run.seed)
    packing = pack(train.lengths[arrangement.sequence], prep.pack, _groups(prep.pack, train, arrangement))
    if not packing.packs:
        raise DataError(
            f"no full pack: nothing in one scope comes to prep.pack.capacity = {prep.pack.capacity} tokens, and "
            "prep.pack.drop_last leaves out what is less; lower the one, or set the other to false"
        )
    part = Part(train, arrangement.sequence, packing)
    return Plan(part, arrangement, _held_out(rest, prep.pack) if rest.lengths.size else None)


def _held_out(samples: Samples, table: PackTable) -> Part:
    """Every held-out sample once, in the order of the data, whole where the strategy cuts none."""
    sequence = np.arange(samples.lengths.size, dtype=np.int64)
    everything = table.model_copy(update={"scope": "global", "drop_last": False})
    return Part(samples, sequence, pack(samples.lengths, everything))


def _groups(table: PackTable, samples: Samples, arrangement: Arrangement) -> npt.NDArray[np.int32] | None:
    """For each position of the order, the group whose samples it may share a pack with."""
    if table.scope == "source":
        return arrangement.source
    if table.scope == "file":
        return samples.file[arrangement.sequence].astype(np.int32)
    return None


def facts(plan: Plan) -> dict[str, Any]:
    """The plan in numbers, with what the other strategies would give for the same samples."""
    packing, arrangement = plan.train.packing, plan.arrangement
    found = {
        "samples": int(arrangement.sequence.size),
        "tokens": packing.tokens,
        "capacity": packing.capacity,
        **_packs(packing),
        "sources": list(arrangement.realised),
        "lengths": _percentiles(plan.train.samples.lengths[arrangement.sequence]),
    }
    if plan.held_out:
        found["eval"] = {"samples": int(plan.held_out.sequence.size), **_packs(plan.held_out.packing)}
    return found


def alternatives(plan: Plan, table: PackTable) -> dict[str, dict[str, Any]]:
    """What every strategy that cuts no sample, or cuts the stream, would give within the same scope."""
    lengths = plan.train.samples.lengths[plan.arrangement.sequence]
    groups = _groups(table, plan.train.samples, plan.arrangement)
    found = {}
    for strategy in ("in_order", "best_fit", "concat_split", "none"):
        keys: dict[str, Any] = {"strategy": strategy, "drop_last": False, "cross_sample_attention": False}
        if strategy in ("concat_split", "none") and table.scope == "window":
            keys["scope"] = "global"
        if strategy == "concat_split" or lengths.max() <= table.capacity:
            found[strategy] = _packs(pack(lengths, table.model_copy(update=keys), groups))
    return found


def _packs(packing: Packing) -> dict[str, Any]:
    return {
        "packs": packing.packs,
        "packs_lower_bound": packing.lower_bound,
        "above_lower_bound": packing.packs - packing.lower_bound,
        "fill": round(packing.fill, 6),
    }


def _percentiles(lengths: npt.NDArray[np.int32]) -> dict[str, int]:
    shares = {"shortest": 0, "5 %": 5, "half": 50, "95 %": 95, "longest": 100}
    found = np.percentile(lengths, list(shares.values()), method="lower")
    return {name: int(length) for name, length in zip(shares, found, strict=True)}


def summary(found: Mapping[str, Any]) -> str:
    """`facts` with `alternatives` for a person."""
    lengths = ", ".join(f"{name} {length:,}" for name, length in found["lengths"].items())
    lines = [
        f"{found['samples']:,} samples, {found['tokens']:,} tokens in {found['packs']:,} packs of "
        f"{found['capacity']:,}: {found['fill']:.2%} full",
        f"  lower bound {found['packs_lower_bound']:,} packs, {found['above_lower_bound']:,} above it",
        f"  lengths: {lengths}",
        *(
            f"  {one['name']}: {one['samples']:,} samples, {one['tokens']:,} tokens, "
            f"{one['passes']:g} {'pass' if one['passes'] == 1 else 'passes'}, {one['share']:.2%} of the mix"
            for one in found["sources"]
        ),
    ]
    if held_out := found.get("eval"):
        lines.append(
            f"  held out: {held_out['samples']:,} samples in {held_out['packs']:,} packs, {held_out['fill']:.2%} full"
        )
    lines.append("with prep.pack.strategy set to")
    lines += [
        f"  {name:12} {one['packs']:>12,} packs, {one['fill']:8.2%} full, {one['above_lower_bound']:,} above its bound"
        for name, one in found["strategies"].items()
    ]
    return "\n".join(lines)
