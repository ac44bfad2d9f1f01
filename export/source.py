"""What an export starts from: trained weights by name and range, and what lies beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from export.sources.foreign import ALONE, Beside, Foreign
from pipelines.artifacts import Json, Manifest
from pipelines.checkpoints import Checkpoint


class Source(Protocol):
    """Weights and the facts about them, whatever files they lie in."""

    @property
    def folder(self) -> Path:
        """Where it is, for messages."""

    @property
    def model(self) -> Path:
        """The directory of config.json and generation_config.json."""

    @property
    def tokenizer(self) -> Path:
        """The directory of the tokenizer that it was trained with, and of its probes."""

    @property
    def manifest(self) -> Manifest:
        """Identity and facts, as a checkpoint of ours has them; others have fewer facts."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor by name, each tied tensor once."""

    @property
    def adapter(self) -> Json:
        """What was trained on top of which model; None where the weights are the whole model's."""

    @property
    def packs_consumed(self) -> int:
        """Packs trained on so far."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Elements start..stop of a flattened tensor; `kind` is `parameter`."""

    def verify(self) -> None:
        """Look at every byte that there is a digest of.

        Raises:
            CheckError: if a file is missing or damaged.
        """

    def refuse_changed(self) -> None:
        """After `verify` and reading: look again at what was written to since.

        Raises:
            CheckError: if other bytes may have been read than the digests are of.
        """


def open_source(folder: Path, beside: Beside = ALONE) -> Source:
    """What lies in a directory: a checkpoint of ours, or what `export.sources` reads.

    Args:
        beside: where what it lacks is looked for, if it is not ours.
    Raises:
        DataError: if it is nothing that can be exported.
        CheckError: if it is damaged or incomplete.
        ConfigError: if Transformers does not know its model.
    """
    manifest = Manifest.read(folder)
    if manifest is not None and manifest.kind == "checkpoint":
        return Checkpoint(folder)
    return Foreign(folder, beside)
