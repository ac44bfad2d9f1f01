"""Token ids as text: every character once, whatever the tokenizer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from pipelines.token_text import TokenText
from tests.prep.folders import byte_level, converted, spm, texts


def sentencepiece(folder: Path) -> Path:
    return converted(spm(folder / "model"), folder / "converted")


@pytest.mark.parametrize(("make", "space"), [(byte_level, ""), (sentencepiece, " ")])
def test_every_text_comes_back_whole_and_every_character_once(
    make: Callable[[Path], Path], space: str, tmp_path: Path
) -> None:
    folder = make(tmp_path)
    tokenizer, found = Tokenizer.from_file(str(folder / "tokenizer.json")), TokenText(folder)
    for text in texts():
        if text and "<s>" not in text:  # which would become a token, with a space behind it
            ids = tokenizer.encode(text, add_special_tokens=False).ids
            pieces = found.of(ids)
            assert len(pieces) == len(ids)
            assert "".join(pieces) == space + text
    cut_up = tokenizer.encode("龘", add_special_tokens=False).ids
    assert len(cut_up) > 2  # or this tests nothing
    assert found.of(cut_up)[-1] == "龘"
    assert set(found.of(cut_up)[:-1]) <= {"", space}


def test_half_a_character_an_added_token_and_an_unknown_id_are_told_apart(tmp_path: Path) -> None:
    folder = byte_level(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"700": {"content": "<|later 上|>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    first, *_ = tokenizer.encode("龘").ids
    (end,) = tokenizer.encode("<|im_end|>").ids
    assert TokenText(folder).of([first, end, 700, 9999, first]) == [
        "\\xe9",
        "<|im_end|>",
        "<|later 上|>",
        "[9999]",
        "\\xe9",
    ]


def test_words_are_kept_apart(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"hello": 0, "world": 1, "##ly": 2}, unk_token="hello"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert "".join(TokenText(tmp_path).of([0, 1, 2])) == " hello worldly"


def test_what_is_no_tokenizer_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TokenText(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer"):
        TokenText(tmp_path)
