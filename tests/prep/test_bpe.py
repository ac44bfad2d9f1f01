"""The quickstart's tokenizer: trained again to the same bytes, and able to write any text."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from prep.bpe import END, PAD, SPECIAL, train_bpe
from prep.quickstart.tasks import WORDS

SHIPPED = Path(__file__).parents[2] / "pipelines" / "quickstart" / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


def test_training_again_gives_the_shipped_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-m", "prep.bpe", str(tmp_path)], env=environment, check=True)
    again = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert again == {path.name: path.read_bytes() for path in SHIPPED.iterdir()}


@settings(deadline=None)
@given(text=st.text())
def test_any_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_padding_is_token_0_and_special_tokens_are_single_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.encode(text).ids for text in SPECIAL] == [[0], [1], [2], [3], [4]]
    settings = json.loads((SHIPPED / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert (settings["pad_token"], settings["eos_token"]) == (PAD, END)


def test_a_word_of_the_tasks_is_one_token_and_so_is_a_digit(tokenizer: Tokenizer) -> None:
    for english, chinese in WORDS:
        assert len(tokenizer.encode(f"{english} {english}").ids) == 2
        assert len(tokenizer.encode(chinese * 2).ids) == 2
    assert len(tokenizer.encode("2024").ids) == 4


def test_every_byte_is_in_the_vocabulary_whatever_the_text() -> None:
    trained = train_bpe(["aaa"], vocabulary=1000)
    text = bytes(range(256)).decode("latin-1")
    assert trained.decode(trained.encode(text).ids, skip_special_tokens=False) == text
    assert trained.get_vocab_size() >= len(SPECIAL) + 256
