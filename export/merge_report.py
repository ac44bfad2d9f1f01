"""What merging an adapter comes to that was trained on a model in 4 bits: onto the original, or onto the 4-bit numbers.

Training multiplied with the 4-bit numbers and added the adapter's part. A merged matrix differs from that sum: by the
rounding to the exported format alone where the 4-bit numbers are below it, and by what packing took as well where the
original is.
"""

import logging
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from export.cast import Dtype, numbers
from export.dequantized import Dequantized
from export.hf import Model
from export.job import Job
from export.merge import Base, Merged, open_base
from export.source import Source
from export.weights import BLOCK
from pipelines.artifacts import Json
from pipelines.progress import progress_bar

log = logging.getLogger(__name__)

Choice = Literal["original", "dequantized"]
CHOICES: tuple[Choice, Choice] = ("original", "dequantized")


def measure(job: Job, model: Model, *, logits: bool) -> Json:
    """How far the merged model is from the trained one, for either base.

    Args:
        model: what is exported, of which the number format counts here.
        logits: whether to load the models and compare what they say to the probe prompts, all computing in float32.
    Returns:
        For a manifest. Differences of matrices are relative: the root of the summed squares of the differences over
        that of the numbers trained with. Rounded, so that sums in another order give the same digits.
    """
    assert job.plan.base is not None
    packed, differing = job.dequantized
    bases: dict[Choice, Base] = {"original": open_base(job.plan.base), "dequantized": packed}
    found: dict[str, Json] = _matrices(job.checkpoint, bases, packed, model.weights.dtype)
    said: dict[Choice, float | None] = dict.fromkeys(CHOICES)
    if logits:
        said |= _logits(job, bases, packed, model.weights.dtype)
    for choice in CHOICES:
        found[choice]["logits"] = _rounded(said[choice])
    facts = job.checkpoint.adapter["four_bits"]
    result = {**found, "base": job.pipeline.export.merge_base, "type": facts["type"], "other_numbers_in": differing}
    _say(result)
    return result


def _say(result: Json) -> None:
    parts = []
    for choice in CHOICES:
        one = result[choice]
        logits = "" if one["logits"] is None else f", logits {one['logits']:g}"
        worst = one["worst"]
        parts.append(f"{choice} {one['relative']:.2%} (worst {worst['relative']:.2%} in {worst['matrix']}{logits})")
    log.info("export: merged onto the %s base; from what was trained: %s", result["base"], "; ".join(parts))
    if result["other_numbers_in"] is not None:
        log.info(
            "export: 4-bit numbers came out otherwise here than in training, first in %s; the figures are nearly right",
            result["other_numbers_in"],
        )


def _matrices(source: Source, bases: dict[Choice, Base], packed: Dequantized, dtype: Dtype) -> dict[str, Json]:
    merged = {choice: Merged(source, base) for choice, base in bases.items()}
    sums: dict[str, npt.NDArray[np.float64]] = {}
    """Of every matrix: squares of what was trained, and of either base's difference from it."""
    size = sum(int(np.prod(packed.shapes[name], dtype=np.int64)) for name in packed.packed)
    with progress_bar("measuring merge", size, "number") as progress:
        for name in packed.packed:
            sums[name] = np.zeros(3)
            for start, stop in _ranges(int(np.prod(packed.shapes[name], dtype=np.int64))):
                trained, rounded = merged["dequantized"].read(name, start, stop, dtype)
                _, other = merged["original"].read(name, start, stop, dtype)
                exact = trained.astype(np.float64)
                differences = [numbers(bits, dtype) - exact for bits in (other, rounded)]
                sums[name] += [np.square(part).sum() for part in (exact, *differences)]
                progress(stop - start)
    total = sum(sums.values(), np.zeros(3))
    found: dict[str, Json] = {}
    for place, choice in enumerate(CHOICES, 1):
        relative = {name: _ratio(one[place], one[0]) for name, one in sums.items()}
        worst = max(sorted(relative), key=relative.__getitem__)
        found[choice] = {
            "relative": _rounded(_ratio(total[place], total[0])),
            "worst": {"matrix": worst, "relative": _rounded(relative[worst])},
        }
    return found


def _ranges(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _logits(job: Job, bases: dict[Choice, Base], packed: Dequantized, dtype: Dtype) -> dict[Choice, float | None]:
    """The largest difference of a logit after any token of the probe prompts."""
    import torch

    from export.adapter import load_trained_adapter
    from export.verify import probe_prompts, trained_model

    @torch.inference_mode()
    def said(model: Any) -> list[torch.Tensor]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums in one order, however many there are
        try:
            return [model(input_ids=torch.tensor([list(prompt)])).logits[0] for prompt in prompts]
        finally:
            torch.set_num_threads(threads)

    assert job.plan.base is not None
    adapter = Model.of(job.checkpoint, "float32")
    prompts = probe_prompts(adapter)
    expected = said(load_trained_adapter(job.plan.base, adapter, packed))
    found: dict[Choice, float | None] = {}
    for choice, base in bases.items():
        merged = said(trained_model(Model.of(job.checkpoint, dtype, base)).float())
        found[choice] = max(float((one - other).abs().max()) for one, other in zip(merged, expected, strict=True))
    return found


def _ratio(part: float, whole: float) -> float:
    return float(np.sqrt(part / whole)) if whole else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.2g}")
