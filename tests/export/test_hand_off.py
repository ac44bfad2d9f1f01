"""Beside the exports lies what evaluates them elsewhere: valid, deterministic, and in the manifest."""

import argparse
import ast
import json
import os
import subprocess
import sys
import types
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from export.chat import Speaker
from export.hand_off import hand_off
from export.hf import Model
from export.run import run
from pipelines.artifacts import Manifest
from pipelines.checkpoints import Checkpoint
from pipelines.probes import Probes
from tests.export.tiny import LLAMA, complete, pipeline, write_run

QUICK = {"greedy_tokens": 0}


def config_of(content: bytes) -> tuple[set[str], dict[str, Any]]:
    """What an OpenCompass config imports, and the keys of its one model; a key's value as its expression."""
    tree = ast.parse(content)
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    models = next(
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "models"
    )
    assert isinstance(models, ast.List)
    (call,) = models.elts
    assert isinstance(call, ast.Call)
    return imported, {str(keyword.arg): ast.unparse(keyword.value) for keyword in call.keywords}


def model_of(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The model of an OpenCompass config as it is run, with stand-ins for what it imports."""
    datasets = "opencompass.configs.datasets"
    stands: dict[str, dict[str, Any]] = {
        "mmengine.config": {"read_base": nullcontext},
        "opencompass.models": {"HuggingFacewithChatTemplate": "hf", "TurboMindModelwithChatTemplate": "turbomind"},
        f"{datasets}.gsm8k.gsm8k_gen": {"gsm8k_datasets": ["gsm8k"]},
        f"{datasets}.IFEval.IFEval_gen": {"ifeval_datasets": ["ifeval"]},
    }
    with monkeypatch.context() as patch:
        for name, values in stands.items():
            for depth in range(name.count(".")):
                parent = ".".join(name.split(".")[: depth + 1])
                patch.setitem(sys.modules, parent, types.ModuleType(parent))
            module = types.ModuleType(name)
            vars(module).update(values)
            patch.setitem(sys.modules, name, module)
        patch.chdir(path.parent)
        found: dict[str, Any] = {"__file__": path.name}
        exec(path.read_text(), found)
    assert found["datasets"] == ["gsm8k", "ifeval"]
    return dict(found["models"][0])


def lm_eval_parser() -> argparse.ArgumentParser:
    """The options of lm-evaluation-harness 0.4.13 that are used here, with its own arities."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--model")
    parser.add_argument("--model_args", nargs="+")
    parser.add_argument("--apply_chat_template", nargs="?", const=True)
    parser.add_argument("--fewshot_as_multiturn", nargs="?", const=True)
    parser.add_argument("--gen_kwargs", nargs="+")
    parser.add_argument("--batch_size")
    parser.add_argument("--output_path")
    parser.add_argument("--tasks", nargs="+")
    parser.add_argument("--limit", type=float)
    return parser


def lm_eval_arguments(script: Path, folder: Path, *arguments: str) -> argparse.Namespace:
    """What the script calls lm_eval with, from another directory."""
    folder.mkdir(exist_ok=True)
    program = folder / "lm_eval"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$PWD" "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    called = subprocess.run(
        ["sh", str(script), *arguments], cwd=folder, env=environment, capture_output=True, check=True
    )
    place, *given = called.stdout.decode().split("\0")[:-1]
    assert Path(place) == script.parent
    return lm_eval_parser().parse_args(given)


def test_an_export_comes_with_what_evaluates_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    home = tmp_path / "work" / "tiny" / "export"
    both = pipeline(tmp_path, targets=["hf", "turbomind"], hf={"dtype": "bfloat16"}, turbomind={"tp": 2}, verify=QUICK)
    run(both)
    beside = ("opencompass_hf.py", "opencompass_turbomind.py", "lm_eval_hf.sh")
    first = {name: (home / name).read_bytes() for name in beside}
    manifest = Manifest.read(home)
    assert manifest is not None
    assert {record.path for record in manifest.files} >= set(beside)
    manifest.verify(home)
    assert not any(str(tmp_path).encode() in content for content in first.values())

    imported, model = config_of(first["opencompass_hf.py"])
    assert "opencompass.models.HuggingFacewithChatTemplate" in imported
    assert model["type"] == "HuggingFacewithChatTemplate"
    assert model["path"] == "here + '/hf'"
    assert (model["stop_words"], model["max_seq_len"], model["max_out_len"]) == ("['<|im_end|>']", "512", "256")
    assert model["model_kwargs"] == "dict(device_map='auto', torch_dtype='torch.bfloat16')"

    imported, model = config_of(first["opencompass_turbomind.py"])
    assert "opencompass.models.TurboMindModelwithChatTemplate" in imported
    assert model["type"] == "TurboMindModelwithChatTemplate"
    assert model["engine_config"] == "dict(session_len=512, max_batch_size=16, tp=2)"
    assert (model["run_cfg"], model["stop_words"]) == ("dict(num_gpus=2)", "['<|im_end|>']")

    for target in ("hf", "turbomind"):
        model = model_of(home / f"opencompass_{target}.py", monkeypatch)
        assert (model["type"], model["path"]) == (target, str(home / target))

    given = lm_eval_arguments(home / "lm_eval_hf.sh", tmp_path / "elsewhere")
    assert given.model_args == ["pretrained=./hf,dtype=bfloat16,max_length=512"]
    assert json.loads(given.gen_kwargs[0]) == {"until": ["<|im_end|>"]}
    assert (given.model, given.apply_chat_template, given.fewshot_as_multiturn) == ("hf", True, True)
    assert given.tasks == ["gsm8k,ifeval"]
    given = lm_eval_arguments(home / "lm_eval_hf.sh", tmp_path / "elsewhere", "mmlu", "--limit", "8")
    assert (given.tasks, given.limit) == (["mmlu"], 8.0)

    (home / "lm_eval_hf.sh").write_text("changed")
    run(both)
    assert {name: (home / name).read_bytes() for name in beside} == first
    assert Speaker(home, 1)  # the config is not taken for code of the model
    run(pipeline(tmp_path, targets=["turbomind"], verify=QUICK))
    assert [name for name in beside if (home / name).exists()] == ["opencompass_turbomind.py"]
    assert Speaker(home, 1), "the weights in TurboMind's form answer as well"


def test_a_model_that_does_not_chat_is_asked_as_it_was_trained(tmp_path: Path) -> None:
    checkpoint, tensors = write_run(tmp_path, LLAMA, probes=Probes())
    (checkpoint / "tokenizer" / "chat_template.jinja").unlink()
    complete(checkpoint, tensors)
    model = Model.of(Checkpoint(checkpoint), "float32")
    files = hand_off(model, "hf", name="it's")
    _, keys = config_of(files["opencompass_hf.py"])
    assert (keys["type"], ast.literal_eval(keys["abbr"])) == ("HuggingFaceBaseModel", "it's-hf")
    assert "stop_words" not in keys
    assert keys["model_kwargs"] == "dict(device_map='auto', torch_dtype='torch.float')"
    assert config_of(hand_off(model, "turbomind", name="x")["opencompass_turbomind.py"])[1]["type"] == "TurboMindModel"
    script = tmp_path / "lm_eval_hf.sh"
    script.write_bytes(files["lm_eval_hf.sh"])
    given = lm_eval_arguments(script, tmp_path / "elsewhere")
    assert (given.apply_chat_template, given.gen_kwargs, given.tasks) == (None, None, ["gsm8k,hellaswag"])
