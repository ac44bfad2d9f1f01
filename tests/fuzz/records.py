"""Data: records of every format, what maps and templates make of them, and files of tokens."""

import json
from functools import cache
from pathlib import Path

import numpy as np

from pipelines import schema
from prep.encoder import Encoder
from prep.formats import FORMATS, ftdp
from prep.formats.fault import RecordFault
from prep.records import MAPS
from tests.fuzz.bundle import write
from tests.fuzz.target import Feed, Target
from tests.fuzz.texts import tokenizer

_MOST = 1 << 16  # prep.max_record_bytes
_VOCABULARY = 1000
TEMPLATES = ("tokenizer", "vicuna", "none")


def _format(name: str, file: str) -> Feed:
    def feed(data: bytes, folder: Path) -> None:
        path = folder / file
        path.write_bytes(data)
        for begin, end in FORMATS[name].chunks(path):
            for number, record in FORMATS[name].records(path, begin, end, max_bytes=_MOST):
                assert number >= 0
                if isinstance(record, RecordFault):
                    assert record.message.isprintable()
                else:
                    assert record is None or isinstance(record, dict)

    return feed


def _maps(data: bytes, folder: Path) -> None:
    """A record, through every map and some templates."""
    path = folder / "x.json"
    path.write_bytes(data)
    for _, record in FORMATS["jsonl"].records(path, 0, len(data), max_bytes=_MOST):
        if isinstance(record, dict):
            for name in MAPS:
                encode(name, record)


def encode(name: str, record: dict[str, object]) -> None:
    """Give a record to a map; what comes of it are tokens, each with a loss or without, or a finding in words."""
    for template in TEMPLATES:
        try:
            found = list(_encoder(template, name).encode([(0, record)]))
        except RecordFault:
            continue
        assert [number for number, _ in found] == [0]


@cache
def _encoder(template: str, map_name: str) -> Encoder:
    return Encoder(tokenizer(), schema.Template(name=template), map_name)


def _ftdp(data: bytes, folder: Path) -> None:
    """A .meta and a .bin; the two ways of reading agree, and with the slow one."""
    write(data, folder, ("x.bin.meta", "x.bin"))
    path = folder / "x.bin"
    path.touch()
    for begin, end in ftdp.chunks(path):
        found = list(ftdp.samples(path, begin, end, vocab_size=_VOCABULARY))
        together = ftdp.all_samples(path, begin, end, vocab_size=_VOCABULARY)
        tokens = [one for _, one in found if not isinstance(one, RecordFault)]
        assert (together is not None) == (len(tokens) == len(found))
        if together is not None and tokens:
            np.testing.assert_array_equal(np.concatenate(tokens), together[0])
        _compare(path, begin, end, found)


def _compare(path: Path, begin: int, end: int, found: list[tuple[int, np.ndarray | RecordFault]]) -> None:
    part = ftdp.lines(path, begin, end)
    text = part.text.tobytes()
    for number, one in found:
        line = text[part.starts[number] : part.ends[number]]
        slow = ftdp.parse_reference(line, int(part.counts[number]), _VOCABULARY)
        if isinstance(slow, list):
            ends_there = part.ends[number] == len(text) or line.endswith(b"\n")
            assert isinstance(one, RecordFault) != ends_there
        else:
            assert isinstance(one, RecordFault)


def _tokenizer(data: bytes, folder: Path) -> None:
    """A tokenizer's files, and the text that it tokenizes."""
    from prep.tokenizer import load_tokenizer

    write(data, folder, _TOKENIZER)
    found = load_tokenizer(folder)
    text = "One? <|im_end|> 中文 \u0000 \ud7ff"
    ids = found.encode_batch([text, ""], [True, False])
    assert len(ids) == 2


_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_KEYS = tuple(
    json.dumps(key).encode() + b":"
    for key in ("messages", "role", "content", "conversations", "from", "value", "tools", "tool_calls", "loss",
    "weight",
                "instruction", "input", "output", "history", "text", "system", "name", "function", "arguments")
)  # fmt: skip
_WORDS = (
    b'"user"',
    b'"assistant"',
    b'"human"',
    b'"gpt"',
    b'"function_call"',
    b"\\ud800",
    b"1e400",
    b"null",
    b"<|im_end|>",
)

TARGETS = (
    Target("jsonl", _format("jsonl", "x.jsonl"), tokens=(*_KEYS[:3], *_WORDS)),
    Target("jsonl_gz", _format("jsonl", "x.jsonl.gz"), tokens=(b"\x1f\x8b\x08",)),
    Target("jsonl_zst", _format("jsonl", "x.jsonl.zst"), tokens=(b"\x28\xb5\x2f\xfd",)),
    Target("json", _format("json", "x.json"), tokens=(b"[{", b"},{", b"}]", *_WORDS)),
    Target("text", _format("text", "x.txt")),
    Target("csv", _format("csv", "x.csv"), tokens=(b'"', b'""', b",", b"\r\n", b"\x00")),
    Target("tsv", _format("tsv", "x.tsv"), tokens=(b"\t", b'"', b"\r")),
    Target("parquet", _format("parquet", "x.parquet"), tokens=(b"PAR1",)),
    Target("arrow", _format("arrow", "x.arrow"), tokens=(b"ARROW1", b"\xff\xff\xff\xff")),
    Target(
        "maps",
        _maps,
        tokens=(*_KEYS, *_WORDS, b"### Human:", b"### Assistant:", b"<|startofthink|>", b"<|endofthink|>"),
    ),
    Target(
        "ftdp",
        _ftdp,
        ("x.bin.meta", "x.bin"),
        (b'{"tokens": [', b"]}", b"-1, ", b"\x93NUMPY\x01\x00", b"'descr': ", b"'<i8'"),
    ),
    Target(
        "tokenizer",
        _tokenizer,
        _TOKENIZER,
        (b'"type":"BPE"', b'"added_tokens":', b'"pre_tokenizer":', b'"tokenizer_class":'),
    ),
)
