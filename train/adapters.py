"""An adapter (LoRA) on a model: put in place by PEFT, described for checkpoints and the exporter.

The adapter's layers replace those of the model in place, so that the model keeps its class, its names and everything
that the rest of training asks of it. Only what PEFT marks as trained has gradients, optimizer state and a place in
checkpoints; the model below it is named there by a digest of its files.
"""

import difflib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from pipelines.artifacts import Json
from pipelines.checkpoints import Checkpoint, base_folder, digest_base
from pipelines.errors import CheckError, ConfigError, MachineError
from pipelines.schema import Lora, Pipeline
from train.filling import empty_again
from train.initial import Initial
from train.quantize import is_transposed

ADAPTER = "default"
"""PEFT's name for the only adapter."""


def add_adapter(pipeline: Pipeline, model: PreTrainedModel, initial: Initial | None = None) -> None:
    """Freeze the model and add what [model.lora] asks for; its random part depends on the seed alone.

    Args:
        initial: where the weights of a model come from that does not have them yet.
    Raises:
        ConfigError: if the model has no such modules, or they cannot be adapted.
        MachineError: if PEFT is missing.
    """
    table = pipeline.model.lora
    assert table is not None
    peft = _library()
    _check_modules(pipeline, table, model)
    settings = peft.LoraConfig(**_settings(table), ensure_weight_tying=_saves_tied(table, model))
    torch.manual_seed(pipeline.run.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.inject_adapter_in_model(settings, model, ADAPTER)
    except ValueError as error:
        finding = str(error).strip().splitlines()[0]
        raise ConfigError(f"{pipeline.cite('model.lora.target_modules')}: PEFT refuses it: {finding}") from error
    _check_layers(pipeline, model)
    if initial is not None:
        _start_magnitudes(model, initial)
        empty_again(model, initial)
    model.base_sha256 = base_digest(pipeline)


def is_adapted(model: nn.Module) -> bool:
    """Whether only an adapter is trained."""
    return hasattr(model, "base_sha256")


def adapter_facts(model: Any) -> Json:
    """What the exporter needs to know of the adapter: how each layer adds, and PEFT's own configuration."""
    layers: dict[str, Json] = {}
    for name, module in model.named_modules():
        if _is_lora(module):
            layers[name] = {
                "rank": module.r[ADAPTER],
                "scaling": float(module.scaling[ADAPTER]),
                "transposed": isinstance(module.get_base_layer(), nn.Embedding)
                or bool(getattr(module, "fan_in_fan_out", False))
                or is_transposed(module.get_base_layer()),
                "dora": bool(module.use_dora.get(ADAPTER)),
            }
    config = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in model.peft_config[ADAPTER].to_dict().items()
        if key not in ("base_model_name_or_path", "inference_mode")
    }
    packed = {"four_bits": model.four_bits} if hasattr(model, "four_bits") else {}
    return {"base": {"sha256": model.base_sha256}, "config": config, "layers": layers, **packed}


def check_base(model: Any, checkpoint: Checkpoint) -> None:
    """Refuse to continue an adapter on another model than it was trained on."""
    here = str(model.base_sha256)
    trained_on = checkpoint.adapter["base"]["sha256"]
    if here != trained_on:
        raise CheckError(
            f"{checkpoint.folder}: its adapter was trained on another base (digest {trained_on[:12]} "
            f"there, {here[:12]} here); restore the base, or train with --no-resume to start over"
        )


def base_digest(pipeline: Pipeline) -> str:
    """The digest of the model below the adapter, on every rank; its files are read by one."""
    found: list[Any] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        found = [digest_base(base_folder(pipeline))]
    if dist.is_initialized():
        dist.broadcast_object_list(found, src=0)
    return str(found[0])


def _library() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MachineError(
            "model.lora needs peft, which is not installed here; pip install 'packtrain[train]'"
        ) from error
    return peft


def _settings(table: Lora) -> dict[str, Any]:
    settings = table.model_dump()
    # PEFT's own files have whole numbers there.
    settings["lora_alpha"] = _plain(table.lora_alpha)
    settings["alpha_pattern"] = {key: _plain(value) for key, value in table.alpha_pattern.items()}
    settings["modules_to_save"] = list(table.modules_to_save) or None
    return settings


