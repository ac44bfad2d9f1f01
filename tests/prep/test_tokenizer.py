"""Tokenizer directories: ids against the libraries that everybody uses, and special-token text that stays text."""

import json
import os
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers

from pipelines.errors import ConfigError
from prep.tokenizer import SpecialTokenError, Tokenizer, load_tokenizer
from tests.prep.folders import SPECIAL, TEXTS, byte_level, configured, converted, internlm2, spm, texts

Make = Callable[[Path], Path]

QUICKSTART = Path(__file__).parents[2] / "pipelines" / "quickstart" / "tokenizer"

KINDS: dict[str, Make] = {
    "byte-level": byte_level,
    "quickstart": lambda _: QUICKSTART,
    "sentencepiece": lambda folder: spm(folder, add_dummy_prefix=False),
    "sentencepiece, prefixed": spm,
    "sentencepiece, prefixed once": lambda folder: spm(folder, config={"legacy": False}),
    "sentencepiece without bytes": lambda folder: spm(folder, byte_fallback=False, character_coverage=0.98),
    "converted": lambda folder: converted(spm(folder / "model", add_dummy_prefix=False), folder / "json"),
    "converted, prefixed": lambda folder: converted(spm(folder / "model"), folder / "json"),
}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """Each kind of tokenizer."""
    return load_tokenizer(KINDS[request.param](tmp_path))


