"""Code that comes with a model or a tokenizer runs only where the pipeline asks for it, and a hub's only by commit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from export.chat import chat
from export.run import run as export
from pipelines.cli import main
from pipelines.errors import DataError
from tests.export.tiny import pipeline, write_run
from tests.hostile.process import packtrain
from tests.prep.folders import byte_level
from tests.prep.small import conversations

TOML = """
schema_version = 1
[run]
name = "r"
[model]
name_or_path = "{model}"
{more}
[[prep.source]]
name = "a"
path = "data"
[prep.pack]
capacity = 128
[prep.order]
mode = "write"
[train]
global_batch_size = 2
max_steps = 1
[train.optimizer]
lr = 0.001
"""
MODULES = ("configuration_mine", "modeling_mine", "tokenization_mine")


def hostile_model(folder: Path, model_type: str) -> Path:
    """A model whose every Python file would leave a mark beside it."""
    byte_level(folder, config={"chat_template": "{{ messages }}", "tokenizer_class": "MyTokenizer"})
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    code = {"AutoConfig": "configuration_mine.C", "AutoModelForCausalLM": "modeling_mine.M"}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 600}
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "auto_map": code, **sizes}))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["auto_map"] = {"AutoTokenizer": ["tokenization_mine.T", "tokenization_mine.T"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["mine", "llama"])
def test_no_command_runs_code_that_it_was_not_told_to(tmp_path: Path, model_type: str) -> None:
    model = hostile_model(tmp_path / "model", model_type)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(conversations(9))
    file = tmp_path / "run.toml"
    file.write_text(TOML.format(model=model, more=""))
    for command in ("check", "prep", "train"):
        done = packtrain(command, file, cwd=tmp_path)
        assert "Traceback" not in done.err, (command, done.err)
        assert not (model / "ran").exists(), command


def test_a_hubs_code_needs_a_commit(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    more = 'source = "huggingface"\ntrust_remote_code = true\nrevision = "main"'
    file.write_text(TOML.format(model="org/name", more=more))
    said = CliRunner().invoke(main, ["check", str(file)])
    assert said.exit_code == 2
    assert "trust_remote_code" in said.output + said.stderr
    assert "commit" in said.output + said.stderr


def test_chat_runs_no_code_of_a_model_and_asks_for_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    write_run(tmp_path)
    export(pipeline(tmp_path, targets=["hf"]))
    folder = tmp_path / "work" / "tiny" / "export" / "hf"
    (folder / "manifest.json").unlink()  # as somebody else's
    shutil.copytree(folder, tmp_path / "bare")
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    config |= {"auto_map": {"AutoTokenizer": [None, "elsewhere/repository--tokenization.T"]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    try:
        chat(folder, prompt="hi", max_new_tokens=1)  # by tokenizer.json, or not at all
    except DataError as error:
        assert "without running code" in str(error)  # noqa: PT017 (either is right)
    (tmp_path / "bare" / "tokenization.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match="code of its own, which chat does not run"):
        chat(tmp_path / "bare", prompt="hi")