def _plain(value: float) -> float | int:
    return int(value) if value.is_integer() else value


def _check_modules(pipeline: Pipeline, table: Lora, model: PreTrainedModel) -> None:
    named = dict(model.named_modules())
    asked = [] if isinstance(table.target_modules, str) else table.target_modules
    targets = [name for end in asked for name in _find(pipeline, "target_modules", end, named)]
    saved = [name for end in table.modules_to_save for name in _find(pipeline, "modules_to_save", end, named)]
    for end in (*table.rank_pattern, *table.alpha_pattern):
        _find(pipeline, "rank_pattern" if end in table.rank_pattern else "alpha_pattern", end, named)
    for name in saved:
        if name in targets:
            raise ConfigError(f"{_cite(pipeline, 'modules_to_save')}: {name} is among target_modules; keep one of them")
    if _is_tied(model):
        for name in targets:
            if named[name] in (model.get_input_embeddings(), model.get_output_embeddings()):
                raise ConfigError(
                    f"{_cite(pipeline, 'target_modules')}: {name} serves as embedding and as output matrix, which an "
                    "addition to one of them would tear apart; put it into modules_to_save, or leave it out"
                )


def _find(pipeline: Pipeline, key: str, end: str, named: dict[str, nn.Module]) -> Sequence[str]:
    """The modules whose name ends so."""
    found = [name for name in named if name == end or name.endswith(f".{end}")]
    if not found:
        ends = {name.rsplit(".", 1)[-1] for name in named} - {""}
        close = difflib.get_close_matches(end.rsplit(".", 1)[-1], sorted(e for e in ends if not e.isdigit()), 1)
        linear = {name.rsplit(".", 1)[-1] for name, module in named.items() if isinstance(module, nn.Linear)}
        advice = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(sorted(linear)) or 'no linear layer'}"
        raise ConfigError(f"{_cite(pipeline, key)}: the model has no module {end!r}; {advice}")
    return found


def _check_layers(pipeline: Pipeline, model: nn.Module) -> None:
    for name, module in model.named_modules():
        if _is_lora(module) and isinstance(module.get_base_layer(), nn.Embedding):
            if module.use_dora.get(ADAPTER):
                raise ConfigError(
                    f"{_cite(pipeline, 'target_modules')}: {name} is an embedding, which use_dora does not serve; put "
                    "it into modules_to_save"
                )
        elif _is_lora(module) and not isinstance(module.get_base_layer(), nn.Linear | _conv1d()):
            raise ConfigError(
                f"{_cite(pipeline, 'target_modules')}: {name} is a {type(module.get_base_layer()).__name__}, "
                "which is not supported; name linear layers"
            )


@torch.no_grad()
def _start_magnitudes(model: PreTrainedModel, initial: Initial) -> None:
    """Let DoRA begin with the lengths of the weights, which PEFT measured before they were there."""
    for name, module in model.named_modules():
        if _is_lora(module) and module.use_dora.get(ADAPTER):
            base = module.get_base_layer()
            key = f"{name}.base_layer.weight"
            if key in initial:
                base.weight.data = initial.whole(key, base.weight.shape)
                module.lora_magnitude_vector[ADAPTER].update_layer(
                    base_layer=base,
                    lora_A=module.lora_A[ADAPTER].weight,
                    lora_B=module.lora_B[ADAPTER].weight,
                    scaling=module.scaling[ADAPTER],
                )


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    kind: type[nn.Module] = Conv1D
    return kind


def _is_lora(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer) and ADAPTER in module.r


def _is_tied(model: PreTrainedModel) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _saves_tied(table: Lora, model: PreTrainedModel) -> bool:
    """Whether a matrix that is both embedding and output is trained whole: it has to stay one matrix."""
    if not _is_tied(model):
        return False
    both = {
        name for name, module in model.named_modules()
        if module in (model.get_input_embeddings(), model.get_output_embeddings())
    }  # fmt: skip
    return any(name == end or name.endswith(f".{end}") for end in table.modules_to_save for name in both)


def _cite(pipeline: Pipeline, key: str) -> str:
    return pipeline.cite(f"model.lora.{key}")
