"""One chunk of records to tokenized samples: a pure function of its input file and `Rules`."""

import json
import os
import shutil
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from pipelines.artifacts import Json
from pipelines.bounds import USUAL, RunawayTemplate
from pipelines.schema import Template
from prep.backend import Backend
from prep.encoder import Encoder
from prep.fast_tokenizer import Differs, Unsupported
from prep.formats import FORMATS, ftdp
from prep.formats.columnar import rows_of_groups
from prep.formats.fault import Outcome, RecordFault
from prep.formats.lines import lines
from prep.inputs import Input, unchanged
from prep.last_record import LastRecord, last_record, runaway_record
from prep.rendering import template_of
from prep.store import LOSS_BIT, ChunkWriter, Marked, Rows, count_loss_tokens
from prep.template import is_program
from prep.tokenizer import Stamp, Tokenizer, load_tokenizer, stamp

_BATCH = 256
"""Records rendered and tokenized together."""


@dataclass(frozen=True)
class Rules:
    """All that decides a sample's tokens beside its record."""

    tokenizer: Path
    template: Template
    vocab_size: int
    max_length: int
    min_length: int
    overlength: str
    on_bad_record: str
    max_record_bytes: int
    added_tokens: tuple[str, ...] = ()
    """Special tokens that the tokenizer gets behind its own."""
    backend: Backend | None = None
    """The library that tokenizes, where it is chosen yet; changes no token."""


@dataclass(frozen=True)
class Chunk:
    """A run of one file's records, in bounds of the file's format."""

    input: Input
    file: int
    """Index of the input in the data order."""
    begin: int
    end: int

    @property
    def weight(self) -> int:
        """Bytes or rows, to show progress by."""
        return self.end - self.begin


def chunks_of(inputs: Sequence[Input]) -> list[Chunk]:
    """Cut every input into chunks; depends on the files alone."""
    found = []
    for file, one in enumerate(inputs):
        cut = ftdp.chunks if one.format == "ftdp" else FORMATS[one.format].chunks
        found += [Chunk(one, file, begin, end) for begin, end in cut(one.where)]
    return found


def runs_program(chunk: Chunk, rules: Rules) -> bool:
    """Whether a chat template renders the chunk's records, so that whoever does it may be lost."""
    one = chunk.input
    return one.format != "ftdp" and is_program(template_of(rules.template, one.template, one.system))


