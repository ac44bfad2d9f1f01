"""The quickstart's files: two training sources, one of them already tokenized, and the held-out conversations."""

import io
import json
import logging
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pipelines.artifacts import FileRecord, Json, Manifest, digest_file, identity, make_directory, write_atomic
from pipelines.errors import CheckError
from prep.quickstart.draws import Draws
from prep.quickstart.tasks import LANGUAGES, SHARES, Language, Turn, converse

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Raised whenever the bytes written for the same seed and tokenizer change."""
SEED = 1024
CONVERSATIONS = 45_000
"""Training conversations of each language."""
HELD_OUT = 16
"""Held-out conversations of each plot and language."""


def write_quickstart(folder: Path, *, seed: int = SEED, tokenizer: Path | None = None) -> list[Path]:
    """Write the data of `pipelines/quickstart.toml` below `folder`; equal arguments give equal bytes.

    data/english.jsonl   English conversations as messages records
    data/chinese.bin     Chinese conversations as token ids in ftdp format, with their index in data/chinese.bin.meta
    data/heldout.jsonl   conversations of both languages whose operands training never shows; the last answer is asked,
                         and `task` names the plot

    Args:
        folder: where `data/` is made.
        seed: chooses the training conversations; the held-out ones do not depend on it.
        tokenizer: directory of the tokenizer.json that makes the token ids; `tokenizer/` below `folder` if not given.
    Returns:
        The files written: none where they are complete already.
    """
    data, vocabulary = folder / "data", (tokenizer or folder / "tokenizer") / "tokenizer.json"
    made_from = identity("quickstart", FORMAT_VERSION, seed, digest_file(vocabulary))
    if _complete(data, made_from):
        return []
    make_directory(data)
    tokens, offsets = _ftdp(training("chinese", seed=seed), Tokenizer.from_file(str(vocabulary)))
    contents = {
        data / "chinese.bin": tokens,
        data / "chinese.bin.meta": offsets,
        data / "english.jsonl": _json_lines({"messages": messages(turns)} for turns in training("english", seed=seed)),
        data / "heldout.jsonl": _json_lines({"messages": messages(turns), "task": plot} for plot, turns in held_out()),
    }
    for path, content in contents.items():
        write_atomic(path, content)
    Manifest(
        kind="quickstart",
        format_version=FORMAT_VERSION,
        identity=made_from,
        parents={},
        files=[FileRecord.of(data, path) for path in contents],
        facts={"conversations": CONVERSATIONS, "held_out": HELD_OUT, "seed": seed},
    ).write(data)
    log.info("wrote %s conversations in each of %d languages", f"{CONVERSATIONS:,}", len(LANGUAGES))
    return list(contents)


def _complete(data: Path, made_from: str) -> bool:
    try:
        manifest = Manifest.read(data)
        if manifest is None or manifest.identity != made_from:
            return False
        manifest.verify(data)
    except CheckError:  # damaged or edited; making it again is cheap
        return False
    return True


def training(language: Language, *, seed: int) -> Iterator[list[Turn]]:
    """Yield the training conversations of a language; each depends on the seed and its own number alone."""
    plots = [plot for plot, share in SHARES.items() for _ in range(share)]
    for number in range(CONVERSATIONS):
        draws = Draws("train", seed, language, number)
        yield converse(draws.choose(plots), language, "train", draws)


def held_out() -> Iterator[tuple[str, list[Turn]]]:
    """Yield every plot with `HELD_OUT` different conversations of it in each language."""
    for plot in SHARES:
        for language in LANGUAGES:
            found: list[list[Turn]] = []
            for attempt in count():
                turns = converse(plot, language, "held-out", Draws("held-out", plot, language, attempt))
                if turns not in found:
                    found.append(turns)
                if len(found) == HELD_OUT:
                    break
            yield from ((plot, turns) for turns in found)


def messages(turns: Iterable[Turn]) -> list[dict[str, str]]:
    """The conversation as OpenAI messages."""
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in (("user", turn.question), ("assistant", turn.answer))
    ]


def _json_lines(records: Iterable[Json]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False, sort_keys=True) + "\n" for record in records).encode()


def spans(turns: Iterable[Turn]) -> Iterator[tuple[str, bool]]:
    """The conversation as the tokenizer's chat template renders it, in pieces of text with whether they carry loss."""
    for turn in turns:
        yield f"<|user|>{turn.question}<|end|><|assistant|>", False
        yield f"{turn.answer}<|end|>", True


def _ftdp(conversations: Iterable[list[Turn]], tokenizer: Tokenizer) -> tuple[bytes, bytes]:
    """The contents of X.bin and X.bin.meta."""
    lines = bytearray()
    rows: list[tuple[int, int]] = []  # byte offset of the line, number of tokens
    for turns in conversations:
        tokens = [
            token if loss else -token
            for text, loss in spans(turns)
            for token in tokenizer.encode(text, add_special_tokens=False).ids
        ]
        rows.append((len(lines), len(tokens)))
        lines += json.dumps({"tokens": tokens}).encode() + b"\n"
    meta = io.BytesIO()
    np.save(meta, np.array(rows, np.int64))
    return bytes(lines), meta.getvalue()
