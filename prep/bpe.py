"""Trains the quickstart's tokenizer: a small byte-level BPE with its chat template, in the Hugging Face layout."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, END = "<|pad|>", "<|end|>"
SPECIAL = (PAD, "<|system|>", END, "<|user|>", "<|assistant|>")
"""The first token ids. 0 is padding, because ftdp cannot mark a token 0 as carrying loss."""

PIECES = r"\p{N}|\p{Han}| ?\p{L}+|\s|[^\s\p{L}\p{N}]+"
"""What merges never cross: a digit and a Chinese character stand alone, a word takes the space before it along."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] not in ('system', 'user', 'assistant') -%}
{{- raise_exception('expected a message of system, user or assistant, found ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""
"""Markers are one token each and nothing but text is between them: in short conversations they are what costs most."""


def train_bpe(texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """Train a byte-level BPE of at most `vocabulary` tokens: special tokens, the 256 bytes, then merges.

    Any text is representable, and decoding gives it back unchanged.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja, as `AutoTokenizer` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "model_max_length": 512,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, content in (("tokenizer.json", json.loads(tokenizer.to_str())), ("tokenizer_config.json", settings)):
        text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8", newline="\n")


def main() -> None:
    """Train the quickstart's tokenizer on the quickstart's own conversations, into the directory given."""
    from prep.quickstart.files import SEED, training
    from prep.quickstart.tasks import LANGUAGES

    texts = (
        text
        for language in LANGUAGES
        for turns in training(language, seed=SEED)
        for turn in turns
        for text in (turn.question, turn.answer)
    )
    write_tokenizer(train_bpe(texts, vocabulary=576), Path(sys.argv[1]))


if __name__ == "__main__":
    main()
