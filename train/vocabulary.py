"""Rows for new tokens: the embedding and the output matrix of a model grown to the vocabulary that prep used.

Each new token begins as the mean of the rows that the tokenizer had before, also where the model has spare rows for it:
those were never trained, and hold what they were drawn as. Rows that only fill up to a multiple begin as the mean too.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pipelines.artifacts import Json
from pipelines.errors import ConfigError, DataError
from pipelines.schema import Pipeline
from train.initial import Initial, Source

BLOCK = 1 << 22
"""Elements read at once."""


@dataclass(frozen=True)
class Growth:
    """What becomes of a matrix with a row for each token."""

    before: int
    """Rows that there are."""
    rows: int
    """Rows that there will be."""
    used: int
    """Rows of the tokenizer's own tokens, which the mean is of."""
    new: range
    """Rows of new tokens."""

    @classmethod
    def of(cls, before: int, prep: Mapping[str, Json], multiple: int) -> "Growth":
        """The growth that a prep output's tokenizer asks for.

        Args:
            before: rows that the model has.
            prep: facts of the prep manifest.
        """
        added = prep.get("added_tokens", {})
        used = int(prep["own_vocab_size"] if added else prep["vocab_size"])
        new = range(used, used + len(added))
        return cls(before, padded(max(before, new.stop if added else 0), multiple), min(used, before), new)

    @property
    def changes(self) -> bool:
        return self.rows != self.before or len(self.new) > 0