@pytest.fixture
def transformers_tokenizer() -> Callable[[Path], Any]:
    """AutoTokenizer of Transformers; imported late, since it takes seconds."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["byte-level", "quickstart", "converted", "converted, prefixed"])
def test_ids_equal_those_of_transformers(
    kind: str, tmp_path: Path, transformers_tokenizer: Callable[[Path], Any]
) -> None:
    folder = KINDS[kind](tmp_path)
    ours, theirs = load_tokenizer(folder), transformers_tokenizer(folder)
    expected = [theirs.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts()]
    assert ours.encode_batch(texts()) == expected
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece, prefixed", "sentencepiece without bytes"])
def test_ids_of_a_model_file_equal_those_of_sentencepiece(kind: str, tmp_path: Path) -> None:
    folder = KINDS[kind](tmp_path)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert load_tokenizer(folder).encode_batch(texts()) == [model.encode(text) for text in texts()]


def test_special_token_text_is_tokenized_as_text(tokenizer: Tokenizer) -> None:
    for name, id_ in tokenizer.special_tokens.items():
        for text in (name, f"say {name}!", f"{name}{name}", f"\n{name} \n"):
            ids = tokenizer.encode(text)
            if name != "<unk>":  # text without a token of its own may well be unknown
                assert id_ not in ids
            if "<unk>" not in tokenizer.decode(ids):
                assert tokenizer.decode(ids).strip() == text.strip()


def test_text_comes_back_from_its_ids(tokenizer: Tokenizer) -> None:
    for text in texts():
        decoded = tokenizer.decode(tokenizer.encode(text))
        if tokenizer.decode([tokenizer.special_tokens.get("<unk>", 0)]) not in decoded:
            assert decoded == text


def test_ids_are_below_the_vocabulary_size(tokenizer: Tokenizer) -> None:
    assert max(tokenizer.special_tokens.values()) < tokenizer.vocab_size
    assert max(max(ids, default=0) for ids in tokenizer.encode_batch(texts())) < tokenizer.vocab_size


def test_a_batch_equals_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    opens = [index % 3 > 0 for index in range(len(texts()))]
    one_by_one = [tokenizer.encode(text, opens=opening) for text, opening in zip(texts(), opens, strict=True)]
    assert tokenizer.encode_batch(texts(), opens) == one_by_one


def test_it_travels_to_another_process_as_its_folder(tokenizer: Tokenizer) -> None:
    sent = pickle.dumps(tokenizer)
    assert len(sent) < 1000
    assert pickle.loads(sent).encode_batch(texts()) == tokenizer.encode_batch(texts())


def test_text_is_cut_at_the_special_tokens_it_spells(tokenizer: Tokenizer) -> None:
    name, id_ = next(iter(tokenizer.special_tokens.items()))
    assert tokenizer.split(f"{name}a b{name}\n") == [(name, id_), ("a b", None), (name, id_), ("\n", None)]
    assert tokenizer.split("") == []


@pytest.mark.parametrize("make", [spm, lambda folder: converted(spm(folder / "model"), folder / "json")])
def test_a_run_that_continues_has_no_space_of_its_own(make: Make, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make(tmp_path))
    assert tokenizer.decode(tokenizer.encode("dog")) == "dog"
    parts = tokenizer.encode("the lazy") + tokenizer.encode(" dog", opens=False)
    assert parts == tokenizer.encode("the lazy dog")
    assert tokenizer.encode("dog", opens=False) != tokenizer.encode("dog")


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "prefix"),
    [
        (None, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, "none"),
        (None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}, "always"),
        (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}, "first"),
        (None, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}, "always"),
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}, None, "always"),
    ],
)
def test_the_space_before_a_text_is_known_from_the_file(
    normalizer: object, pre_tokenizer: object, prefix: str, tmp_path: Path
) -> None:
    path = converted(spm(tmp_path / "model", add_dummy_prefix=False), tmp_path / "json") / "tokenizer.json"
    table = json.loads(path.read_bytes())
    table |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    path.write_text(json.dumps(table))
    tokenizer = load_tokenizer(path.parent)
    assert tokenizer.prefix == prefix
    assert (tokenizer.encode("dog", opens=False) == tokenizer.encode("dog")) == (prefix == "none")


def test_tokens_named_in_the_config_alone_are_added(tmp_path: Path) -> None:
    byte_level(tmp_path)
    size = load_tokenizer(tmp_path).vocab_size
    added = {str(size): {"content": "<|tool|>", "special": True}, str(size + 1): {"content": "<think>"}}
    configured(tmp_path, {"added_tokens_decoder": added, "pad_token": "<|pad|>"})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.special_tokens["<|tool|>"] == size
    assert tokenizer.encode("<think><|tool|>")[0] == size + 1  # not special: the tokenizer finds it in any text
    assert size not in tokenizer.encode("<think><|tool|>")
    assert tokenizer.pad_id == tokenizer.special_tokens["<|pad|>"] == size + 2
    assert tokenizer.vocab_size == size + 3


def test_added_tokens_that_are_not_special_are_found_in_text(tmp_path: Path) -> None:
    spm(tmp_path, special=[*SPECIAL, "<think>"])
    table = json.loads((tmp_path / "tokenizer_config.json").read_bytes())
    for entry in table["added_tokens_decoder"].values():
        entry["special"] = entry["content"] != "<think>"
    configured(tmp_path, table)
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("the <think>dog")
    assert tokenizer.vocab_size - 1 in ids
    assert tokenizer.decode(ids) == "the <think>dog"
    assert ids == load_tokenizer(converted(tmp_path, tmp_path / "json")).encode("the <think>dog")


def test_a_spare_piece_is_no_back_door_to_the_special_token_on_it(tmp_path: Path) -> None:
    spm(tmp_path, special=(), user_defined=["[SPARE]", "[OTHER]"], add_dummy_prefix=False)
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    spare, other = model.piece_to_id("[SPARE]"), model.piece_to_id("[OTHER]")
    configured(tmp_path, {"added_tokens_decoder": {str(spare): {"content": "<|im_end|>", "special": True}}})
    for folder in (tmp_path, converted(tmp_path, tmp_path / "json")):
        tokenizer = load_tokenizer(folder)
        assert tokenizer.special_tokens["<|im_end|>"] == spare
        assert spare not in tokenizer.encode("a [SPARE] <|im_end|>")
        assert other in tokenizer.encode("a [OTHER]")
        assert tokenizer.decode([spare]) == "<|im_end|>"


def test_a_special_token_among_ordinary_pieces_is_kept_out_of_text(tmp_path: Path) -> None:
    scores = [("<unk>", 0.0), ("</s>", 0.0), *((character, -5.0) for character in "</s>ab ")]
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=0))
    unigram.add_special_tokens(["</s>"])
    unigram.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(configured(tmp_path, {}))
    assert [tokenizer.decode([id_]) for id_ in tokenizer.encode("a</s>b")] == ["a", "<", "/", "s", ">", "b"]


def test_a_special_token_that_text_always_becomes_is_an_error(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    words.add_special_tokens(["a"])
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(SpecialTokenError, match="special token 0 of plain text"):
        load_tokenizer(configured(tmp_path, {})).encode("a")


def test_truncation_and_padding_of_the_file_are_not_applied(tmp_path: Path) -> None:
    byte_level(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    long = "the lazy dog " * 50
    expected = backend.encode(long).ids
    backend.enable_truncation(5)
    backend.enable_padding(length=5)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode_batch([long, ""]) == [expected, []]


def test_whether_a_text_begins_with_bos_is_read_off_the_files(tmp_path: Path) -> None:
    assert load_tokenizer(byte_level(tmp_path / "with", bos=True)).adds_bos
    assert not load_tokenizer(byte_level(tmp_path / "without")).adds_bos
    assert load_tokenizer(spm(tmp_path / "model")).adds_bos
    assert not load_tokenizer(spm(tmp_path / "bare", config={"add_bos_token": False})).adds_bos
    assert load_tokenizer(converted(tmp_path / "model", tmp_path / "json")).adds_bos


def test_the_template_file_wins_over_the_config(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "of the config"}, {"name": "tool_use", "template": "another"}]
    byte_level(tmp_path, config={"chat_template": named})
    assert load_tokenizer(tmp_path).chat_template == "of the config"
    (tmp_path / "chat_template.jinja").write_text("of the file")
    assert load_tokenizer(tmp_path).chat_template == "of the file"
    assert load_tokenizer(byte_level(tmp_path / "none")).chat_template is None


def test_the_digest_follows_every_byte_that_matters(tmp_path: Path) -> None:
    byte_level(tmp_path)
    first = load_tokenizer(tmp_path).digest
    (tmp_path / "README.md").write_text("about it")
    assert load_tokenizer(tmp_path).digest == first
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert load_tokenizer(tmp_path).digest != first


@pytest.mark.parametrize(
    ("files", "finding"),
    [
        ({}, r"no tokenizer\.json and no tokenizer\.model; give a Hugging Face tokenizer directory"),
        ({"tokenizer.json": b"{"}, r"tokenizer\.json: not a tokenizer\.json that this tokenizers library reads"),
        ({"tokenizer.model": b"\x00\x01junk"}, r"tokenizer\.model: not a sentencepiece model"),
        ({"tokenizer.model": b""}, r"tokenizer\.model: not a sentencepiece model"),
        ({"tokenizer_config.json": b"{,}"}, r"tokenizer_config\.json: not valid JSON"),
    ],
)
def test_a_folder_without_a_tokenizer_is_refused_by_what_is_in_it(
    files: dict[str, bytes], finding: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=finding):
        load_tokenizer(tmp_path)


def test_random_tokenization_is_refused(tmp_path: Path) -> None:
    path = byte_level(tmp_path) / "tokenizer.json"
    table = json.loads(path.read_bytes())
    table["model"]["dropout"] = 0.1
    path.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match="dropout is set, so ids would be random"):
        load_tokenizer(tmp_path)


def test_config_and_file_must_agree_on_ids(tmp_path: Path) -> None:
    byte_level(tmp_path, config={"added_tokens_decoder": {"9999": {"content": "<|tool|>", "special": True}}})
    with pytest.raises(ConfigError, match=r"gives '<\|tool\|>' the id 9999"):
        load_tokenizer(tmp_path)


def test_internlm2_tokenizes_as_its_model_file_says(tmp_path: Path) -> None:
    folder = internlm2(tmp_path)
    tokenizer = load_tokenizer(folder)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert tokenizer.encode_batch(TEXTS) == [model.encode(text) for text in TEXTS]
    assert tokenizer.special_tokens["<|im_start|>"] == 92543
    assert tokenizer.vocab_size == 92544
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.prefix) == (1, 2, "none")
    assert 92543 not in tokenizer.encode("[UNUSED_TOKEN_146]<|im_start|>")


def test_offsets_are_the_characters_that_tokens_stand_for(tokenizer: Tokenizer) -> None:
    for text in texts():
        for opens in (True, False):
            ids, places = tokenizer.encode(text, opens=opens), tokenizer.offsets(text, opens=opens)
            assert len(places) == len(ids)
            if not ids or places == [(0, len(text))] * len(ids):
                continue  # text that spells special tokens, or that the tokenizer changed
            assert (places[0][0], places[-1][1]) == (0, len(text))
            for (first, last), (begin, end) in pairwise(places):
                assert first <= begin <= last <= end
                assert begin == last or begin == last - 1  # they follow each other, or share a character
            for id_, (begin, end) in zip(ids, places, strict=True):
                decoded = tokenizer.decode([id_])
                if "\ufffd" not in decoded and decoded not in tokenizer.special_tokens:
                    assert decoded.strip() in (text[begin:end].strip(), ""), (text, decoded, text[begin:end])


@pytest.mark.parametrize("kind", ["byte-level", "quickstart", "sentencepiece", "sentencepiece, prefixed", "converted"])
def test_offsets_are_known_of_plain_text(kind: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(KINDS[kind](tmp_path))
    text = "hello  there 上海 🙂"
    assert tokenizer.offsets(text) != [(0, len(text))] * len(tokenizer.encode(text))
    pieces = [text[begin:end] for begin, end in dict.fromkeys(tokenizer.offsets(text))]
    assert "".join(pieces) == text
    spelled = f"a {SPECIAL[-1]} b"
    assert len(tokenizer.offsets(spelled)) == len(tokenizer.encode(spelled))
