"""How fast texts become token ids: tokenizers, the fast library, tiktoken where it is installed, and whole chunks.

    python -m bench.tokenize [--json] [--folder /tmp/bench]

The texts are Python's own sources as documents, conversations cut out of them, and generated Chinese; the tokenizer is
a byte-level BPE of 32,000 tokens with the pattern of Qwen2, trained on other such texts. No library meets a text twice:
what it remembers of whole texts is no part of the figure. CPU seconds of one process.
"""

import json
import random
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.table import Figure, show
from pipelines.schema import Template
from prep.backend import Backend
from prep.chunk import Rules, chunks_of, tokenize_chunk
from prep.fast_tokenizer import Unsupported
from prep.inputs import Input, digest
from prep.tokenizer import Tokenizer as Ours
from prep.tokenizer import load_tokenizer

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 32_000
BATCH = 256
SLOW_MB = 1.0
"""Of each kind for libraries that take seconds for it."""
FAST_MB = 6.0

Kinds = dict[str, list[str]]


def figures(folder: Path) -> Iterator[Figure]:
    """Megabytes of text a second, by library and kind of text.

    Args:
        folder: for the tokenizer and the inputs; a tokenizer found there is taken.
    """
    trained, measured = _texts()
    tokenizer = load_tokenizer(_tokenizer(folder / "tokenizer", trained))
    for kind, texts in measured.items():
        warm, texts = texts[: len(texts) // 4], texts[len(texts) // 4 :]
        exact = _rate(tokenizer.encode_all, warm, texts, megabytes=SLOW_MB)
        beside = ("tokenizers", exact)
        yield Figure(f"tokenize, {kind}: tokenizers", exact, "MB/s")
        if fast := _fast(tokenizer):
            rate = _rate(fast.encode_all, warm, texts, megabytes=FAST_MB)
            yield Figure(f"tokenize, {kind}: fastokens, checked", rate, "MB/s", *beside, ">= 40 x")
        if find_spec("tiktoken"):
            rate = _rate(_tiktoken(folder / "tokenizer"), warm, texts, megabytes=FAST_MB)
            yield Figure(f"tokenize, {kind}: tiktoken", rate, "MB/s", *beside)
        yield from _whole(folder, tokenizer, kind, texts)


def _whole(folder: Path, tokenizer: Ours, kind: str, texts: Sequence[str]) -> Iterator[Figure]:
    """From lines of JSON to tokenized samples on disk."""
    rules = Rules(
        tokenizer=tokenizer.folder,
        template=Template(name="qwen_chat" if kind == "chat" else "none"),
        vocab_size=tokenizer.vocab_size,
        max_length=8192,
        min_length=1,
        overlength="split",
        on_bad_record="error",
        max_record_bytes=1 << 26,
    )
    exact = _chunks(folder, rules, kind, _up_to(texts, 2 * SLOW_MB))
    yield Figure(f"jsonl to samples, {kind}: tokenizers", exact, "MB/s")
    if fast := _fast(tokenizer):
        backend = Backend("fastokens", fast.fast().version)
        rate = _chunks(folder, replace(rules, backend=backend), kind, _up_to(texts, 2 * FAST_MB))
        yield Figure(f"jsonl to samples, {kind}: fastokens, checked", rate, "MB/s", "tokenizers", exact)


def _chunks(folder: Path, rules: Rules, kind: str, texts: Sequence[str]) -> float:
    file, out = folder / f"{kind}.jsonl", folder / "out"
    pairs = zip(texts[::2], texts[1::2], strict=False)
    with file.open("w", encoding="utf-8") as lines:
        if kind == "chat":
            roles = ("user", "assistant")
            records: list[Any] = [
                {"messages": [{"role": role, "content": text} for role, text in zip(roles, pair, strict=True)]}
                for pair in pairs
            ]
        else:
            records = [{"text": text} for text in texts]
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    one = Input(0, "bench", file.name, file, "jsonl", "openai" if kind == "chat" else "pretrain")
    chunks = chunks_of(digest([one], workers=1, known={}))
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    tokenize_chunk(replace(chunks[0], end=chunks[0].begin), out / "warm", rules)  # loads the tokenizer
    began = time.process_time()
    for number, chunk in enumerate(chunks):
        if fault := tokenize_chunk(chunk, out / str(number), rules):
            raise fault
    return file.stat().st_size / 1e6 / (time.process_time() - began)


def _rate(
    encode: Callable[[Sequence[str]], Any], warm: Sequence[str], texts: Sequence[str], *, megabytes: float
) -> float:
    for batch in _batches(_up_to(warm, megabytes)):
        encode(batch)
    texts = _up_to(texts, megabytes)
    began = time.process_time()
    for batch in _batches(texts):
        encode(batch)
    return sum(len(text.encode()) for text in texts) / 1e6 / (time.process_time() - began)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[begin : begin + BATCH] for begin in range(0, len(texts), BATCH))


