"""The quickstart's files: two training sources, one of them already tokenized, and the held-out prompts."""

import json
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from prep.quickstart.tasks import OTHER, PLOTS, Draws, Language, Turn, converse

CONVERSATIONS = 36_000
"""Training conversations of each language."""
HELD_OUT = 16
"""Held-out conversations of each plot and language."""


def write_quickstart(folder: Path, *, seed: int = 1024, tokenizer: Path) -> None:
    """Write the data of `pipelines/quickstart.toml` below `folder`; equal arguments give equal bytes.

    data/english.jsonl   English conversations as messages records
    data/chinese.bin     Chinese conversations as token ids in ftdp format, with their index in data/chinese.bin.meta
    data/heldout.jsonl   conversations of both languages whose operands training never shows; the last answer is asked

    Args:
        folder: where `data/` is made.
        seed: chooses the training conversations; the held-out ones do not depend on it.
        tokenizer: directory of the tokenizer.json that makes the token ids.
    """
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    _write_messages(data / "english.jsonl", training("english", seed=seed))
    _write_ftdp(
        data / "chinese.bin",
        training("chinese", seed=seed),
        Tokenizer.from_file(str(tokenizer / "tokenizer.json")),
    )
    _write_messages(data / "heldout.jsonl", held_out())


def training(language: Language, *, seed: int) -> Iterator[list[Turn]]:
    """Yield the training conversations of a language; each depends on the seed and its own place alone."""
    for place in range(CONVERSATIONS):
        draws = Draws("train", seed, language, place)
        yield converse(draws.choose(PLOTS), language, "train", draws)


def held_out() -> Iterator[list[Turn]]:
    """Yield `HELD_OUT` different conversations of every plot and language."""
    for plot in PLOTS:
        for language in OTHER:
            found: list[list[Turn]] = []
            for attempt in count():
                turns = converse(plot, language, "held-out", Draws("held-out", plot, language, attempt))
                if turns not in found:
                    found.append(turns)
                if len(found) == HELD_OUT:
                    break
            yield from found


def _write_messages(path: Path, conversations: Iterable[list[Turn]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for turns in conversations:
            file.write(json.dumps({"messages": messages(turns)}, ensure_ascii=False, sort_keys=True) + "\n")


def messages(turns: list[Turn]) -> list[dict[str, str]]:
    """The conversation as OpenAI messages."""
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (("user", turn.question), ("assistant", turn.answer))
    ]


def spans(turns: list[Turn]) -> Iterator[tuple[str, bool]]:
    """The conversation as the tokenizer's chat template renders it, in pieces of text that carry loss or do not."""
    for turn in turns:
        yield f"<|im_start|>user\n{turn.question}<|im_end|>\n<|im_start|>assistant\n", False
        yield f"{turn.answer}<|im_end|>", True
        yield "\n", False


def _write_ftdp(path: Path, conversations: Iterable[list[Turn]], tokenizer: Tokenizer) -> None:
    rows: list[tuple[int, int]] = []  # byte offset of the line, number of tokens
    with path.open("wb") as file:
        for turns in conversations:
            tokens = [
                token if loss else -token
                for text, loss in spans(turns)
                for token in tokenizer.encode(text, add_special_tokens=False).ids
            ]
            rows.append((file.tell(), len(tokens)))
            file.write(json.dumps({"tokens": tokens}).encode() + b"\n")
    with path.with_name(path.name + ".meta").open("wb") as file:  # np.save would add a suffix to a name
        np.save(file, np.array(rows, np.int64))
