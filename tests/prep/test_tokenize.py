"""Chunks appear whole and once; what is wrong is placed in its file, whatever has been tokenized before it."""

import errno
from collections.abc import Generator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from pipelines.config import load
from pipelines.errors import DataError, MachineError
from prep import tokenize as tokenize_module
from prep.chunk import Chunk, Rules, chunks_of, count_records, tokenize_chunk
from prep.executors.local import on_this_machine
from prep.formats import json_array, lines
from prep.formats.fault import RecordFault
from prep.frozen import freeze, frozen
from prep.job import Job, open_job
from prep.tokenize import chunk_name, missing, tokenize, tokenize_chunks
from tests.prep.small import MakePipeline, conversations

alone = partial(on_this_machine, workers=1)


@pytest.fixture
def job(make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of several chunks that has begun."""
    monkeypatch.setattr(lines, "CHUNK_BYTES", 500)
    found = open_job(load(make_pipeline(conversations(20))), workers=1)
    found.begin()
    return found


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_what_is_missing_is_tokenized(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = freeze(job)
    tokenize(chunks, job.rules, job.chunks, execute=alone)
    whole = tree(job.chunks)
    for path in (job.chunks / chunk_name(2)).iterdir():
        path.unlink()
    (job.chunks / chunk_name(2)).rmdir()
    asked: list[str] = []

    def watched(work: Sequence[tuple[Chunk, Path]], rules: Rules) -> Generator[RecordFault | None, None, None]:
        asked.extend(target.name for _, target in work)
        yield from alone(work, rules)

    tokenize(chunks, job.rules, job.chunks, execute=watched)
    assert asked == [chunk_name(2)]
    assert tree(job.chunks) == whole


def test_what_a_killed_run_left_half_written_is_removed(job: Job) -> None:
    chunks = freeze(job)
    left = job.chunks / f".{chunk_name(1)}.0123"
    left.mkdir()
    (left / "tokens.u32").write_bytes(b"half")
    assert missing(job.chunks, len(chunks)) == list(range(len(chunks)))
    tokenize(chunks, job.rules, job.chunks, execute=alone)
    assert not list(job.chunks.glob(".chunk-*"))


def test_the_first_of_two_at_one_chunk_keeps_its_place(job: Job) -> None:
    chunk, target = freeze(job)[0], job.chunks / chunk_name(0)
    assert tokenize_chunk(chunk, target, job.rules) is None
    first = target.stat().st_ino
    assert tokenize_chunk(chunk, target, job.rules) is None
    assert target.stat().st_ino == first
    assert sorted(path.name for path in job.chunks.iterdir()) == ["chunk-000000", "chunks.npy", "left.npy"]


def test_a_chunk_of_a_file_that_changed_is_not_finished(job: Job) -> None:
    chunk = freeze(job)[0]
    other = replace(chunk, input=replace(chunk.input, modified_ns=1))
    with pytest.raises(DataError, match="changed while prep was reading it"):
        tokenize_chunk(other, job.chunks / chunk_name(0), job.rules)
    assert 0 in missing(job.chunks, 1)


def test_how_inputs_were_cut_first_stays(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks = freeze(job)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 100)
    assert chunks_of(job.inputs) != chunks
    assert freeze(job) == chunks
    again, thawed, left = frozen(job.pipeline)
    assert (again.tokens, again.rules, left) == (job.tokens, job.rules, list(range(len(chunks))))
    assert [(one.file, one.begin, one.end) for one in thawed] == [(one.file, one.begin, one.end) for one in chunks]
    assert all(one.input.where.is_absolute() for one in thawed)  # so that any folder serves to run a part in


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.EACCES, "Permission denied"), r"tokens-\w+: Permission denied while tokenizing"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/data/a.jsonl"), r"/data/a\.jsonl: No such file while"),
        (MemoryError(), r"out of memory while tokenizing; lower prep\.workers"),
    ],
)
def test_what_a_machine_lacks_is_told(job: Job, error: Exception, told: str) -> None:
    def failing(work: Sequence[tuple[Chunk, Path]], rules: Rules) -> Generator[RecordFault | None, None, None]:
        raise error
        yield

    with pytest.raises(MachineError, match=told):
        tokenize(freeze(job), job.rules, job.chunks, execute=failing)


def test_a_fault_closes_the_executor_before_it_is_told(job: Job) -> None:
    closed = []

    def faulty(work: Sequence[tuple[Chunk, Path]], rules: Rules) -> Generator[RecordFault | None, None, None]:
        try:
            yield RecordFault(1, "wrong", 7)
            yield None
        finally:
            closed.append(True)

    try:
        tokenize(freeze(job), job.rules, job.chunks, execute=faulty)
    except DataError as error:  # whose traceback holds the frames, as it does when the command line prints it
        assert closed
        assert str(error).endswith("a.jsonl:2:7: wrong")  # noqa: PT017
    else:
        pytest.fail("no fault")


@pytest.mark.parametrize("content", ["jsonl", "json", "text", "csv"])
def test_records_are_counted_as_tokenizing_counts_them(
    content: str, make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 500)
    monkeypatch.setattr(json_array, "CHUNK_BYTES", 500)
    records = conversations(20).splitlines()
    written = {
        "jsonl": "\n\n".join(records) + "\n\n",
        "json": f"[{','.join(records)}]",
        "text": "\nsome text\n" * 30,
        "csv": "text\n" + "some text\n" * 30,
    }
    file = make_pipeline("")
    (tmp_path / "data" / "a.jsonl").unlink()
    ending = "txt" if content == "text" else content
    (tmp_path / "data" / f"a.{ending}").write_text(written[content])
    plain = ['prep.source.a.map="pretrain"', 'template.name="none"'] if content in ("text", "csv") else []
    job = open_job(load(file, plain), workers=1)
    job.begin()
    chunks = freeze(job)
    tokenized = tokenize(chunks, job.rules, job.chunks, execute=alone)
    assert tokenized.records == sum(count_records(chunk, job.rules) for chunk in chunks) > 0


def test_a_fault_behind_which_nothing_is_read_is_told_before_a_later_one(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = freeze(job)
    first = count_records(chunks[0], job.rules)

    def counted(chunk: Chunk, rules: Rules) -> int:
        if chunk == chunks[1]:
            raise RecordFault(2, "nothing can be read behind it")
        return count_records(chunk, rules)

    def faulty(work: Sequence[tuple[Chunk, Path]], rules: Rules) -> Generator[RecordFault | None, None, None]:
        yield RecordFault(0, "later")

    monkeypatch.setattr(tokenize_module, "count_records", counted)
    with pytest.raises(DataError, match=rf"a\.jsonl:{first + 3}: nothing can be read behind it"):
        tokenize_chunks(chunks, [3], job.rules, job.chunks, execute=faulty)
