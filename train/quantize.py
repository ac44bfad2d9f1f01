"""The model below an adapter in 4 bits (QLoRA), packed by bitsandbytes while its files are read."""

import hashlib
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from pipelines.artifacts import Json
from pipelines.errors import ConfigError, MachineError
from pipelines.schema import Pipeline
from train.engine import choose_precision
from train.filling import DTYPES


def check_quantization(pipeline: Pipeline) -> None:
    """Refuse what cannot be packed or trained, before any weight is read.

    Raises:
        ConfigError: if the table asks for what is not offered.
        MachineError: if bitsandbytes is missing.
    """
    table = pipeline.model.quantization
    if table is None:
        return
    if pipeline.model.lora is None:
        raise ConfigError(
            f"{pipeline.cite('model.quantization')}: weights of 4 bits cannot be trained; add [model.lora], or remove "
            "the table"
        )
    if not table.load_in_4bit:
        raise ConfigError(f"{pipeline.cite('model.quantization.load_in_4bit')}: has no effect; remove the table")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MachineError(
            "model.quantization needs bitsandbytes, which is not installed here; pip install bitsandbytes"
        )


def packing(pipeline: Pipeline) -> dict[str, Any]:
    """How Transformers has to load a model for its linear layers to be in 4 bits, the rest float32.

    Four bits are kept in elements of the format that is trained in: DeepSpeed casts a model to that format, which
    leaves such elements alone, and ZeRO 3 shares them out like any other parameter.
    """
    table = pipeline.model.quantization
    assert table is not None
    assert pipeline.train is not None
    precision = DTYPES[choose_precision(pipeline.train.precision)]
    compute = table.bnb_4bit_compute_dtype
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=table.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=table.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=precision if compute == "auto" else getattr(torch, compute),
        bnb_4bit_quant_storage=precision,
    )
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": settings, "device_map": {"": device}}


def packed_facts(model: nn.Module) -> Json:
    """How the packed matrices of a model came out, for the exporter to make the same numbers of its files.

    Devices and versions of bitsandbytes round scales differently: the digests say whether one has the same.
    """
    layers = dict(_packed(model))
    one = next(iter(layers.values()))
    with ThreadPoolExecutor() as threads:
        matrices = threads.map(_matrix, layers.values())
    return {
        "type": one.quant_state.quant_type,
        "block": one.quant_state.blocksize,
        "scale_block": one.quant_state.state2.blocksize if one.quant_state.nested else None,
        "compute_dtype": str(one.compute_dtype).removeprefix("torch."),
        "matrices": {f"{name}.weight": found for name, found in zip(layers, matrices, strict=True)},
    }


def refuse_wrong_products(model: nn.Module) -> None:
    """Make sure that what is multiplied with is what was packed, where a processor's own code is known to fail.

    Raises:
        MachineError: naming a matrix.
    """
    tried = set()
    for name, layer in _packed(model):
        state = layer.quant_state
        # bitsandbytes 0.50 takes such matrices on processors with AVX-512 as if every row began a block.
        if layer.weight.device.type == "cpu" and state.shape[-1] % state.blocksize and state.shape not in tried:
            tried.add(state.shape)
            if not torch.equal(_unpacked(layer), _unpacked_plainly(layer)):
                raise MachineError(
                    f"{name}.weight: bitsandbytes unpacks a matrix with {state.shape[-1]} columns wrongly on this "
                    f"processor, as that is no multiple of {state.blocksize}; train on a GPU, or remove "
                    "[model.quantization]"
                )


def _unpacked(layer: Any) -> torch.Tensor:
    from bitsandbytes import functional

    found: torch.Tensor = functional.dequantize_4bit(layer.weight.data, layer.quant_state)
    return found


def _unpacked_plainly(layer: Any) -> torch.Tensor:
    from bitsandbytes import functional

    state, packed = layer.quant_state, layer.weight.data.reshape(-1).view(torch.uint8)
    scales = state.absmax
    if state.nested:
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    levels = state.code[torch.stack([packed >> 4, packed & 15], dim=1).reshape(-1)[: state.shape.numel()].int()]
    found: torch.Tensor = levels * scales.repeat_interleave(state.blocksize)[: levels.numel()]
    return found.view(state.shape)


def is_transposed(layer: nn.Module) -> bool:
    """Whether a packed layer stands for one whose files hold the matrix transposed."""
    from transformers.pytorch_utils import Conv1D

    return _is_packed(layer) and layer.source_cls is Conv1D  # which Transformers notes when it replaces a layer


def _packed(model: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if _is_packed(module))


def _is_packed(module: nn.Module) -> bool:
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    from bitsandbytes.nn import Linear4bit

    return isinstance(module, Linear4bit)


def _matrix(layer: Any) -> Json:
    state = layer.quant_state
    numbers = [layer.weight.data, state.absmax, *([state.state2.absmax] if state.nested else [])]
    digest = hashlib.sha256()
    for tensor in numbers:
        digest.update(tensor.detach().contiguous().view(torch.uint8).cpu().numpy())
    return {
        "sha256": digest.hexdigest(),
        "offset": float(state.offset) if state.nested else None,
        "transposed": is_transposed(layer),
    }


def keep_packed(model: nn.Module) -> None:
    """Leave the packed weights as they are in evaluation, such as in the audit."""
    for module in model.modules():
        # On some CPUs it would pack them anew then, and keep fewer bits of their scales for good.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # of a Linear4bit
