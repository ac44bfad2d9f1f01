"""Code that a model brings runs where it was asked for, and nowhere else."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from export.chat import chat
from export.run import run as export
from pipelines.artifacts import FileRecord, Manifest
from pipelines.errors import ConfigError, DataError
from pipelines.schema import Pipeline
from tests.export.tiny import write_tokenizer
from tests.train.runs import checkpoints, pipeline, write_prep
from train.attention import PackedAttention
from train.model import build_model, exported_config
from train.plan import Plan
from train.run import run

SIZES: dict[str, Any] = {
    "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
PREP = {"vocab_size": 259, "max_token_id": 258}
CODE = """from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM

Path({marker!r}).touch()


class OurConfig(LlamaConfig):
    model_type = {kind!r}


class OurModel(LlamaForCausalLM):
    config_class = OurConfig
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def written(folder: Path, kind: str) -> Path:
    """A model directory whose config names code of its own; returns the marker that its import leaves."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder / "model")
    config = json.loads((folder / "model" / "config.json").read_text())
    names = {"AutoConfig": "modeling_our.OurConfig", "AutoModelForCausalLM": "modeling_our.OurModel"}
    (folder / "model" / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": names}))
    marker = folder / "it-ran"
    (folder / "model" / "modeling_our.py").write_text(CODE.format(marker=str(marker), kind=kind))
    return marker


def settings(folder: Path, *, trusted: bool, **train: Any) -> Pipeline:
    return pipeline(
        folder, model={"name_or_path": str(folder / "model"), "trust_remote_code": trusted}, max_steps=1, **train
    )


def test_a_known_type_loads_as_transformers_has_it_and_no_code_runs(tmp_path: Path) -> None:
    PackedAttention("sdpa").register()
    marker = written(tmp_path, "llama")
    model = build_model(settings(tmp_path, trusted=False), PREP)
    assert type(model) is LlamaForCausalLM
    assert "auto_map" not in json.loads(exported_config(model))
    assert not marker.exists()


def test_an_unknown_type_is_refused_and_no_code_runs(tmp_path: Path) -> None:
    marker = written(tmp_path, "our-llama")
    with pytest.raises(
        ConfigError, match="no our-llama models, and code that a model brings is not run; read it, then"
    ):
        build_model(settings(tmp_path, trusted=False), PREP)
    assert not marker.exists()


def test_trusted_code_of_another_repository_is_refused(tmp_path: Path) -> None:
    marker = written(tmp_path, "our-llama")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace("modeling_our.OurModel", "org/other--modeling_our.OurModel"))
    with pytest.raises(ConfigError, match=r"model.name_or_path = .*: its config.json takes code of .*, org/other, wh"):
        build_model(settings(tmp_path, trusted=True), PREP)
    assert not marker.exists()


@pytest.mark.slow
def test_trusted_code_trains_and_goes_along(tmp_path: Path) -> None:
    marker = written(tmp_path, "our-llama")
    write_prep(tmp_path / "tiny" / "prep", vocabulary=259)
    own = settings(tmp_path, trusted=True)
    identity = Plan.of(own).identity
    _write_tokenizer(tmp_path / "tiny" / "prep")
    run(own)
    assert marker.exists()
    (checkpoint,) = checkpoints(tmp_path)
    code = (tmp_path / "model" / "modeling_our.py").read_bytes()
    assert (checkpoint / "model" / "modeling_our.py").read_bytes() == code
    with pytest.raises(
        ConfigError, match=r"model.trust_remote_code.*the checkpoint is of a model with code of its own"
    ):
        export(settings(tmp_path, trusted=False))
    export(own)
    folder = tmp_path / "tiny" / "export" / "hf"
    loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert type(loaded).__name__ == "OurModel"
    with pytest.raises(DataError, match="comes with code of its own, which chat does not run"):
        chat(folder, prompt="x")
    with (tmp_path / "model" / "modeling_our.py").open("a") as file:
        file.write("# another\n")
    assert Plan.of(own).identity != identity
    with pytest.raises(ConfigError, match=r"other settings .*model.code: .* there, .* here"):
        run(own)


def _write_tokenizer(prep: Path) -> None:
    """Give a made-up prep output a tokenizer that can be exported."""
    shutil.rmtree(prep / "tokenizer")
    write_tokenizer(prep / "tokenizer")
    manifest = Manifest.read(prep)
    assert manifest is not None
    others = [record for record in manifest.files if not record.path.startswith("tokenizer/")]
    own = [FileRecord.of(prep, path) for path in sorted((prep / "tokenizer").iterdir())]
    Manifest(**{**vars(manifest), "files": [*others, *own]}).write(prep)
