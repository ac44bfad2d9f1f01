"""DeepSpeed's own checkpoints: ZeRO 0 to 3 of any number of ranks, read where they lie.

Below a directory with a file `latest` there is one directory for each step, such as `global_step500`:

    mp_rank_00_model_states.pt                    ZeRO 0 to 2: the module's state, rounded, and the shapes
    zero_pp_rank_<rank>_mp_rank_00_model_states.pt  ZeRO 3: the shapes, and each rank's part of what was not trained
    [bf16_]zero_pp_rank_<rank>_mp_rank_00_optim_states.pt  the rank's part of the float32 weights and of the optimizer

ZeRO 1 and 2 lay the trained parameters of a group end to end and cut that into one part a rank. ZeRO 3 cuts every
parameter by itself, padded to a multiple of the ranks, and each rank lays its parts end to end.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.sources.found import Found, stored_format, stored_tensor
from export.sources.stored import Run, StoredTensor, check_cover
from export.sources.torch_file import Record, TensorPlace, load
from pipelines.errors import CheckError, DataError
from pipelines.file_ranges import WIDTH, FileRanges

LATEST = "latest"
_OPTIMIZER = re.compile(r"((?:bf16_|fp16_)?)zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
_REFUSED = {
    r"layer_\d+(-model_\d+)?-model_states\.pt": "is cut over pipeline stages",
    r"(layer_\d+_)?expert_\d+_mp_rank_\d+_model_states\.pt": "holds experts in files of their own",
    r"expp_rank_\d+_mp_rank_\d+_optim_states\.pt": "is cut over expert-parallel ranks",
}
_STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}
Shapes = list[dict[str, tuple[int, ...]]]


def step_folder(folder: Path) -> Path | None:
    """The directory of a step's files, `folder` itself or the one that its file `latest` names; None if there is none.

    Raises:
        CheckError: if the one that `latest` names is not there.
    """
    if any(folder.glob("*_states.pt")):
        return folder
    latest = folder / LATEST
    if not latest.is_file():
        return None
    inner = folder / latest.read_text(encoding="utf-8", errors="replace").strip()
    if inner.parent != folder or not any(inner.glob("*_states.pt")):
        raise CheckError(f"{inner}: {latest} names it, and there are no *_states.pt; copy the checkpoint again")
    return inner


def find(folder: Path) -> Found | None:
    """The checkpoint in a directory, None if there is none of this kind.

    Raises:
        CheckError: if it is incomplete or damaged.
        DataError: if it is cut in a way that is not read.
    """
    inner = step_folder(folder)
    if inner is None:
        return None
    names = sorted(path.name for path in inner.iterdir())
    _refuse_other_cuts(inner, names)
    beside = (folder, inner) if inner != folder else (folder, folder.parent)
    ranks = _ranks(inner, names)
    if not ranks:
        return _unsharded(inner, beside)
    states = [_optimizer_state(path) for path in ranks]
    stage = _stage(ranks[0], states[0])
    _check_ranks(inner, ranks, states, stage)
    models = [_model_state(path) for path in _model_files(inner, stage, len(ranks))]
    _check_steps(ranks, states, [int(model.get("global_steps") or 0) for model in models])
    tensors = dict(_module_tensors(inner, models[0])) | dict(_frozen(inner, models, stage))
    if is_dealt(models[0], len(ranks)):
        states = [{**state, "param_slice_mappings": None} for state in states]  # where they would be if not dealt
    cut = _by_parameter if stage == 3 else _by_group
    tensors |= cut(inner, ranks, states, _shapes(inner, models[0]))
    for name, tensor in tensors.items():
        check_cover(inner, name, tensor)
    return _found(f"DeepSpeed ZeRO {stage} of {len(ranks)} ranks", tensors, beside, models[0])


def _found(what: str, tensors: Mapping[str, StoredTensor], beside: tuple[Path, ...], model: Mapping[str, Any]) -> Found:
    aliases = {other: name for other, name in (model.get("shared_params") or {}).items() if name in tensors}
    once = {name: tensor for name, tensor in tensors.items() if name not in aliases}
    return Found(what, once, beside, step=int(model.get("global_steps") or 0), aliases=aliases)


def module_of(inner: Path) -> tuple[dict[str, StoredTensor], Mapping[str, Any]]:
    """The module's state as far as it is whole, rounded as it was trained with, and all that its file holds."""
    path = next((path for path in sorted(inner.glob("*_model_states.pt")) if _MODEL.fullmatch(path.name)), None)
    if path is None:
        return {}, {}
    model = _model_state(path)
    return dict(_module_tensors(inner, model)), model