def tokenize_chunk(chunk: Chunk, target: Path, rules: Rules, expendable: bool = False) -> RecordFault | None:
    """Tokenize one chunk into `target`; a fault is returned, since the caller knows what came before the chunk.

    Args:
        chunk: what to tokenize.
        target: appears by rename.
        rules: how.
        expendable: this process may be lost to a chat template that takes too much, and the caller asks `runaway`.
    Raises:
        DataError: if the input is not what was digested any more.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    temporary = target.with_name(f".{target.name}.{uuid4().hex}")  # others may be at the same chunk, on any machine
    temporary.mkdir()
    try:
        if expendable and runs_program(chunk, rules):
            with last_record(temporary) as last:
                _tokenize(chunk, rules, temporary, last)
        else:
            _tokenize(chunk, rules, temporary)
    except RecordFault as fault:
        shutil.rmtree(temporary)
        return fault
    unchanged([chunk.input])  # what has its name was made from the digested file
    try:
        temporary.rename(target)
    except OSError:
        if not target.is_dir():
            raise
        shutil.rmtree(temporary)  # another was first, with the same bytes
    return None


def runaway(chunk: Chunk, target: Path, rules: Rules) -> RecordFault | None:
    """The record whose chat template took the time that ended the process at work on `target`; None if none did."""
    record = runaway_record(target.parent.glob(f".{target.name}.*"))
    if record is None:
        return None
    template = template_of(rules.template, chunk.input.template, chunk.input.system)
    name = str(template.file) if template.file is not None else f"the chat template of {rules.tokenizer}"
    return RecordFault(record, str(RunawayTemplate.of_time(name, USUAL)), fatal=True)


def count_records(chunk: Chunk, rules: Rules) -> int:
    """How many records a chunk takes, without what rendering and tokenizing them would cost.

    Raises:
        RecordFault: for one behind which nothing can be read.
    """
    where, begin, end = chunk.input.where, chunk.begin, chunk.end
    if chunk.input.format == "ftdp":
        return end - begin
    if chunk.input.format in ("parquet", "arrow", "hf_disk"):
        return sum(rows_of_groups(where)[begin:end])
    if chunk.input.format in ("jsonl", "text"):
        return sum(1 for _ in lines(where, begin, end, max_bytes=rules.max_record_bytes))
    records = FORMATS[chunk.input.format].records(where, begin, end, max_bytes=rules.max_record_bytes)
    return max((number + 1 for number, _ in records), default=0)


def plain_texts(chunk: Chunk, rules: Rules) -> Iterator[str]:
    """Texts that the tokenizer is to get of a chunk, from one record in four, in their order."""
    encoder = _encoder_of(chunk.input, rules)
    records = FORMATS[chunk.input.format].records(
        chunk.input.where, chunk.begin, chunk.end, max_bytes=rules.max_record_bytes
    )
    with suppress(RecordFault):  # behind which nothing can be read; who tokenizes it says so
        for number, record in records:
            if isinstance(record, dict) and number * 0x9E3779B1 & 0xC0000000 == 0:
                yield from encoder.plain_texts(record)


def _tokenize(chunk: Chunk, rules: Rules, folder: Path, last: LastRecord | None = None) -> None:
    """Write what a chunk gives, which library made it, and what the fast one was found to do otherwise.

    A record that is at fault with the fast library's ids is so with the exact one's, or it is no fault.
    """
    differs = None
    if rules.backend is not None and rules.backend.fast:
        try:
            return _write(chunk, rules, folder, last, backend=rules.backend.facts())
        except Differs as found:
            differs = str(found)
        except RecordFault as fault:
            if fault.fatal:
                raise
        library = tokenizer_of(rules.tokenizer, rules.added_tokens).library
        rules = replace(rules, backend=Backend.exact(library, differs or ""))
    backend = rules.backend.facts() if rules.backend else {}
    return _write(chunk, rules, folder, last, backend=backend, differs=differs)


def _write(chunk: Chunk, rules: Rules, folder: Path, last: LastRecord | None, **told: Json) -> None:
    with ChunkWriter(folder) as writer:
        if not _write_as_it_is(chunk, rules, writer):
            _write_one_by_one(chunk, rules, writer, last)
    writer.finish(**told)


def _write_as_it_is(chunk: Chunk, rules: Rules, writer: ChunkWriter) -> bool:
    """Write a chunk of tokens if every record is a sample as it stands, without a step per record; else nothing."""
    if chunk.input.format != "ftdp":
        return False
    found = ftdp.all_samples(chunk.input.where, chunk.begin, chunk.end, vocab_size=rules.vocab_size)
    if found is None:
        return False
    tokens, counts = found
    records = np.flatnonzero(counts)  # a record without tokens is no sample, and nothing is said of it
    lengths = counts[records]
    rows = _rows_if_all_fit(records, lengths, tokens, rules)
    if rows is None:
        return False
    writer.add(rows, tokens)
    writer.records = counts.size
    return True


def _write_one_by_one(chunk: Chunk, rules: Rules, writer: ChunkWriter, last: LastRecord | None) -> None:
    for batch in _batches(_found(chunk, rules, last=last)):
        writer.records = batch[-1][0] + 1
        if (samples := _all_samples(batch, rules)) is not None:
            writer.add(*samples)
            continue
        rows: list[tuple[int, int, int, int]] = []
        parts = [np.zeros(0, np.uint32)]
        for record, outcome in batch:
            checked = _checked(outcome, record, rules)
            if isinstance(checked, RecordFault):
                if rules.on_bad_record == "error" or checked.fatal:
                    raise checked
                writer.rejects.append({"record": record, "byte": checked.byte, "reason": checked.message})
                continue
            reasons, kept = fit(checked, rules)
            writer.dropped.update(reasons)
            rows += [(record, start, piece.size, int(np.count_nonzero(piece & LOSS_BIT))) for start, piece in kept]
            parts += [piece for _, piece in kept]
        writer.add(np.array(rows, np.int64).reshape(-1, 4), np.concatenate(parts))


_Outcome = Marked | RecordFault | None
_T = TypeVar("_T")


def _all_samples(batch: Sequence[tuple[int, _Outcome]], rules: Rules) -> tuple[Rows, Marked] | None:
    """Rows and tokens of a batch of which every record is a sample as it stands; else None."""
    samples = [outcome for _, outcome in batch if isinstance(outcome, np.ndarray) and outcome.size]
    if len(samples) < len(batch):
        return None
    tokens = np.concatenate(samples)
    lengths = np.fromiter(map(len, samples), np.int64, len(samples))
    records = np.fromiter((record for record, _ in batch), np.int64, len(batch))
    rows = _rows_if_all_fit(records, lengths, tokens, rules)
    return None if rows is None else (rows, tokens)


def _rows_if_all_fit(
    records: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], tokens: Marked, rules: Rules
) -> Rows | None:
    """Rows of records of which each is a sample as it stands, its tokens end to end in `tokens`; else None.

    First tokens lose their bit: nothing comes before them that could predict them.
    """
    if not lengths.size or lengths.max() > rules.max_length or lengths.min() < rules.min_length:
        return None
    tokens[np.cumsum(lengths) - lengths] &= ~LOSS_BIT
    loss_tokens = count_loss_tokens(tokens, lengths)
    if loss_tokens.min() < 1 and rules.template.loss.on_empty != "keep":
        return None
    return np.column_stack([records, np.zeros_like(records), lengths, loss_tokens])


def outcomes(chunk: Chunk, rules: Rules, only: Container[int] | None = None) -> Iterator[tuple[int, _Outcome]]:
    """Every record number of the chunk, or `only` some: its tokens, its fault, or None where its map leaves it out."""
    try:
        for record, outcome in _found(chunk, rules, only):
            if only is None or record in only:
                yield record, _checked(outcome, record, rules)
    except RecordFault as fault:
        if not fault.fatal:  # behind which nothing can be read
            raise
        yield fault.record, fault


def _found(
    chunk: Chunk, rules: Rules, only: Container[int] | None = None, last: LastRecord | None = None
) -> Iterator[tuple[int, _Outcome]]:
    """Outcomes before the rules are applied; of tokens, also of records that are not asked for."""
    where, begin, end = chunk.input.where, chunk.begin, chunk.end
    if chunk.input.format == "ftdp":
        return ftdp.samples(where, begin, end, vocab_size=rules.vocab_size)
    encoder = _encoder_of(chunk.input, rules, expendable=last is not None)
    records = FORMATS[chunk.input.format].records(where, begin, end, max_bytes=rules.max_record_bytes)
    records = (pair for pair in records if only is None or pair[0] in only)  # what is not asked for costs no tokens
    return (pair for batch in _batches(records) for pair in _encode(encoder, batch, last))


def _batches(pairs: Iterator[tuple[int, _T]]) -> Iterator[list[tuple[int, _T]]]:
    """Pairs in batches; what comes before a fault that ends them is not lost with it."""
    batch: list[tuple[int, _T]] = []
    try:
        for pair in pairs:
            batch.append(pair)
            if len(batch) == _BATCH:
                yield batch
                batch = []
    except RecordFault as fault:
        if batch:
            yield batch
        raise fault
    if batch:
        yield batch


def _encode(
    encoder: Encoder, batch: Sequence[tuple[int, Outcome]], last: LastRecord | None
) -> Iterator[tuple[int, _Outcome]]:
    """A batch of records as tokens, going on behind each fault; blank lines give nothing but keep their number."""
    faults = [(number, outcome) for number, outcome in batch if isinstance(outcome, RecordFault)]
    left = [(number, outcome) for number, outcome in batch if isinstance(outcome, dict)]
    encoded: list[tuple[int, _Outcome]] = []
    while left:
        try:
            for pair in encoder.encode(left, last):
                encoded.append(pair)  # noqa: PERF402 (what comes before a fault is kept)
            break
        except RecordFault as fault:
            if fault.fatal:
                yield from sorted((pair for pair in (*faults, *encoded) if pair[0] < fault.record), key=itemgetter(0))
                raise
            encoded.append((fault.record, fault))
            left = [pair for pair in left if pair[0] > fault.record]
    yield from sorted([*faults, *encoded], key=itemgetter(0))
    if batch[-1][1] is None:
        yield batch[-1][0], np.zeros(0, np.uint32)


def _checked(tokens: _Outcome, record: int, rules: Rules) -> _Outcome:
    """The tokens of a record, or what the rules forbid about them."""
    if not isinstance(tokens, np.ndarray):
        return tokens
    if tokens.size > rules.max_length and rules.overlength == "error":
        return RecordFault(
            record,
            f"{tokens.size} tokens exceed prep.max_length = {rules.max_length}; raise it, or set "
            'prep.overlength to "truncate_right", "truncate_left", "split" or "drop"',
        )
    if tokens.size and not np.any(tokens[1:] & LOSS_BIT) and rules.template.loss.on_empty == "error":
        return RecordFault(
            record,
            f"none of its {tokens.size} tokens carries loss; is a role missing from template.loss.roles, is the "
            "trained text empty, or does the data mark everything as prompt? "
            'template.loss.on_empty = "drop" leaves such records out',
        )
    return tokens


def fit(tokens: Marked | None, rules: Rules) -> tuple[list[str], list[tuple[int, Marked]]]:
    """What became of a record, in words to count; and the samples it gives, each with its first token's place."""
    if tokens is None:
        return ["left out by its map"], []
    if not tokens.size:
        return [], []
    reasons = []
    pieces = [(0, tokens)]
    limit = rules.max_length
    if tokens.size > limit:
        reasons.append({"drop": "overlong, dropped", "split": "overlong, split"}.get(rules.overlength, "overlong, cut"))
        pieces = {
            "drop": [],
            "truncate_right": [(0, tokens[:limit])],
            "truncate_left": [(tokens.size - limit, tokens[-limit:])],
            "split": [(start, tokens[start : start + limit]) for start in range(0, tokens.size, limit)],
        }[rules.overlength]
    kept = []
    for start, piece in pieces:
        piece[0] &= ~LOSS_BIT  # nothing comes before it that could predict it
        if piece.size < rules.min_length:
            reasons.append("shorter than prep.min_length")
        elif rules.template.loss.on_empty != "keep" and not np.any(piece & LOSS_BIT):
            reasons.append("without a token to train")
        else:
            kept.append((start, piece))
    return reasons, kept


