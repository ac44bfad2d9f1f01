"""Secrets of the environment and of the command line are in no file of a run and in nothing that a command prints."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from tests.prep.small import TOKENIZER, conversations

ROOT = Path(__file__).parents[1]
CANARY = "CANARY7f3a91c2e64b5d08"
WRITTEN = "WRITTEN58d0c3e7a1f4962b"
"""What no variable holds, but somebody writes where no secret belongs."""
ENVIRONMENT = {
    "HF_TOKEN": f"hf_{CANARY}",
    "HUGGING_FACE_HUB_TOKEN": f"hf_{CANARY}",
    "WANDB_API_KEY": CANARY * 2,
    "SWANLAB_API_KEY": CANARY,
    "AWS_SECRET_ACCESS_KEY": CANARY,
    "OUR_TOKEN": CANARY,
    "OUR_PASSWORD": CANARY,
    "HTTPS_PROXY": f"http://me:{CANARY}@127.0.0.1:9",
    "HTTP_PROXY": f"http://me:{CANARY}@127.0.0.1:9",
    "NO_PROXY": "127.0.0.1,localhost",
    "HUB_ADDRESS": f"http://me:{CANARY}@127.0.0.1:9",
}
TOML = """\
schema_version = 1
[run]
name = "small"
[tokenizer]
name_or_path = "tokenizer"
[model.scratch]
model_type = "llama"
vocab_size = 576
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 128
[[prep.source]]
name = "s"
path = "s.jsonl"
[prep.pack]
capacity = 128
[train]
global_batch_size = 2
max_steps = 2
precision = "fp32"
optimizer.lr = 1e-3
[export]
targets = ["hf"]
"""
HUB = """\
schema_version = 1
[run]
name = "hub"
[model]
name_or_path = "org/name"
source = "huggingface"
source_args = { token_env = "OUR_TOKEN", endpoint_env = "HUB_ADDRESS", cache_dir = "${env:CACHE}" }
[[prep.source]]
name = "s"
path = "s.jsonl"
[prep.pack]
capacity = 128
"""
STEPS = """
order write small.toml
check small.toml
prep small.toml
plan small.toml
train small.toml
export small.toml
report small.toml
verify work/small
preview small.toml --json
env --json
"""


WHOLE = ("prep small.toml", "train small.toml", "export small.toml")
"""The stages, in processes of their own."""
REFUSED = (
    (5, ["fetch", "hub.toml"]),  # nobody listens at the address, and the library may say which it was
    (2, ["check", "small.toml", "--set", f'model.hf_token="{WRITTEN}"']),
    (2, ["check", "hub.toml", "--set", f'model.source_args.token="{WRITTEN}"']),
    (2, ["check", "hub.toml", "--set", f'model.name_or_path="https://me:{WRITTEN}@hub.example/org/name"']),
    (2, ["prep", "small.toml", "--set", f"model.api_key={WRITTEN}"]),
    (3, ["verify", f"https://me:{WRITTEN}@hub.example/run"]),
)


@pytest.mark.slow
def test_no_secret_is_in_a_file_or_in_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {**ENVIRONMENT, "PYTHONPATH": str(ROOT), "CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tokenizer").symlink_to(TOKENIZER)
    (tmp_path / "s.jsonl").write_text(conversations(60))
    (tmp_path / "small.toml").write_text(TOML)
    (tmp_path / "hub.toml").write_text(HUB)
    for line in STEPS.strip().splitlines():
        code, said = packtrain(line.split(), own_process=line in WHOLE)
        assert code == 0, (line, said)
    for wanted, arguments in REFUSED:
        code, said = packtrain(arguments)
        assert code == wanted, (arguments, said)
        assert said.strip()
    assert not holds_secret("".join(capfd.readouterr()))
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {"run.json", "manifest.json", "metrics.jsonl", "report.html"} <= {path.name for path in written}
    assert [path for path in written if holds_secret(path.read_bytes().decode("latin-1"))] == []


def holds_secret(text: str) -> bool:
    return CANARY in text or WRITTEN in text


def packtrain(arguments: list[str], *, own_process: bool = False) -> tuple[int, str]:
    """The exit code of a command, and all that it printed, in which no secret is."""
    if own_process:
        command = [sys.executable, "-m", "pipelines", *arguments]
        answer = subprocess.run(command, stdout=-1, stderr=subprocess.STDOUT, text=True)
        code, said = answer.returncode, answer.stdout
    else:
        result = CliRunner().invoke(main, arguments)
        code, said = result.exit_code, result.output
    assert not holds_secret(said), (arguments, said)
    return code, said
