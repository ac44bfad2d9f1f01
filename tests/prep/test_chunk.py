"""Chunks: what the rules make of records that are too long, too short, empty or without a token to train."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines import schema
from prep.chunk import Rules, chunks_of, tokenize_chunk, tokenizer_of
from prep.formats.fault import RecordFault
from prep.inputs import Input, digest
from prep.store import LOSS_BIT, rows_of
from tests.prep.folders import byte_level
from tests.prep.small import TOKENIZER

NOT_TRAINED = [[-3, -4], [5, -6, -7], [], [8], [-9, 10, -11]]
"""ftdp samples; only the last has a token that something before it could predict."""


def ftdp(folder: Path, lines: list[list[int]]) -> Input:
    """A .bin file with its meta."""
    rows, offset = [], 0
    with (folder / "a.bin").open("wb") as file:
        for tokens in lines:
            rows.append((offset, len(tokens)))
            offset += file.write(json.dumps({"tokens": tokens}).encode() + b"\n")
    with (folder / "a.bin.meta").open("wb") as file:
        np.save(file, np.array(rows, np.int64))
    return Input(0, "a", "a.bin", folder / "a.bin", "ftdp", "none")


def rules(on_empty: str, **other: Any) -> Rules:
    """Rules without limits."""
    settings = {"max_length": 100, "min_length": 1, "overlength": "error", "on_bad_record": "error", **other}
    template = schema.Template(loss=schema.Loss(on_empty=on_empty))  # type: ignore[arg-type]  # a Literal
    return Rules(tokenizer=TOKENIZER, template=template, vocab_size=100, max_record_bytes=1 << 20, **settings)


def made(one: Input, folder: Path, rule: Rules) -> tuple[list[list[int]], dict[str, Any]]:
    """Samples of a file's only chunk, negated where they carry no loss, and what was counted."""
    (chunk,) = chunks_of(digest([one], workers=1, known={}))
    assert tokenize_chunk(chunk, folder / "out", rule) is None
    tokens = np.fromfile(folder / "out" / "tokens.u32", np.uint32)
    rows = rows_of(folder / "out")
    signed = np.where(tokens & LOSS_BIT, tokens & ~LOSS_BIT, 0).astype(int) - np.where(tokens & LOSS_BIT, 0, tokens)
    samples = [part.tolist() for part in np.split(signed, np.cumsum(rows[:, 2])[:-1])] if len(rows) else []
    for sample, row in zip(samples, rows, strict=True):
        assert row[3] == sum(token > 0 for token in sample)
    counts = json.loads((folder / "out" / "counts.json").read_bytes())
    return samples, {**counts, "numbers": rows[:, 0].tolist()}


@pytest.mark.parametrize("strategy", ["all at once", "one by one"])
def test_samples_without_a_token_to_train_can_be_kept(strategy: str, tmp_path: Path) -> None:
    # A record above the limit takes the whole chunk off the fast path.
    lines = NOT_TRAINED if strategy == "all at once" else [*NOT_TRAINED, [-1] * 9]
    rule = rules("keep", max_length=8, overlength="drop")
    samples, counts = made(ftdp(tmp_path, lines), tmp_path, rule)
    assert samples == [[-3, -4], [-5, -6, -7], [-8], [-9, 10, -11]]
    assert counts["numbers"] == [0, 1, 3, 4]
    assert counts["records"] == len(lines)
    assert counts["dropped"] == ({} if strategy == "all at once" else {"overlong, dropped": 1})


def test_samples_without_a_token_to_train_are_dropped_and_counted(tmp_path: Path) -> None:
    samples, counts = made(ftdp(tmp_path, NOT_TRAINED), tmp_path, rules("drop"))
    assert samples == [[-9, 10, -11]]
    assert counts["dropped"] == {"without a token to train": 3}


def test_samples_without_a_token_to_train_are_an_error_with_its_likely_causes(tmp_path: Path) -> None:
    (chunk,) = chunks_of(digest([ftdp(tmp_path, NOT_TRAINED)], workers=1, known={}))
    fault = tokenize_chunk(chunk, tmp_path / "out", rules("error"))
    assert isinstance(fault, RecordFault)
    assert fault.record == 0
    assert "is a role missing from template.loss.roles, is the trained text empty, or does the data" in fault.message


@pytest.mark.parametrize(
    ("overlength", "expected"),
    [
        ("truncate_right", [[-1, 2, 3, -4]]),
        ("truncate_left", [[-3, -4, 5, 6]]),
        ("split", [[-1, 2, 3, -4], [-5, 6]]),
        ("drop", []),
    ],
)
def test_records_above_the_limit_become_what_was_asked_for(
    overlength: str, expected: list[list[int]], tmp_path: Path
) -> None:
    one = ftdp(tmp_path, [[-1, 2, 3, -4, 5, 6]])
    samples, counts = made(one, tmp_path, rules("keep", max_length=4, overlength=overlength))
    assert samples == expected
    assert sum(counts["dropped"].values()) == 1


def test_pieces_of_a_long_record_that_train_nothing_are_kept_or_dropped(tmp_path: Path) -> None:
    one = ftdp(tmp_path, [[-1, 2, -3, -4, -5, -6]])
    samples, _ = made(one, tmp_path, rules("keep", max_length=3, overlength="split"))
    assert samples == [[-1, 2, -3], [-4, -5, -6]]
    (tmp_path / "again").mkdir()
    samples, counts = made(one, tmp_path / "again", rules("drop", max_length=3, overlength="split"))
    assert samples == [[-1, 2, -3]]
    assert counts["dropped"] == {"overlong, split": 1, "without a token to train": 1}


def test_a_chunk_of_empty_records_gives_no_sample_and_counts_them(tmp_path: Path) -> None:
    samples, counts = made(ftdp(tmp_path, [[], [], []]), tmp_path, rules("keep"))
    assert samples == []
    assert (counts["records"], counts["dropped"]) == (3, {})


def test_a_source_is_rendered_by_its_own_template(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"body": "the dog"}\n')
    one = Input(
        0, "a", "a.jsonl", tmp_path / "a.jsonl", "jsonl", "pretrain", columns=(("text", "body"),), template="none"
    )
    samples, _ = made(one, tmp_path, Rules(**{**vars(rules("error")), "vocab_size": 1 << 16}))
    assert [len(sample) > 2 and sum(token > 0 for token in sample) == len(sample) - 1 for sample in samples] == [True]


def test_a_tokenizer_that_changed_is_read_again(tmp_path: Path) -> None:
    """A process that prepares data twice must not use the files of the first time."""
    byte_level(tmp_path / "tokenizer", special=["<a>"])
    assert tokenizer_of(tmp_path / "tokenizer") is tokenizer_of(tmp_path / "tokenizer")
    assert "<a>" in tokenizer_of(tmp_path / "tokenizer").special_tokens
    byte_level(tmp_path / "tokenizer", special=["<b>", "<c>"])
    assert "<c>" in tokenizer_of(tmp_path / "tokenizer").special_tokens


def test_a_tokenizer_by_a_relative_path_is_that_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        byte_level(tmp_path / name / "tokenizer", special=[f"<{name}>"])
        monkeypatch.chdir(tmp_path / name)
        assert f"<{name}>" in tokenizer_of(Path("tokenizer")).special_tokens
