"""One export at work: the checkpoint, what its adapter is merged into, and the model each target is written of."""

from dataclasses import dataclass
from functools import cached_property

from export.dequantized import Dequantized, refuse_other_numbers
from export.hf import Model
from export.merge import Base, open_base
from export.plan import Plan
from export.source import Source
from pipelines.errors import ConfigError
from pipelines.schema import Pipeline


@dataclass(frozen=True)
class Job:
    """What the parts of an export share; files are opened on first use."""

    pipeline: Pipeline
    plan: Plan
    checkpoint: Source

    @cached_property
    def base(self) -> Base | None:
        """What an adapter is merged into; None where the whole model was trained.

        Raises:
            ConfigError: if that is to be the model in 4 bits, which it was not.
            CheckError: if its 4-bit numbers are not those of training.
        """
        if self.plan.base is None:
            return None
        if self.pipeline.export.merge_base == "original":
            return open_base(self.plan.base)
        base, differing = self.dequantized
        refuse_other_numbers(base, differing)
        return base

    @cached_property
    def dequantized(self) -> tuple[Dequantized, str | None]:
        """The model below the adapter as it was in 4 bits, and the first of its matrices that comes out otherwise."""
        assert self.plan.base is not None
        return Dequantized.of(open_base(self.plan.base), self.checkpoint.adapter["four_bits"])

    @property
    def was_in_four_bits(self) -> bool:
        """Whether the adapter was trained on a model in 4 bits that can be made again."""
        return self.plan.base is not None and "four_bits" in self.checkpoint.adapter

    def refuse_base(self) -> None:
        """Raises ConfigError where the numbers to merge into were never there, or are not known."""
        if self.pipeline.export.merge_base == "original" or self.was_in_four_bits:
            return
        trained = self.checkpoint.manifest.facts.get("settings", {}).get("model", {})
        finding = (
            "the checkpoint was saved by a version that did not note how the 4 bits came out; train a step more, or "
            'take "original"'
            if self.plan.base is not None and trained.get("quantization")
            else "the checkpoint is not of an adapter on a model in 4 bits; remove it"
        )
        raise ConfigError(f"{self.pipeline.cite('export.merge_base')}: {finding}")

    def model(self, target: str) -> Model:
        """The model as a target is written of it, in the names that Transformers has."""
        if target == "adapter":
            return Model.of(self.checkpoint, "float32")
        dtype = self.plan.dtype if target == "hf" else self.pipeline.export.turbomind.weight_type
        return Model.of(self.checkpoint, dtype, self.base)

    def written(self, target: str) -> Model:
        """The same in the layout that the target is written in."""
        original = target == "hf" and self.pipeline.export.hf.layout == "original"
        return self.model(target).as_it_came() if original else self.model(target)