def _encoder_of(one: Input, rules: Rules, *, expendable: bool = False) -> Encoder:
    template = template_of(rules.template, one.template, one.system).model_dump_json()
    fast = rules.backend.version if rules.backend is not None and rules.backend.fast else ""
    return _encoder(_named(rules.tokenizer, rules.added_tokens), fast, template, one.map, one.columns, expendable)


Named = tuple[Path, tuple[str, ...], Stamp]
"""A tokenizer's directory, the special tokens added to it, and the state its files are in."""


def _named(folder: Path, added: tuple[str, ...]) -> Named:
    # A process may prepare other data after this, with files that have changed, or from another working directory.
    return folder.absolute(), added, stamp(folder)


# One of each per process: loading a tokenizer takes longer than a chunk does.
@lru_cache(maxsize=8)
def _encoder(
    tokenizer: Named,
    fast: str,
    template: str,
    map_name: str,
    columns: tuple[tuple[str, str], ...],
    expendable: bool,
) -> Encoder:
    made = Template.model_validate(json.loads(template))
    return Encoder(_fast_tokenizer(tokenizer, fast), made, map_name, columns=dict(columns), expendable=expendable)


@lru_cache(maxsize=1)
def _fast_tokenizer(named: Named, wanted: str) -> Tokenizer:
    """Served by the fast library if it has this version; a machine where it has not does its share without it."""
    tokenizer = _tokenizer(named)
    if wanted:
        with suppress(Unsupported):
            fast = tokenizer.fast()
            return tokenizer.served_by(fast) if fast.version == wanted else tokenizer
    return tokenizer


def tokenizer_of(folder: Path, added: tuple[str, ...] = ()) -> Tokenizer:
    """The tokenizer of this process."""
    return _tokenizer(_named(folder, added))


@lru_cache(maxsize=1)
def _tokenizer(named: Named) -> Tokenizer:
    folder, added, _ = named
    return load_tokenizer(folder, added)
