"""Trains the quickstart's tokenizer: a small byte-level BPE with a ChatML template, in the Hugging Face layout."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (PAD, START, END)
"""The first token ids. 0 is padding, because ftdp cannot mark a token 0 as carrying loss."""

PIECES = r"\p{N}|\p{Han}| ?\p{L}+|\s|[^\s\p{L}\p{N}]+"
"""What merges never cross. A digit stands alone, so numbers of any length look alike; so does a space, so a word is
the same token at the start of an answer as inside a list."""

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


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
        "bos_token": START,
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
    import sys

    from prep.quickstart.files import messages, training

    texts = (
        text
        for language in ("english", "chinese")
        for turns in training(language, seed=1024)
        for message in messages(turns)
        for text in message.values()
    )
    write_tokenizer(train_bpe(texts, vocabulary=576), Path(sys.argv[1]))


if __name__ == "__main__":
    main()
