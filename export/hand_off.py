"""What evaluates an export elsewhere: a config for OpenCompass, a command for lm-evaluation-harness.

Both lie beside the exports, find them by their own place, and hold no path of this machine. Names are those of
OpenCompass 0.5.4 and of lm-evaluation-harness 0.4.13.
"""

import json
import shlex
from typing import Any

from tokenizers import Tokenizer

from export.hf import Model

VERSION = 1
"""Raised whenever the same export gives other bytes."""
LM_EVAL = "lm_eval_hf.sh"
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_ANSWER = 1024  # tokens of an answer at most, as OpenCompass' own configs have it
_OPENCOMPASS_DTYPE = {"bfloat16": "torch.bfloat16", "float16": "torch.float16", "float32": "torch.float"}


def opencompass_name(target: str) -> str:
    """File name of the config for an export."""
    return f"opencompass_{target}.py"


def names() -> list[str]:
    """Every file that an export may leave beside its targets."""
    return [opencompass_name("hf"), opencompass_name("turbomind"), LM_EVAL]


def hand_off(
    model: Model, target: str, *, name: str, tp: int = 1, folder: str | None = None, session_len: int | None = None
) -> dict[str, bytes]:
    """Contents by file name.

    Args:
        target: `hf` or `turbomind`; the directory's name.
        name: of the run, as it appears in results.
        tp: GPUs that TurboMind serves with.
        folder: what is evaluated, where it is not called as the target is.
        session_len: longest text in tokens, where it is not the model's.
    """
    positions = session_len or _positions(model)
    config = _opencompass(model, target, name, tp, folder or target, positions)
    if target == "turbomind":
        return {opencompass_name(target): config}
    return {opencompass_name(target): config, LM_EVAL: _lm_eval(model)}


def _opencompass(model: Model, target: str, name: str, gpus: int, folder: str, positions: int | None) -> bytes:
    answer = min(_ANSWER, positions // 2) if positions else _ANSWER
    keys = [f"abbr={f'{name}-{target}'!r}", f'path=here + "/{folder}"']
    if target == "hf":
        kind = "HuggingFacewithChatTemplate" if model.chats else "HuggingFaceBaseModel"
        dtype = _OPENCOMPASS_DTYPE[model.weights.dtype]
        keys += [f'model_kwargs=dict(device_map="auto", torch_dtype="{dtype}")', "batch_size=8"]
    else:
        kind = "TurboMindModelwithChatTemplate" if model.chats else "TurboMindModel"
        session = f"session_len={positions}, " if positions else ""
        keys += [f"engine_config=dict({session}max_batch_size=16, tp={gpus})"]
        keys += [f"gen_config=dict(do_sample=False, max_new_tokens={answer})", "batch_size=16"]
    if positions:
        keys.append(f"max_seq_len={positions}")
    keys.append(f"max_out_len={answer}")
    if model.chats:
        keys.append(f"stop_words={stop_words(model)!r}")
    keys.append(f"run_cfg=dict(num_gpus={gpus})")
    settings = "".join(f"        {key},\n" for key in [f"type={kind}", *keys])
    followed = "    from opencompass.configs.datasets.IFEval.IFEval_gen import ifeval_datasets\n" if model.chats else ""
    datasets = "[*gsm8k_datasets, *ifeval_datasets]" if model.chats else "gsm8k_datasets"
    text = f'''"""Run with `opencompass {opencompass_name(target)}`. Copy it to change it: an export writes it again."""

from mmengine.config import read_base
from opencompass.models import {kind}

with read_base():
{followed}    from opencompass.configs.datasets.gsm8k.gsm8k_gen import gsm8k_datasets

datasets = {datasets}

os = __import__("os")  # mmengine puts stand-ins in the place of what an import statement names
here = os.path.dirname(os.path.abspath(__file__))
del os

models = [
    dict(
{settings}    ),
]
'''
    return text.encode("utf-8")


def _lm_eval(model: Model) -> bytes:
    positions = _positions(model)
    given = {"pretrained": "./hf", "dtype": model.weights.dtype}
    arguments = [f"{key}={value}" for key, value in given.items()]
    if positions:
        arguments.append(f"max_length={positions}")
    if model.code is not None:
        arguments.append("trust_remote_code=True")
    options = [["--model", "hf"], ["--model_args", ",".join(arguments)]]
    if model.chats:
        options += [["--apply_chat_template"], ["--fewshot_as_multiturn"]]
        options.append(["--gen_kwargs", json.dumps({"until": stop_words(model)}, ensure_ascii=False)])
    options += [["--batch_size", "auto"], ["--output_path", "lm_eval_results"]]
    lines = "".join(f"  {shlex.join(option)} \\\n" for option in options)
    tasks = "gsm8k,ifeval" if model.chats else "gsm8k,hellaswag"
    text = f"""#!/bin/sh
# Run with `sh {LM_EVAL} [TASKS] [OPTIONS OF lm_eval]`. Copy it to change it: an export writes it again.
set -eu
cd "$(dirname "$0")"
tasks=${{1:-{tasks}}}
[ $# -eq 0 ] || shift
lm_eval \\
{lines}  --tasks "$tasks" "$@"
"""
    return text.encode("utf-8")


def stop_words(model: Model) -> list[str]:
    """The tokens that end an answer, as text."""
    tokenizer = Tokenizer.from_str(model.files["tokenizer.json"].decode("utf-8"))
    return [text for id_ in model.special.stop if (text := tokenizer.id_to_token(id_)) is not None]


def _positions(model: Model) -> int | None:
    """Longest text in tokens, prompt and answer together."""
    config: Any = model.config
    return min((int(config[key]) for key in _POSITIONS if config.get(key)), default=None)
