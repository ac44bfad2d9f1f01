"""The fast tokenizer: which tokenizers it may serve, what it gives, and that a difference is noticed."""

import json
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from prep import fast_tokenizer
from prep.encoded import Encoded
from prep.fast_tokenizer import CheckedTokenizer, Differs, Unsupported, awkward_texts, open_fast, unsupported
from prep.tokenizer import load_tokenizer
from tests.prep.fake import Fake, exact
from tests.prep.folders import CORPUS, byte_level, spm, texts

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PATTERNS = {"qwen2": QWEN2, "llama3": QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|"), "gpt2": ""}
AWKWARD = [
    "'",
    "'s",
    "'S",
    "\u0301",
    "\u08cf",
    "e\u0301",
    "\u212b",
    "\u200d",
    "\r\n",
    "  ",
    "\u3000",
    "<|end|>",
    "<tool>",
]
TEXT = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=4), max_size=8).map("".join)


def of_pattern(name: str) -> dict[str, Any]:
    """tokenizer.json of a small tokenizer with the pre-tokenizer of a large one."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama3"))
    split = [pre_tokenizers.Split(Regex(PATTERNS[name]), "isolated")] if PATTERNS[name] else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, last])
    tokenizer.normalizer = normalizers.NFC() if name == "qwen2" else None
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("<tool>", special=False, normalized=False)])
    table: dict[str, Any] = json.loads(tokenizer.to_str())
    return table


@pytest.mark.parametrize("name", PATTERNS)
def test_fastokens_gives_the_ids_of_tokenizers(name: str) -> None:
    pytest.importorskip("fastokens")
    table = of_pattern(name)
    reference = Tokenizer.from_str(json.dumps(table))
    reference.encode_special_tokens = True
    fast = open_fast(table)

    @given(st.lists(TEXT, max_size=4))
    def same(some: list[str]) -> None:
        expected = [found.ids for found in reference.encode_batch_fast(some, add_special_tokens=False)]
        assert fast.encode(some).lists() == expected

    same()
    CheckedTokenizer(fast, exact(table)).compare([*awkward_texts(["<|end|>", "<tool>"]), *texts()])


def test_a_tokenizer_served_by_fastokens_gives_the_same_ids(tmp_path: Path) -> None:
    pytest.importorskip("fastokens")
    tokenizer = load_tokenizer(byte_level(tmp_path))
    fast = tokenizer.served_by(tokenizer.fast())
    assert fast.encode_batch(texts()) == tokenizer.encode_batch(texts())
    special = set(tokenizer.special_tokens.values())
    assert all(special.isdisjoint(ids) for ids in fast.encode_batch([f"a{text}b" for text in tokenizer.special_tokens]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"type": "Unigram"}}, "model Unigram, not BPE"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "model.byte_fallback is set"),
        ({"model": {"type": "BPE", "dropout": 0.1}}, "model.dropout is set"),
        ({"normalizer": {"type": "Lowercase"}}, "a normalizer other than NFC"),
        ({"pre_tokenizer": None}, "not byte-level"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "a space before each text"),
        (
            {
                "pre_tokenizer": {
                    "type": "Sequence",
                    "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel", "add_prefix_space": False}],
                }
            },
            "pre-tokenizer Whitespace",
        ),
        (
            {"added_tokens": [{"special": False, "single_word": False, "lstrip": True, "rstrip": False}]},
            "takes its surroundings into account",
        ),
    ],
)
def test_other_tokenizers_are_left_to_tokenizers(change: dict[str, Any], reason: str) -> None:
    served = {"model": {"type": "BPE"}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False}}
    assert unsupported(served) is None
    assert reason in (unsupported(served | change) or "")
    with pytest.raises(Unsupported, match=reason):
        open_fast(served | change)


def test_sentencepiece_is_left_to_sentencepiece(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="served by sentencepiece"):
        load_tokenizer(spm(tmp_path)).fast()


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(fast_tokenizer, "import_module", gone)
    with pytest.raises(Unsupported, match=r"fastokens is not installed; pip install \"packtrain\[fast\]\""):
        open_fast(of_pattern("gpt2"))


class Panic(BaseException):
    """As PyO3 raises for a panic in Rust."""


def test_a_tokenizer_that_the_library_does_not_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def panics(name: str) -> Any:
        raise Panic("index out of bounds")

    monkeypatch.setattr(fast_tokenizer, "import_module", panics)
    with pytest.raises(Unsupported, match="does not read this tokenizer: index out of bounds"):
        open_fast(of_pattern("gpt2"))


@given(st.lists(TEXT, min_size=1, max_size=20))
def test_what_does_not_differ_passes_through(some: list[str]) -> None:
    table = of_small()
    assert CheckedTokenizer(Fake(table), exact(table)).encode(some).lists() == exact(table)(some).lists()


@pytest.mark.parametrize("text", ["a", "word " * 5000])
def test_a_text_of_every_batch_is_compared(text: str) -> None:
    wrong = CheckedTokenizer(Fake(of_small(), wrong=lambda _: True), exact(of_small()))
    with pytest.raises(Differs, match=r"fastokens 9\.9 gives other ids for '"):
        wrong.encode([text])


def test_one_text_in_256_is_compared() -> None:
    compared: list[str] = []

    def listening(some: Sequence[str]) -> Encoded:
        compared.extend(some)
        return exact(of_small())(some)

    checked = CheckedTokenizer(Fake(of_small()), listening)
    checked.encode([f"text {number}" for number in range(2560)])
    assert len(compared) == 10
    assert len(set(compared)) == 10


@pytest.mark.parametrize("error", [ValueError("no"), Panic("no")])
def test_a_library_that_fails_counts_as_different(error: BaseException) -> None:
    failing = CheckedTokenizer(Fake(of_small(), error=error), exact(of_small()))
    with pytest.raises(Differs, match="failed: no"):
        failing.encode(["a"])


def test_a_library_that_answers_for_fewer_texts_counts_as_different() -> None:
    class Short(Fake):
        def encode(self, texts: Sequence[str]) -> Encoded:
            return super().encode(texts[:-1])

    with pytest.raises(Differs, match="answered 0 of 1 texts"):
        CheckedTokenizer(Short(of_small()), exact(of_small())).encode(["a", "b"])


def test_texts_with_long_s_or_kelvin_are_left_to_the_exact_one() -> None:
    fake = Fake(of_small(), wrong=lambda text: "\u017f" in text or "\u212a" in text)
    some = ["a", "'\u017f b", "c", "\u212a", ""]
    assert CheckedTokenizer(fake, exact(of_small())).encode(some).lists() == exact(of_small())(some).lists()


def test_half_a_surrogate_pair_is_left_to_the_exact_one() -> None:
    def refuses(some: Sequence[str]) -> Encoded:
        raise TypeError("not text")

    with pytest.raises(TypeError, match="not text"):
        CheckedTokenizer(Fake(of_small()), refuses).encode(["\ud800"])


def test_awkward_texts_have_every_category_and_every_added_token() -> None:
    found = "\n".join(awkward_texts(["<tool>"]))
    assert {unicodedata.category(char) for char in found} == {
        unicodedata.category(chr(point)) for point in range(0x110000) if not 0xD800 <= point < 0xE000
    }
    assert all(text in found for text in ("a<tool>b", "<<tool>>", "it'S", "\r\n" * 1000, "\u200d"))
    assert awkward_texts(["<tool>"]) == awkward_texts(["<tool>"])


def of_small() -> dict[str, Any]:
    """The smallest byte-level tokenizer: every byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: id_ for id_, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    table: dict[str, Any] = json.loads(tokenizer.to_str())
    return table
