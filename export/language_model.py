"""Plain Transformers models for checking and using an export: loading, and greedy decoding one prompt at a time."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from export.cast import Bits, Dtype
from pipelines.errors import CheckError, ConfigError


def load_folder(folder: Path, *, code: bool = False) -> Any:
    """The model of an exported directory, in the number format it is stored in.

    Args:
        code: whether the Python files in it may run, of a model that has no other class.
    Raises:
        CheckError: if Transformers misses a tensor or finds one too many.
    """
    try:
        with _quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype="auto", local_files_only=True, output_loading_info=True, trust_remote_code=code
            )
    except TypeError as error:
        raise CheckError(
            f"{folder}: Transformers does not load it ({error}); correct the model's generation_config.json"
        ) from error
    _refuse_gaps(info, str(folder))
    return model.eval()


def load_tensors(
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Bits]],
    dtype: Dtype,
    origin: str,
    code: Path | None = None,
) -> Any:
    """A model of that config.json with those weights.

    Args:
        tensors: of which some may be float32 where the others are not.
        code: a directory with the same config.json, and the Python files of the model's class, which then run.
    Raises:
        CheckError: if the weights are not the model's.
        ConfigError: if Transformers does not know the model.
    """
    settings, architecture = model_class(config, origin, code)
    state = {name: as_tensor(bits, dtype if bits.dtype == np.uint16 else "float32") for name, bits in tensors}
    with _quiet():
        model, info = architecture.from_pretrained(
            None, config=settings, state_dict=state, dtype=getattr(torch, dtype), output_loading_info=True
        )
    _refuse_gaps(info, origin)
    return model.eval()


def model_class(config: Mapping[str, Any], origin: str, code: Path | None = None) -> tuple[Any, Any]:
    """The settings and the class of a language model.

    Args:
        code: a directory with the same config.json, and the Python files of the model's class, which then run.
    Raises:
        ConfigError: if Transformers does not know the model, or not such settings of it.
    """
    try:
        if code is None:
            with _quiet():
                settings = AutoConfig.for_model(**PretrainedConfig._decode_special_floats(config))  # such as infinity
            return settings, MODEL_FOR_CAUSAL_LM_MAPPING[type(settings)]
        settings = AutoConfig.from_pretrained(code, local_files_only=True, trust_remote_code=True)
        reference = config["auto_map"]["AutoModelForCausalLM"]
        return settings, get_class_from_dynamic_module(reference, code, local_files_only=True)
    except StrictDataclassError as error:
        finding = str(error.__cause__ or error).strip().splitlines()[0]
        raise ConfigError(f"{origin}: Transformers refuses its config.json ({finding}); correct it") from error
    except (ArithmeticError, AttributeError, TypeError) as error:
        raise _refused(origin, error) from error
    except (ValueError, KeyError) as error:
        raise ConfigError(
            f"{origin}: Transformers {transformers.__version__} has no language model of type {config['model_type']!r}"
        ) from error


def without_numbers(config: Mapping[str, Any], origin: str, code: Path | None = None) -> Any:
    """The model of that config.json on no device, as `model_class` finds its class.

    Raises:
        ConfigError: if Transformers does not know the model, or not such settings of it.
    """
    settings, architecture = model_class(config, origin, code)
    try:
        with torch.device("meta"):
            return architecture._from_config(settings, dtype=torch.float32)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _refused(origin, error) from error


def _refused(origin: str, error: Exception) -> ConfigError:
    finding = f"{type(error).__name__}: {error}"
    return ConfigError(f"{origin}: Transformers refuses its config.json ({finding}); correct it")


def as_tensor(bits: Bits, dtype: Dtype) -> Tensor:
    """Bit patterns as the numbers they are."""
    return torch.from_numpy(bits if bits.flags.c_contiguous else bits.copy()).view(getattr(torch, dtype))


@dataclass(frozen=True)
class Continuation:
    """What a model says after a prompt, taking the most likely token each time."""

    ids: list[int]
    logits: Tensor
    """float32[tokens, vocabulary]: the scores that each of `ids` won with."""


@torch.inference_mode()
def continue_greedily(model: Any, prompt: Sequence[int], tokens: int) -> Continuation:
    """Exactly `tokens` tokens after `prompt`; nothing ends it early."""
    ids: list[int] = []
    scores: list[Tensor] = []
    given, cache = torch.tensor([list(prompt)]), None
    for _ in range(tokens):
        output = model(input_ids=given, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        scores.append(output.logits[0, -1].float())
        ids.append(int(scores[-1].argmax()))
        given = torch.tensor([[ids[-1]]])
    return Continuation(ids, torch.stack(scores) if scores else torch.empty(0, 0))


def _refuse_gaps(info: Any, origin: str) -> None:
    for what, names in info.items():
        if names:
            raise CheckError(
                f"{origin}: Transformers finds {what.replace('_', ' ')}: {', '.join(map(str, sorted(names)))}"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar and the remarks of a library whose findings are checked here anyway."""
    noise = logging.getLogger("transformers")
    level, bars = noise.level, transformers.utils.logging.is_progress_bar_enabled()
    noise.setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        noise.setLevel(level)
        if bars:
            transformers.utils.logging.enable_progress_bar()
