"""A Hugging Face directory: weights, configuration, tokenizer, chat template, model card."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export.cast import Dtype
from export.merge import Base
from export.model_card import model_card
from export.model_config import exported_config, exported_generation_config, read_config
from export.original_layout import OriginalWeights, originally
from export.safetensors_stream import Digests, write_model
from export.source import Source
from export.weights import Weights
from pipelines.artifacts import Json, canonical_json, write_atomic
from pipelines.progress import progress_bar
from pipelines.tokenizer_files import SpecialTokens, special_tokens, tokenizer_files

CARD = "README.md"


@dataclass(frozen=True)
class Model:
    """A checkpoint as it is exported: its weights in one number format, and the files that go with them.

    The weights are the whole model's, or those of an adapter alone.
    """

    checkpoint: Source
    weights: Weights
    config: Mapping[str, Any]
    """config.json"""
    special: SpecialTokens
    files: Mapping[str, bytes]
    """Configuration and tokenizer, content by file name."""

    @classmethod
    def of(cls, checkpoint: Source, dtype: Dtype, base: Path | Base | None = None) -> "Model":
        """Read what is small and check that it fits together; the weights are read when they are written.

        Args:
            base: the model that the checkpoint's adapter is merged into.
        Raises:
            CheckError: if the checkpoint lacks what an export needs.
            ConfigError: if the model has parts that are not exported yet.
        """
        trained = read_config(checkpoint.model)
        tokenizer = checkpoint.tokenizer
        special = special_tokens(tokenizer, trained)
        weights, settings = _weights(checkpoint, dtype, base, trained)
        config = exported_config(settings, weights.shapes, dtype, special)
        files = {
            "config.json": canonical_json(config),
            "generation_config.json": canonical_json(exported_generation_config(checkpoint, special)),
            **tokenizer_files(tokenizer, special),
            **_code(checkpoint.model),
        }
        return cls(checkpoint, weights, config, special, files)

    def as_it_came(self) -> "Model":
        """The same model in the layout that it was published in.

        Raises:
            ConfigError: if it has no other layout, or that cannot hold it; without a place, which the caller adds.
        """
        weights, config = originally(read_config(self.checkpoint.model), self.weights)
        config |= self.special.as_config()
        return replace(
            self, weights=weights, config=config, files={**self.files, "config.json": canonical_json(config)}
        )

    @property
    def code(self) -> Path | None:
        """The checkpoint's directory with the Python files of the model's class, if that is not Transformers' own."""
        return self.checkpoint.model if any(name.endswith(".py") for name in self.files) else None

    @property
    def chats(self) -> bool:
        """Whether it comes with a chat template."""
        return "chat_template.jinja" in self.files

    def write_files(self, folder: Path) -> None:
        """Write everything but the weights."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, content)


def _code(folder: Path) -> dict[str, bytes]:
    """The Python files that a trusted model came with, by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def _weights(
    checkpoint: Source, dtype: Dtype, base: Path | Base | None, trained: dict[str, Any]
) -> tuple[Weights, dict[str, Any]]:
    """The tensors as they are written, and every setting of the model's class."""
    if checkpoint.adapter is not None and base is None:
        return Weights(checkpoint, dtype), trained  # under names of PEFT's, in float32
    if next(checkpoint.model.rglob("*.py"), None):
        return Weights(checkpoint, dtype, base), trained  # of a class that need not run for this
    from export.published import Form  # imports torch, which an export that is current need not wait for

    form = Form(trained, checkpoint.folder)
    return form.published(Weights(checkpoint, dtype, base, form.float32(dtype))), form.settings


def write_hf(model: Model, folder: Path, max_shard_size: int) -> Digests:
    """Write a directory that plain Transformers loads, holding one block of a tensor in memory at a time.

    Returns:
        The digests of the weight files, of what was computed for them.
    """
    with progress_bar("writing hf", model.weights.nbytes, "B") as progress:
        digests = write_model(folder, model.weights, max_shard_size, progress)
    model.write_files(folder)
    write_card(model, folder)
    return digests


def write_card(model: Model, folder: Path, merging: Json = None) -> None:
    """Write README.md.

    Args:
        merging: what the choice of the base came to, of an adapter on 4 bits.
    """
    original = isinstance(model.weights, OriginalWeights)
    card = model_card(
        model.checkpoint,
        model.config,
        model.weights,
        model.special,
        chats=model.chats,
        original=original,
        merging=merging,
    )
    write_atomic(folder / CARD, card.encode("utf-8"))