def _up_to(texts: Sequence[str], megabytes: float) -> list[str]:
    taken: list[str] = []
    left = megabytes * 1e6
    for text in texts:
        if left <= 0:
            break
        taken.append(text)
        left -= len(text.encode())
    return taken


def _fast(tokenizer: Ours) -> Ours | None:
    try:
        return tokenizer.served_by(tokenizer.fast())
    except Unsupported:
        return None


def _tiktoken(folder: Path) -> Callable[[Sequence[str]], Any]:
    tiktoken: Any = import_module("tiktoken")
    table = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    # Byte-level BPE writes each byte as one printable character: itself where it is one, the next free one from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
    ranks = {bytes(byte_of[char] for char in token): id_ for token, id_ in table["vocab"].items()}
    encoding = tiktoken.Encoding("bench", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    return lambda texts: encoding.encode_ordinary_batch(list(texts), num_threads=1)


def _texts() -> tuple[list[str], Kinds]:
    """Texts to train the tokenizer on, and others to measure with."""
    draw = random.Random(1)
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    sources = [path.read_text(encoding="utf-8", errors="ignore") for path in files if "site-packages" not in path.parts]
    sources = [source for source in sources if len(source) > 200]
    draw.shuffle(sources)
    half = len(sources) // 3
    chinese = _chinese(draw, documents=6000)
    lines = [line for source in sources[half:] for line in source.split("\n\n") if 40 < len(line) < 1200]
    measured = {"documents": sources[half:], "chat": lines, "generated Chinese": chinese[2000:]}
    return _up_to(sources[:half], 6.0) + chinese[:1000], measured


def _chinese(draw: random.Random, *, documents: int) -> list[str]:
    """Sentences of made-up words, the frequent ones far more often than the rare ones."""
    characters = [chr(draw.randrange(0x4E00, 0x9FA5)) for _ in range(3000)]
    words = [
        "".join(characters[int(3000 ** draw.random()) - 1] for _ in range(draw.choice((1, 2, 2, 2, 3, 4))))
        for _ in range(20_000)
    ]
    return [
        "".join(
            "".join(words[int(20_000 ** draw.random()) - 1] for _ in range(draw.randrange(3, 10)))
            + draw.choice("，。，？")
            for _ in range(draw.randrange(10, 80))
        )
        for _ in range(documents)
    ]


def _tokenizer(folder: Path, texts: Sequence[str]) -> Path:
    if not (folder / "tokenizer_config.json").is_file():
        tokenizer = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
        last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, last])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(names), encoding="utf-8")
    return folder


@click.command(help=__doc__.split("\n")[0] if __doc__ else None)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to work; a temporary folder unless given.")
def main(as_json: bool, folder: Path | None) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        show(list(figures(folder or Path(temporary))), as_json=as_json)


if __name__ == "__main__":
    main()
