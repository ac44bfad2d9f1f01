"""The tokenizer as it is shipped."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from pipelines.errors import CheckError
from pipelines.probes import Probes
from pipelines.tokenizer_files import SpecialTokens, special_tokens, tokenizer_files
from tests.export.tiny import LLAMA, PROBES, TEMPLATE, write_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path / "tokenizer")
    PROBES.write(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def configure(folder: Path, **config: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_the_templates_stop_comes_before_the_tokenizers_end(folder: Path) -> None:
    Probes([5]).write(folder)
    assert special_tokens(folder, LLAMA) == SpecialTokens(bos=1, pad=2, stop=(5, 2))


def test_a_stop_that_is_also_the_end_is_listed_once(folder: Path) -> None:
    assert special_tokens(folder, LLAMA).stop == (2,)


def test_a_padding_token_of_its_own_is_used(folder: Path) -> None:
    configure(folder, eos_token={"content": "<|im_end|>", "special": True}, pad_token="<|pad|>")
    assert special_tokens(folder, LLAMA) == SpecialTokens(bos=None, pad=0, stop=(2,))


def test_without_names_in_the_tokenizer_the_models_ids_hold(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    Probes().write(folder)
    model = LLAMA | {"bos_token_id": 8, "eos_token_id": [9, 10], "pad_token_id": None}
    assert special_tokens(folder, model) == SpecialTokens(bos=8, pad=10, stop=(9, 10))


def test_a_vocabulary_beyond_the_embedding_is_refused(folder: Path) -> None:
    with pytest.raises(CheckError, match="ids up to 258, but the model's embedding has 100 rows"):
        special_tokens(folder, {"vocab_size": 100})


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_a_tokenizer_that_cannot_be_used_is_named(folder: Path, damage: str) -> None:
    path = folder / "tokenizer.json"
    path.unlink() if damage == "missing" else path.write_text("{}")
    with pytest.raises(CheckError, match=r"tokenizer\.json: (missing|not a tokenizer).*; run prep and train again"):
        special_tokens(folder, LLAMA)


def shipped(folder: Path, out: Path) -> tuple[Any, dict[str, Any]]:
    files = tokenizer_files(folder, special_tokens(folder, LLAMA))
    out.mkdir()
    for name, content in files.items():
        (out / name).write_bytes(content)
    return AutoTokenizer.from_pretrained(out), json.loads(files["tokenizer_config.json"])


def test_the_template_is_a_file_and_a_key_and_the_class_is_one_that_all_know(folder: Path, tmp_path: Path) -> None:
    tokenizer, config = shipped(folder, tmp_path / "out")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["chat_template"] == (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
    assert tokenizer.pad_token_id == 2
    assert tokenizer("é", add_special_tokens=False).input_ids == [3 + 0xC3, 3 + 0xA9]


def test_a_template_that_only_the_config_has_becomes_a_file_too(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    configure(folder, eos_token="<|im_end|>", chat_template=TEMPLATE)
    shipped(folder, tmp_path / "out")
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE


def test_the_list_of_special_tokens_has_the_name_that_all_read(folder: Path, tmp_path: Path) -> None:
    configure(folder, eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"], backend="tokenizers")
    tokenizer, config = shipped(folder, tmp_path / "out")
    assert config["additional_special_tokens"] == ["<|im_start|>"]
    assert not {"extra_special_tokens", "backend"} & set(config)
    assert "<|im_start|>" in tokenizer.all_special_tokens


def test_only_the_tokenizers_own_files_are_shipped(folder: Path) -> None:
    for name in ("model.safetensors", "tokenization_x.py", "tokenizer.model", "added_tokens.json"):
        (folder / name).write_bytes(b"{}")
    assert sorted(tokenizer_files(folder, special_tokens(folder, LLAMA))) == [
        "added_tokens.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
