"""The tokenizer directory that travels: plain Transformers reads it and prompts as prep did."""

import os
from pathlib import Path

import pytest

from pipelines import schema
from pipelines.probes import Probes
from prep.named_template import layouts
from prep.tokenizer import load_tokenizer
from prep.tokenizer_files import write_tokenizer_files
from tests.prep.folders import byte_level, internlm2, spm, texts

os.environ["TOKENIZERS_PARALLELISM"] = "false"

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart" / "tokenizer"


def check(source: Path, settings: schema.Template, folder: Path) -> Probes:
    """Write the files of a tokenizer and compare what Transformers makes of them."""
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(source)
    write_tokenizer_files(tokenizer, settings, folder, chat=True)
    theirs, probes = AutoTokenizer.from_pretrained(folder), Probes.read(folder)
    for text in texts():
        assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == tokenizer.encode(text)
    for probe in probes.probes:
        prompt = theirs.apply_chat_template(probe.messages, add_generation_prompt=True)["input_ids"]
        assert prompt == list(probe.prompt_ids)
    return probes


def test_the_quickstarts_tokenizer_travels(tmp_path: Path) -> None:
    assert len(check(QUICKSTART, schema.Template(system="Be brief."), tmp_path).probes) == 5


@pytest.mark.parametrize("name", ["zephyr", "llama2_chat", "chatglm2", "wizardcoder", "minicpm", "gemma"])
def test_a_sentencepiece_tokenizer_travels_with_a_named_template(name: str, tmp_path: Path) -> None:
    probes = check(spm(tmp_path / "model"), schema.Template(name=name), tmp_path / "out")
    assert len(probes.probes) == (4 if layouts()[name].system is None else 5)
    assert (tmp_path / "out" / "tokenizer.model").is_file()


def test_what_readers_of_the_template_would_tokenize_otherwise_is_no_probe(tmp_path: Path) -> None:
    special = ["<unk>", "<s>", "<｜end▁of▁sentence｜>"]
    folder = byte_level(tmp_path / "model", special=special, config={"eos_token": special[2]})
    probes = check(folder, schema.Template(name="deepseek_v2"), tmp_path / "out").probes
    assert [len(probe.messages) for probe in probes] == [1, 1, 2]


def test_plain_text_has_no_probes(tmp_path: Path) -> None:
    probes = check(byte_level(tmp_path / "model"), schema.Template(name="none"), tmp_path / "out")
    assert (list(probes.probes), probes.stop_ids) == ([], [2])


def test_internlm2_travels(tmp_path: Path) -> None:
    probes = check(internlm2(tmp_path / "model"), schema.Template(name="internlm2_chat"), tmp_path / "out")
    assert (len(probes.probes), probes.stop_ids) == (5, [92542])
