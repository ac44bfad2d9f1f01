"""The gate: when a run may use the fast tokenizer, and that no byte depends on it whatever is found."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config import load
from prep import chunk, gate, tokenizer
from prep.backend import Backend
from prep.chunk import Chunk, Rules, chunks_of, tokenize_chunk
from prep.encoded import Encoded
from prep.fast_tokenizer import Fast, open_fast
from prep.formats import lines
from prep.formats.fault import RecordFault
from prep.gate import choose_backend, settled
from prep.job import open_job
from prep.tokenize import Tokenized, tokenize
from tests.prep.fake import Fake
from tests.prep.small import MakePipeline, conversations

MakeRun = Callable[..., tuple[list[Chunk], Rules]]


def here(work: Sequence[tuple[Chunk, Path]], rules: Rules) -> Generator[RecordFault | None, None, None]:
    """This one, which has the stand-in; a template would send chunks to another."""
    yield from (tokenize_chunk(chunk, target, rules) for chunk, target in work)


@pytest.fixture
def make_run(make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeRun]:
    """A run of several chunks whose fast library is the given stand-in."""

    def make(
        opened: Callable[[Mapping[str, Any]], Fast] = Fake, *, prep: str = "", content: str = conversations(60)
    ) -> tuple[list[Chunk], Rules]:
        monkeypatch.setattr(tokenizer, "open_fast", opened)
        job = open_job(load(make_pipeline(content, prep)), workers=1)
        return chunks_of(job.inputs), job.rules

    monkeypatch.setattr(gate, "WORTH_BYTES", 0)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 1500)
    forget()
    yield make
    forget()


def forget() -> None:
    """What a process keeps."""
    for kept in (chunk._encoder, chunk._fast_tokenizer, chunk._tokenizer):
        kept.cache_clear()


def tokens(found: Tokenized) -> list[list[int]]:
    """Every sample."""
    raw = [np.fromfile(file, "<u4") for file in found.samples.token_files]
    where = zip(found.samples.chunk, found.samples.offset, found.samples.lengths, strict=True)
    return [raw[number][begin : begin + length].tolist() for number, begin, length in where]


def exactly(make_run: MakeRun, folder: Path) -> list[list[int]]:
    """Every sample without the fast library."""
    found = tokenize(*make_run(prep='fast_tokenizer = "off"'), folder, execute=here)
    assert found.backend["name"] == "tokenizers"
    assert found.backend["why"] == 'prep.fast_tokenizer = "off"'
    return tokens(found)


def test_a_library_that_gives_the_same_ids_is_used(make_run: MakeRun, tmp_path: Path) -> None:
    expected = exactly(make_run, tmp_path / "off")
    forget()
    found = tokenize(*make_run(), tmp_path / "fast", execute=here)
    assert found.backend == {"name": "fastokens", "version": "9.9"}
    assert tokens(found) == expected


def test_fastokens_itself_is_used(make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("fastokens")
    expected = exactly(make_run, tmp_path / "off")
    forget()
    found = tokenize(*make_run(open_fast), tmp_path / "fast", execute=here)
    assert found.backend["name"] == "fastokens"
    assert tokens(found) == expected


@pytest.mark.parametrize("text", ["word 0 ?", "!", "it'S", "\ufeff", "<|end|>"])
def test_one_other_id_in_the_data_or_the_awkward_texts_closes_the_gate(make_run: MakeRun, text: str) -> None:
    chunks, rules = make_run(lambda table: Fake(table, wrong=lambda found: text in found))
    found = choose_backend(rules, chunks)
    assert found.name == "tokenizers"
    assert found.why.startswith("fastokens 9.9 gives other ids for")


def test_small_inputs_are_not_worth_the_check(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "WORTH_BYTES", 8 << 20)
    chunks, rules = make_run()
    assert "inputs below 8 MiB" in choose_backend(rules, chunks).why


def test_tokens_need_no_tokenizer(make_run: MakeRun) -> None:
    _, rules = make_run()
    assert choose_backend(rules, []) == Backend("none", why="the inputs are tokens already")


def test_what_is_set_is_not_chosen_again(make_run: MakeRun, tmp_path: Path) -> None:
    chunks, rules = make_run(prep='fast_tokenizer = "off"')
    assert settled(rules, chunks, tmp_path) is rules


def test_a_difference_met_later_ends_as_if_the_library_had_not_been_used(
    make_run: MakeRun, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = exactly(make_run, tmp_path / "off")
    forget()
    gate_passed: list[bool] = []
    late = {f"word {number} " for number in range(40, 60)}

    def wrong(text: str) -> bool:
        return bool(gate_passed) and any(one in text for one in late)

    chunks, rules = make_run(lambda table: Fake(table, wrong=wrong))
    rules = settled(rules, chunks, tmp_path)
    assert rules.backend == Backend("fastokens", "9.9")
    gate_passed.append(True)
    found = tokenize(chunks, rules, tmp_path / "fast", execute=here)
    assert found.backend["name"] == "tokenizers"
    assert "gives other ids for" in found.backend["why"]
    assert tokens(found) == expected
    assert "what it made is tokenized again" in caplog.text
    again = settled(make_run()[1], chunks, tmp_path / "fast")
    assert again.backend is not None
    assert dict(again.backend.facts()) == found.backend


def test_a_run_that_was_killed_over_a_difference_goes_on_without_the_library(make_run: MakeRun, tmp_path: Path) -> None:
    expected = exactly(make_run, tmp_path / "off")
    forget()
    chunks, rules = make_run()
    tokenize(chunks, rules, tmp_path / "fast", execute=here)
    mark = Backend.exact("tokenizers", "found to differ").facts()
    (tmp_path / "fast" / "backend.json").write_text(json.dumps(dict(mark)))
    found = tokenize(chunks, rules, tmp_path / "fast", execute=here)
    assert found.backend == mark
    assert tokens(found) == expected


def test_a_fault_that_only_the_library_sees_is_none(make_run: MakeRun, tmp_path: Path) -> None:
    expected = exactly(make_run, tmp_path / "off")
    forget()
    gate_passed: list[bool] = []

    class TooLong(Fake):
        def encode(self, texts: Sequence[str]) -> Encoded:
            found = super().encode(texts).lists()
            return Encoded.of_lists([ids * 1000 if gate_passed and len(texts) > 1 else ids for ids in found])

    chunks, rules = make_run(TooLong, prep="max_length = 200")
    rules = replace(settled(rules, chunks, tmp_path), overlength="error")
    gate_passed.append(True)
    assert tokens(tokenize(chunks, rules, tmp_path / "fast", execute=here)) == expected


def test_a_machine_with_another_version_does_its_share_without_the_library(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = exactly(make_run, tmp_path / "off")
    forget()
    chunks, rules = make_run()
    rules = settled(rules, chunks, tmp_path)
    forget()

    class Other(Fake):
        version = "1.0"

        def encode(self, texts: Sequence[str]) -> Encoded:
            raise AssertionError("must not be asked")

    monkeypatch.setattr(tokenizer, "open_fast", Other)
    assert tokens(tokenize(chunks, rules, tmp_path / "fast", execute=here)) == expected