def is_dealt(model: Mapping[str, Any], ranks: int) -> bool:
    """Whether ZeRO 1 or 2 dealt a group's parameters out to the ranks in turn (round_robin_gradients).

    The shapes are in that order then. DeepSpeed (0.19.8) notes the ranks' addresses as if they were not, and its
    ds_to_universal goes by those.
    """
    config = model.get("ds_config")  # a path where the trainer was given one
    zero = config.get("zero_optimization") if isinstance(config, dict) else None
    said = isinstance(zero, dict) and bool(zero.get("round_robin_gradients")) and zero.get("stage") in (1, 2)
    for group in model.get("param_shapes") or []:
        order = [name for name in model["module"] if name in group]
        in_turn = [name for rank in range(ranks) for name in order[rank::ranks]]
        if list(group) != order and (said or list(group) == in_turn):
            return True
    return False


def _refuse_other_cuts(inner: Path, names: Sequence[str]) -> None:
    for pattern, finding in _REFUSED.items():
        if other := next((name for name in names if re.fullmatch(pattern, name)), None):
            raise DataError(f"{inner / other}: the checkpoint {finding}, which is not read; gather it with DeepSpeed")
    for name in names:
        found = _OPTIMIZER.fullmatch(name) or _MODEL.fullmatch(name)
        if found and int(found[found.re.groups]) > 0:
            raise DataError(
                f"{inner / name}: the checkpoint is cut over tensor-parallel ranks, which is not read; make a "
                "universal checkpoint of it with DeepSpeed's ds_to_universal and name that"
            )