def padded(rows: int, multiple: int) -> int:
    """The next multiple."""
    return -(-rows // multiple) * multiple


def grow_vocabulary(pipeline: Pipeline, model: PreTrainedModel, initial: Initial, prep: Mapping[str, Json]) -> None:
    """Give the embedding, and an output matrix of its own, the rows that tokenizer.add_special_tokens and
    tokenizer.pad_vocab_multiple ask for; the model's config follows.

    Args:
        model: without an adapter yet; its parameters may be shells.
        initial: where the values of those come from, and from now on the new rows'.
        prep: facts of the prep manifest.
    Raises:
        ConfigError: if an adapter would not train the new rows, or the model has more that goes by tokens.
        DataError: if the tokenizer had more tokens than the model has rows before any was added.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    growth = Growth.of(int(embedding.weight.shape[0]), prep, pipeline.tokenizer.pad_vocab_multiple)
    is_drawn = pipeline.model.scratch is not None  # with a row for each token, none of which is trained yet
    if not growth.changes or (is_drawn and growth.rows == growth.before):
        return
    _refuse(pipeline, model, growth)
    tied = head is not None and head.weight is embedding.weight
    values: dict[str, Tensor] = {}
    for module, key in [(embedding, "weight"), *([] if head is None else [(head, "weight"), (head, "bias")])]:
        parameter = getattr(module, key, None)
        if parameter is None or (tied and module is head and key == "weight"):
            continue
        names = [name for name, one in model.named_parameters(remove_duplicate=False) if one is parameter]
        stored = next((name for name in names if name in initial), None)
        shape = (growth.rows, *parameter.shape[1:])
        if stored is None:  # the numbers are in the model already
            mean = _mean(parameter.data.reshape(-1), parameter.shape, growth)
            grown = _grown(parameter.data.float().cpu(), mean, growth).to(parameter.device, parameter.dtype)
        else:
            values |= dict.fromkeys(names, _mean(_Read(initial, stored), parameter.shape, growth))
            grown = torch.zeros((), dtype=parameter.dtype).expand(shape)
        setattr(module, key, nn.Parameter(grown, requires_grad=parameter.requires_grad))
    if tied:
        head.weight = embedding.weight
    initial.change(lambda source: GrownRows(source, values, growth))
    _tell(model, growth)


class GrownRows:
    """The values of a model whose matrices with a row for each token have grown."""

    def __init__(self, source: Source, means: Mapping[str, Tensor], growth: Growth) -> None:
        """Grow some of a source's tensors.

        Args:
            means: float32, of the matrices that grow, the row that new ones begin as.
        """
        self._source, self._means, self._growth = source, means, growth

    def names(self) -> set[str]:
        return self._source.names()

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if name not in self._means:
            return self._source.read(name, start, stop)
        mean, growth = self._means[name], self._growth
        width = mean.numel()
        there = growth.before * width
        # Also where nothing of it is wanted: a source may need every rank to ask.
        found = self._source.read(name, min(start, there), min(stop, there)).float()
        values = torch.cat([found, _repeated(mean, max(start, there), max(stop, there))])
        first, last = max(start, growth.new.start * width), min(stop, growth.new.stop * width)
        if first < last:
            values[first - start : last - start] = _repeated(mean, first, last)
        return values


class _Read:
    """A stretch of an initial tensor by slicing."""

    def __init__(self, initial: Initial, name: str) -> None:
        self._initial, self._name = initial, name

    def __getitem__(self, stretch: slice) -> Tensor:
        return self._initial.read(self._name, stretch.start, stretch.stop)


def _mean(flat: Any, shape: torch.Size, growth: Growth) -> Tensor:
    """float32[width]: the mean of the rows in use, the same to the bit wherever it is computed.

    Rows are added one after the other in float64, so no number of threads or blocks decides the order.
    """
    width = int(np.prod(shape[1:], dtype=np.int64))
    total = np.zeros(width)
    step = max(1, BLOCK // width)
    for first in range(0, growth.used, step):
        last = min(first + step, growth.used)
        rows = flat[first * width : last * width].float().cpu().numpy().reshape(-1, width)
        for row in rows:
            total += row
    return torch.from_numpy((total / growth.used).astype(np.float32))


def _grown(matrix: Tensor, mean: Tensor, growth: Growth) -> Tensor:
    grown = torch.cat([matrix, mean.view(1, *matrix.shape[1:]).expand(growth.rows - growth.before, *matrix.shape[1:])])
    grown[growth.new.start : growth.new.stop] = mean.view(matrix.shape[1:])
    return grown


def _repeated(mean: Tensor, start: int, stop: int) -> Tensor:
    """Elements start..stop of a matrix that has the mean in every row."""
    return mean[torch.arange(start, stop) % mean.numel()]


def _tell(model: PreTrainedModel, growth: Growth) -> None:
    """Let modules and config say how many rows there are."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    embedding.num_embeddings = growth.rows
    if head is not None:
        head.out_features = growth.rows
    for one in (model.config, model.config.get_text_config()):
        if hasattr(one, "vocab_size"):
            one.vocab_size = growth.rows
    for module in model.modules():
        if isinstance(getattr(module, "vocab_size", None), int):
            module.vocab_size = growth.rows


def _refuse(pipeline: Pipeline, model: PreTrainedModel, growth: Growth) -> None:
    if growth.new and growth.new.start > growth.before:
        raise DataError(
            f"{pipeline.home / 'prep'}: the tokenizer has {growth.new.start} tokens of its own, but the model embeds "
            f"{growth.before}; prepare the data with the model's tokenizer"
        )
    if growth.rows != growth.before and pipeline.model.scratch is not None:
        raise ConfigError(
            f"{pipeline.cite('model.scratch')}: vocab_size = {growth.before}, but the tokenizer table asks for "
            f"{growth.rows} rows; remove vocab_size, which is then that"
        )
    if other := next(_by_token(model, growth.before), None):
        raise ConfigError(
            f"{pipeline.cite(_asked(growth))}: {model.config.model_type} has {other}, which goes by tokens as well and "
            "is not grown; remove the key"
        )
    if pipeline.model.lora is not None:
        saved = pipeline.model.lora.modules_to_save
        names = [name for name in _matrices(model) if not any(f".{name}".endswith(f".{end}") for end in saved)]
        if names:
            needed = [*saved, *(name.rsplit(".", 1)[-1] for name in names)]
            raise ConfigError(
                f"{pipeline.cite('model.lora.modules_to_save')}: does not name {names[0]}, whose new rows for "
                f"{_asked(growth)} the adapter would not train; set it to {needed}".replace("'", '"')
            )


def _matrices(model: PreTrainedModel) -> list[str]:
    """Names of the embedding and, if it is another matrix, of the output."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    own = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    return [name for name, module in model.named_modules() if any(module is one for one in own)]


def _by_token(model: PreTrainedModel, rows: int) -> Iterator[str]:
    """What else a model looks up by token id."""
    embedding = model.get_input_embeddings()
    per_layer = getattr(model.config.get_text_config(), "vocab_size_per_layer_input", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module is not embedding and module.num_embeddings in (rows, per_layer):
            yield name


def _asked(growth: Growth) -> str:
    return "tokenizer.add_special_tokens" if growth.new else "tokenizer.pad_vocab_multiple"
