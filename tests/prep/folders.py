"""Tokenizer directories that tests make: small, but of the kinds that models have."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from pipelines.sentencepiece_json import transformers_files

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "def add(left: int, right: int) -> int:\n    return left + right\n",
    "请用一句话介绍上海。上海是中国最大的城市之一，位于长江入海口。",
    "Once upon a time there was a model that answered questions, one at a time.\n\n1. First\n2. Second\n",
    "user assistant system Human Assistant question answer instruction response [INST] [/INST] USER ASSISTANT",
    "Say Hello, and Hello again: 1 and 1 and 1. Hello!",
    "    four spaces, \t a tab, 3.14159, 2,718 and 17 + 25 = 42 ... == -- !!",
] * 4

TEXTS = [
    "",
    " ",
    "hello",
    " hello",
    "  two  spaces  ",
    "the dog\nand\n\nthe fox\r\n",
    "\n",
    "\t\ttabs\tand spaces ",
    "上海是什么？ A city.",
    "emoji 🙂👩‍👩‍👧 and ideographs 龘",
    "nul \0 and control \x07\x1b",
    "café ﬁ ½ Ａ\u3000wide",
    "-----=====        1234567890",
    "<s> </s> <unk> <|im_end|> <|im_start|>user <0x41> ▁",
    "a" * 37 + "\n" * 9 + " " * 65 + "!" * 5,
]

SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def texts() -> list[str]:
    """Texts that tokenizers stumble over, and what they were trained on."""
    return [*TEXTS, *CORPUS[:6]]


def byte_level(
    folder: Path, *, special: Sequence[str] = SPECIAL, config: Mapping[str, Any] | None = None, bos: bool = False
) -> Path:
    """A byte-level BPE as Llama 3 and Qwen have it; with `bos` it puts <s> before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return configured(folder, config or {})


def spm(
    folder: Path,
    *,
    special: Iterable[str] = SPECIAL,
    user_defined: Sequence[str] = (),
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Path:
    """A sentencepiece BPE directory as Llama 2 and InternLM2 have it: the model alone, special tokens in the config."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=written,
        minloglevel=2,
        user_defined_symbols=list(user_defined),
        **{
            "model_type": "bpe",
            "vocab_size": 480,
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "allow_whitespace_only_pieces": True,
            **options,
        },
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    beyond = [text for text in special if model.piece_to_id(text) == model.unk_id() and text != "<unk>"]
    added = {text: model.piece_to_id(text) for text in special if text not in beyond}
    added |= {text: model.get_piece_size() + index for index, text in enumerate(beyond)}
    decoder = {
        str(id_): {"content": text, "special": True} for text, id_ in sorted(added.items(), key=lambda pair: pair[1])
    }
    return configured(folder, {"added_tokens_decoder": decoder, "add_bos_token": True, **(config or {})})


def internlm2(folder: Path) -> Path:
    """InternLM2's tokenizer, where its model file lies beside the checkout; skips the test elsewhere."""
    model = Path(__file__).parents[3] / "shared" / "data" / "internlm2_tokenizer.model"
    if not model.is_file():
        pytest.skip("needs InternLM2's tokenizer.model")
    names = ["<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>", "<|im_end|>", "<|im_start|>"]
    added = {92538 + index: name for index, name in enumerate(names)} | {0: "<unk>", 1: "<s>", 2: "</s>"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    decoder = {str(id_): {"content": text, "special": True} for id_, text in sorted(added.items())}
    return configured(folder, {"added_tokens_decoder": decoder, "tokenizer_class": "InternLM2Tokenizer"})


def converted(source: Path, folder: Path) -> Path:
    """The same tokenizer as plain Transformers reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in transformers_files(source).items():
        (folder / name).write_bytes(content)
    return folder


def configured(folder: Path, config: Mapping[str, Any]) -> Path:
    """Write tokenizer_config.json over the usual settings."""
    usual = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**usual, **config}), encoding="utf-8")
    return folder