def _ranks(inner: Path, names: Sequence[str]) -> list[Path]:
    """The ranks' optimizer files in order; empty for ZeRO 0."""
    found = [match for name in names if (match := _OPTIMIZER.fullmatch(name))]
    prefixes = sorted({match[1] for match in found})
    if len(prefixes) > 1:
        raise CheckError(f"{inner}: holds files with and without {prefixes[1]!r}, so of two runs; remove one's")
    by_rank = {int(match[2]): inner / match[0] for match in found}
    for rank in range(len(by_rank)):
        if rank not in by_rank:
            raise _missing(inner, f"{prefixes[0]}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return [by_rank[rank] for rank in sorted(by_rank)]


def _missing(inner: Path, name: str) -> CheckError:
    return CheckError(f"{inner / name}: missing, and holds a part of every weight; copy it as well")


def _optimizer_state(path: Path) -> dict[str, Any]:
    content = load(path)
    state = content.get("optimizer_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckError(f"{path}: has no optimizer_state_dict, so is not of DeepSpeed; copy the checkpoint again")
    return state


def _model_state(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise _missing(path.parent, path.name)
    content = load(path)
    if not isinstance(content, dict) or "module" not in content:
        raise CheckError(f"{path}: holds no module, so is not of DeepSpeed; copy the checkpoint again")
    if content.get("ds_autoep_layers") or content.get("autoep_layers"):
        raise DataError(f"{path}: the checkpoint is cut over expert-parallel ranks, which is not read")
    return content


def _stage(path: Path, state: Mapping[str, Any]) -> int:
    said = state.get("zero_stage", 1)  # the optimizer for bfloat16 alone says nothing, and cuts as ZeRO 1 does
    said = said.args[0] if isinstance(said, Record) else said
    stage = _STAGES.get(said, said) if isinstance(said, str) else said
    if stage not in (1, 2, 3):
        raise DataError(f"{path}: of ZeRO stage {said!r}; 0 to 3 are read")
    return int(stage)


def _check_ranks(inner: Path, ranks: Sequence[Path], states: Sequence[Mapping[str, Any]], stage: int) -> None:
    for path, state in zip(ranks, states, strict=True):
        counts = state.get("partition_count")
        counts = list(counts) if isinstance(counts, list | tuple) else [counts]
        if len(set(counts)) > 1:
            raise DataError(f"{path}: experts are cut over fewer ranks than the rest, which is not read")
        count = counts[0]
        if count != len(ranks):
            missing = len(ranks) if isinstance(count, int) and count > len(ranks) else None
            if missing is not None:
                raise _missing(inner, re.sub(r"rank_\d+", f"rank_{missing}", path.name, count=1))
            raise CheckError(
                f"{path}: was saved by {count} ranks, but files of {len(ranks)} lie here; remove those of the other run"
            )
        if _stage(path, state) != stage:
            raise CheckError(f"{path}: of another ZeRO stage than rank 0's; the files are not of one run")
        if stage == 3 and state.get("ds_zero_partition_groups"):
            raise DataError(f"{path}: experts are cut over fewer ranks than the rest, which is not read")


def _model_files(inner: Path, stage: int, ranks: int) -> list[Path]:
    if stage == 3:
        return [inner / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(ranks)]
    return [inner / "mp_rank_00_model_states.pt"]


def _check_steps(ranks: Sequence[Path], states: Sequence[Mapping[str, Any]], steps: Sequence[int]) -> None:
    """Files of different steps can be told by the steps that the optimizer counted, and those of the model files."""
    ranges = FileRanges()
    counted = [_optimizer_steps(state, ranges) for state in states]
    for path, count in zip(ranks, counted, strict=True):
        if count is not None and counted[0] is not None and count != counted[0]:
            raise CheckError(
                f"{path}: of optimizer step {count}, rank 0's is of {counted[0]}; copy the checkpoint again"
            )
    for rank, step in enumerate(steps):
        if step != steps[0]:
            raise CheckError(
                f"{ranks[rank].parent}: rank {rank}'s model states are of step {step}, rank 0's of {steps[0]}; copy "
                "the checkpoint again"
            )


def _optimizer_steps(state: Mapping[str, Any], ranges: FileRanges) -> int | None:
    base = state.get("base_optimizer_state", state.get("optimizer_state_dict"))
    kept = base.get("state", {}) if isinstance(base, dict) else base
    found = list(kept.values()) if isinstance(kept, dict) else kept if isinstance(kept, list) else []
    said = next((one["step"] for one in found if isinstance(one, dict) and "step" in one), None)
    if isinstance(said, TensorPlace):
        if said.size != 1 or said.dtype not in ("float32", "int64", "int32"):
            return None
        number = np.empty(1, np.dtype(said.dtype))
        ranges.read_bytes(said.storage.path, said.first, number)
        return int(number[0])
    return said if isinstance(said, int) else None


def _shapes(inner: Path, model: Mapping[str, Any]) -> Shapes:
    groups = model.get("param_shapes")
    if not isinstance(groups, list):
        raise CheckError(f"{inner}: its model states name no shapes of parameters; copy the checkpoint again")
    return [{name: tuple(shape) for name, shape in group.items()} for group in groups]


def _module_tensors(inner: Path, model: Mapping[str, Any]) -> Iterator[tuple[str, StoredTensor]]:
    module = model["module"]
    if not isinstance(module, dict):
        raise DataError(
            f"{inner}: its model states hold no module's state (a pipeline's, for instance), which is not read"
        )
    for name, place in module.items():
        # ZeRO 3 leaves empty tensors where a rank has only a part.
        if isinstance(place, TensorPlace) and place.size and place.dtype in WIDTH:
            yield name, stored_tensor(name, place)


def _frozen(inner: Path, models: Sequence[Mapping[str, Any]], stage: int) -> Iterator[tuple[str, StoredTensor]]:
    """What was not trained, in the format that it was computed with."""
    shapes = models[0].get("frozen_param_shapes") or {}
    for name, shape in shapes.items():
        held = [(model.get("frozen_param_fragments") or {}).get(name) for model in models]
        parts = [part for part in held if isinstance(part, TensorPlace)]
        if len(parts) < len(models):
            raise CheckError(f"{inner}: {name} was not trained, and a rank's part of it is missing; copy it again")
        if stage < 3:
            yield name, StoredTensor(tuple(shape), stored_tensor(name, parts[0]).pieces)
            continue
        share = -(-math.prod(shape) // len(parts))
        runs = [run for rank, part in enumerate(parts) for run in _runs(name, [part], 0, share, rank * share, shape)]
        yield name, StoredTensor(tuple(shape), runs)


def _by_parameter(
    inner: Path, ranks: Sequence[Path], states: Sequence[Mapping[str, Any]], shapes: Shapes
) -> dict[str, StoredTensor]:
    """ZeRO 3: each rank's part of every parameter, padded."""
    parts = [_places(path, state, "fp32_flat_groups") for path, state in zip(ranks, states, strict=True)]
    found, offset = {}, 0
    for name, shape in (item for group in shapes for item in group.items()):
        share = -(-math.prod(shape) // len(ranks))
        runs = [run for rank, own in enumerate(parts) for run in _runs(name, own, offset, share, rank * share, shape)]
        found[name] = StoredTensor(shape, runs)
        offset += share
    for path, own in zip(ranks, parts, strict=True):
        if (held := sum(place.size for place in own)) != offset:
            raise CheckError(
                f"{path}: holds {held:,} weights, the shapes in {inner.name} ask for {offset:,}; the files are not of "
                "one run"
            )
    return found


def _by_group(
    inner: Path, ranks: Sequence[Path], states: Sequence[Mapping[str, Any]], shapes: Shapes
) -> dict[str, StoredTensor]:
    """ZeRO 1 and 2: a group's parameters end to end, cut into the ranks' parts."""
    parts = [_places(path, state, "single_partition_of_fp32_groups") for path, state in zip(ranks, states, strict=True)]
    gaps = states[0].get("param_alignment_paddings")
    found: dict[str, StoredTensor] = {}
    for path, own in zip(ranks, parts, strict=True):
        if len(own) != len(shapes):
            raise CheckError(
                f"{path}: holds {len(own)} groups of weights, the shapes in {inner.name} are of {len(shapes)}; the "
                "files are not of one run"
            )
    for index, group in enumerate(shapes):
        line = [own[index] for own in parts]
        held, offset = sum(place.size for place in line), 0
        for number, (name, shape) in enumerate(group.items()):
            size = math.prod(shape)
            found[name] = StoredTensor(shape, list(_runs(name, line, offset, size, 0, shape)))
            _check_addresses(inner, ranks, states, index, name, offset, size, line)
            gap = gaps[index][number] if gaps and index < len(gaps) else 0
            if gap < 0:
                raise CheckError(f"{ranks[0]}: has {gap} numbers behind {name}; copy it again")
            offset += size + gap
        align = 2 * len(ranks)  # what is cut is a multiple of this
        if -(-offset // align) != -(-held // align):
            raise CheckError(
                f"{inner}: the ranks hold {held:,} weights of group {index}, the shapes ask for {offset:,}; the files "
                "are not of one run"
            )
    return found


def _check_addresses(
    inner: Path,
    ranks: Sequence[Path],
    states: Sequence[Mapping[str, Any]],
    group: int,
    name: str,
    offset: int,
    size: int,
    line: Sequence[TensorPlace],
) -> None:
    """Newer checkpoints also say where each rank's part of a parameter begins; it has to be where it is looked for."""
    begin = 0
    for path, state, place in zip(ranks, states, line, strict=True):
        first, last = max(offset, begin), min(offset + size, begin + place.size)
        said = state.get("param_slice_mappings")
        address = said[group].get(name) if isinstance(said, list) and group < len(said) else None
        if isinstance(address, Record) and isinstance(address.state, dict) and first < last:
            there = (address.state.get("start"), address.state.get("numel"))
            if there != (first - begin, last - first):
                raise CheckError(
                    f"{path}: says that {name} begins at {there[0]} and has {there[1]} numbers there, the shapes in "
                    f"{inner.name} ask for {first - begin} and {last - first}; the files are not of one run"
                )
        begin += place.size


def _places(path: Path, state: Mapping[str, Any], key: str) -> list[TensorPlace]:
    found = state.get(key)
    if not isinstance(found, list) or not all(isinstance(one, TensorPlace) for one in found):
        raise CheckError(f"{path}: has no {key}, the float32 weights; copy the checkpoint again")
    return found


def _runs(
    name: str, line: Sequence[TensorPlace], offset: int, size: int, start: int, shape: Sequence[int]
) -> Iterator[Run]:
    """Numbers offset..offset + size of tensors laid end to end, as elements from `start` of one of `shape`."""
    size = min(size, math.prod(shape) - start)  # what is beyond its end is padding
    begin = 0
    for place in line:
        first, last = max(offset, begin), min(offset + size, begin + place.size)
        if first < last:
            stored = stored_format(place.storage.path, name, place.dtype)
            at = place.first + (first - begin) * WIDTH[stored]
            yield Run(place.storage.path, at, stored, start + first - offset, last - first)
        begin += place.size


def _unsharded(inner: Path, beside: tuple[Path, ...]) -> Found:
    """ZeRO 0: the module's state is all there is."""
    files = Counter(match[1] for path in inner.iterdir() if (match := _MODEL.fullmatch(path.name)))
    if files.keys() - {None}:
        raise _missing(inner, "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    path = inner / "mp_rank_00_model_states.pt"
    model = _model_state(path)
    if model.get("param_shapes"):
        raise _missing(inner, "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return _found("DeepSpeed ZeRO 0", dict(_module_tensors(inner, model)), beside, model)
