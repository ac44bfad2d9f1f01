"""Tensors of other trainers under the names that the model's class has for them.

Trainers put a wrapper's name before a parameter's, and models are stored under other names than Transformers 5 trains
them by. Both namings are those of the class itself, built without numbers from config.json; a prefix goes only where
what is left is a name of the class.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from export.sources.found import Found
from export.sources.stored import StoredTensor
from pipelines.errors import CheckError, ConfigError, DataError

Shape = tuple[int, ...]
_WRAPPERS = ("module.", "model.", "app.", "state_dict.", "state.", "net.")
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_ADAPTER = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(\.|$)|(^|\.)base_model\.model\.")
_NAMED = 3  # names listed in a message


@dataclass(frozen=True)
class Naming:
    """The tensors of a model under one set of names."""

    shapes: Mapping[str, Shape]
    """Every parameter and persistent buffer, each tied one once."""
    tied: Mapping[str, str]
    """Other name -> name in `shapes`."""
    ignored: Sequence[str] = ()
    """Patterns of what the class leaves unread where it is stored."""


@dataclass(frozen=True)
class Named:
    """A checkpoint's tensors, in the order of the model's."""

    tensors: Mapping[str, StoredTensor]
    tied: Mapping[str, str]
    twice: Sequence[tuple[str, StoredTensor, StoredTensor]] = field(default=())
    """Tied tensors that are stored under both names."""


def namings(config: Mapping[str, Any], folder: Path, code: Path | None = None) -> list[Naming]:
    """The names that a model is trained by, and those that it is stored under where they differ.

    Args:
        config: config.json.
        code: a directory with the same config.json, and the Python files of the model's class, which then run.
    Raises:
        ConfigError: if Transformers does not know the model.
    """
    from transformers.core_model_loading import revert_weight_conversion  # an export that is current need not wait

    from export.language_model import without_numbers
    from export.published import Joined, Region

    model = without_numbers(config, str(folder), code)
    once = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    tied = {name: first[id(parameter)] for name, parameter in every if name not in once}
    buffers = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in once | tied}
    ignored = tuple(model._keys_to_ignore_on_load_unexpected or ())
    trained = Naming(once | buffers, tied, ignored)
    try:
        regions = {name: Region.whole(name, shape) for name, shape in trained.shapes.items()}
        found: dict[str, Region | Joined] = revert_weight_conversion(model, regions)
    except NotImplementedError:
        return [trained]
    published = Naming({name: tensor.shape for name, tensor in found.items()}, tied, ignored)
    return [trained] if published.shapes == trained.shapes else [trained, published]


def named(folder: Path, found: Found, choices: Sequence[Naming]) -> Named:
    """The tensors under the names of one of `choices`, the one that fits best.

    Raises:
        CheckError: if one is missing, of another shape, or not the model's.
        DataError: if they are those of an adapter.
    """
    _refuse_adapter(folder, found)
    plain = {_INSIDE.sub("", name): tensor for name, tensor in found.tensors.items()}
    if len(plain) < len(found.tensors):
        raise CheckError(f"{folder}: two tensors have one name but for the wrappers'; name another checkpoint")
    naming, prefix = max(
        ((naming, prefix) for naming in choices for prefix in _prefixes(plain)),
        key=lambda choice: _hits(plain, choice[0], choice[1]),
    )
    own = {name.removeprefix(prefix): tensor for name, tensor in plain.items() if name.startswith(prefix)}
    outside = [] if found.more else [name for name in plain if not name.startswith(prefix)]
    others = [name for name in own if name not in naming.shapes and name not in naming.tied]
    for name in found.unread:
        if _INSIDE.sub("", name).removeprefix(prefix) in naming.shapes.keys() | naming.tied.keys():
            raise DataError(f"{found.unread[name]}; only float32, bfloat16 and float16 are read, cast it first")
    unknown = [name for name in (*others, *outside, *found.unread) if not _is_ignored(name, naming)]
    aliases = {
        _INSIDE.sub("", other).removeprefix(prefix): _INSIDE.sub("", name).removeprefix(prefix)
        for other, name in found.aliases.items()
    }
    tensors = {name: tensor for name in naming.shapes if (tensor := _looked_up(name, own, naming, aliases)) is not None}
    _refuse_gaps(folder, naming, tensors, unknown)
    shaped = {name: _shaped(folder, name, tensor, naming.shapes[name], found) for name, tensor in tensors.items()}
    twice = [(name, own[other], shaped[name]) for other, name in naming.tied.items() if other in own and name in own]
    return Named(shaped, naming.tied, twice)


def _refuse_adapter(folder: Path, found: Found) -> None:
    name = next((name for name in found.tensors if _ADAPTER.search(name)), None)
    if name is not None:
        raise DataError(
            f"{folder}: holds {name}, so an adapter, whose scaling and base only its trainer knows; merge it "
            "there first"
        )


def _prefixes(names: Mapping[str, object]) -> list[str]:
    """What may stand before the names of the class, the shortest first."""
    found = {""}
    for name in names:
        prefix = ""
        while wrapper := next((one for one in _WRAPPERS if name.startswith(prefix + one)), None):
            prefix += wrapper
            found.add(prefix)
    return sorted(found, key=lambda prefix: (len(prefix), prefix))


def _hits(names: Mapping[str, object], naming: Naming, prefix: str) -> int:
    return sum(prefix + name in names for name in naming.shapes)


def _is_ignored(name: str, naming: Naming) -> bool:
    return name.endswith("rotary_emb.inv_freq") or any(re.search(pattern, name) for pattern in naming.ignored)


def _looked_up(
    name: str, own: Mapping[str, StoredTensor], naming: Naming, aliases: Mapping[str, str]
) -> StoredTensor | None:
    """A tensor by its name, by another name of the same tensor in the class, or by what the files say of it."""
    others = [other for other, first in naming.tied.items() if first == name]
    return next((own[one] for one in (name, *others, aliases.get(name, "")) if one in own), None)


def _refuse_gaps(folder: Path, naming: Naming, tensors: Mapping[str, object], unknown: Sequence[str]) -> None:
    missing = [name for name in naming.shapes if name not in tensors]
    findings = [f"{what}: {_listed(names)}" for what, names in (("missing", missing), ("unknown", unknown)) if names]
    if findings:
        raise CheckError(
            f"{folder}: not the weights of the model that config.json describes, {'; '.join(findings)}; "
            "put its own config.json there"
        )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shaped(folder: Path, name: str, tensor: StoredTensor, shape: Shape, found: Found) -> StoredTensor:
    if tensor.shape == shape:
        return tensor
    if found.flat and len(tensor.shape) == 1 and tensor.size == prod(shape):
        return StoredTensor(shape, tensor.pieces)
    raise CheckError(
        f"{folder}: {name} is {list(tensor.shape)}, the model that config.json describes has {list(shape)}; put its "
        "own config.json there"
    )


def refuse_code(config: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError where a model's class is code of its own, and such code may not run."""
    if "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        raise ConfigError(
            f"{folder}: of a model with code of its own, {config['auto_map']['AutoModelForCausalLM']}, which names its "
            "tensors; set model.trust_remote_code to true if you trust it"
        )
