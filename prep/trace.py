"""One token of the shards, traced back: its segment, file and record, and the characters that it was made of.

Segment, file and record stand in the shard. The characters are found by making the sample of that one record again,
which is compared token for token with the segment first; where it differs, that is what is told. The result is one
JSON object:

    pack, shard, row     the pack as the reader counts, its shard, and the pack as the shard counts
    position, id, text   of the token; text is null without a tokenizer
    trained              whether it is a target
    segment              number within the pack, begin and end (of its tokens in the pack), sample_token (its place in
                         the sample), begins_document
    source, path, record of the input; record counts from 1, as lines do
    where                the file on this machine, null if it is not there
    same                 whether the record gives the segment again; null if it could not be made again
    why                  why not, or what differs
    rendered             begin, end and text of the token in what the template made of the record; null of tokens that
                         came as such
    field                name, begin, end and text: characters of one string of the record; null where the template
                         wrote the token
    file                 line, begin and end: bytes of the file that are these characters; null where the format does
                         not show them
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from pipelines.artifacts import Json, digest_file
from pipelines.errors import CheckError, ConfigError, DataError, PacktrainError
from pipelines.model_source import with_tokenizer
from pipelines.schema import Pipeline
from pipelines.shards import Pack, ShardReader
from pipelines.token_text import TokenText
from prep.chunk import chunks_of, count_records
from prep.conversation import RecordError
from prep.derived import Derived, Deriver
from prep.formats import ftdp
from prep.inputs import Input
from prep.job import known_digests, rules_of
from prep.lengths import chunk_of
from prep.line_place import in_json, in_tokens, line_of
from prep.order import OnDisk, files_on_disk, input_of
from prep.provenance import Field, field_of
from prep.resample import same_settings
from prep.tokenizer import Tokenizer, open_tokenizer


class Tracer:
    """Traces tokens of a pipeline's shards.

    Args:
        part: the packs that are trained on, or those held out.
    Raises:
        DataError: if there are no finished shards.
        CheckError: if the tokenizer beside them was changed; of tracing, if the token's shard was.
    """

    def __init__(self, pipeline: Pipeline, part: Literal["train", "eval"] = "train") -> None:
        self._folder = pipeline.home / "prep"
        self._reader = ShardReader(self._folder, part)
        self._facts = self._reader.manifest.facts
        self._reader.manifest.below("tokenizer/").verify(self._folder)
        self._texts = _token_text(self._folder / "tokenizer")
        self._records: _Records | None = None
        self._why = ""
        try:
            pipeline = with_tokenizer(pipeline)
            tokenizer = open_tokenizer(pipeline)
            same_settings(pipeline, self._facts, tokenizer, self._folder)
            self._records = _Records(pipeline, tokenizer, self._folder)
        except PacktrainError as error:
            self._why = str(error)

    def of(self, pack: int, position: int) -> Json:
        """Where a token came from, in the shape that this file's first lines describe.

        Args:
            pack: as the reader counts, from 0.
            position: of the token in the pack, from 0.
        Raises:
            ConfigError: if there is no such token.
        """
        found = self._in_shard(pack, position)
        if self._records is None:
            return found
        here = self._reader[pack]
        file = int(here.file[found["segment"]["number"]])
        try:
            made = self._records.made(self._facts["files"][file], file, found["record"] - 1)
            found["where"] = str(made.input.where)
            finding = made.finding or _difference(made.derived, here, found["segment"])
            if finding:
                found["same"] = False
                remedy = f"; verify the shards by `packtrain verify {self._folder}`"
                found["why"] = f"{made.changed}; {finding}" if made.changed else finding + remedy
            else:
                found["same"] = True
                found["why"] = f"{made.changed}, but not in this record" if made.changed else ""
                self._records.add_characters(found, made)
        except PacktrainError as error:
            found["why"] = str(error)
        return found

    def _in_shard(self, number: int, position: int) -> dict[str, Json]:
        """What the shard itself tells of a token."""
        if not 0 <= number < len(self._reader):
            raise ConfigError(f"pack {number}: {self._folder} has the packs 0 to {len(self._reader) - 1}")
        pack = self._reader[number]
        if not 0 <= position < pack.tokens.size:
            raise ConfigError(f"token {position}: pack {number} has the tokens 0 to {pack.tokens.size - 1}")
        segment = int(np.searchsorted(pack.segments, position, side="right")) - 1
        begin, end = pack.segments[segment : segment + 2].tolist()
        shard, row = self._reader.place(number)
        source = self._facts["files"][int(pack.file[segment])]
        return {
            "pack": number,
            "shard": shard,
            "row": row,
            "position": position,
            "id": int(pack.tokens[position]),
            "text": self._text(pack, begin, end, position),
            "trained": bool(pack.loss[position]),
            "segment": {
                "number": segment,
                "begin": begin,
                "end": end,
                "sample_token": int(pack.start[segment]) + position - begin,
                "begins_document": position in pack.cu_seqlens,
            },
            "source": source["source"],
            "path": source["path"],
            "record": int(pack.record[segment]) + 1,
            "where": None,
            "same": None,
            "why": self._why,
            "rendered": None,
            "field": None,
            "file": None,
        }

    def _text(self, pack: Pack, begin: int, end: int, position: int) -> str | None:
        if self._texts is None:
            return None
        around = slice(max(begin, position - 8), min(end, position + 8))  # a character may be of several tokens
        return self._texts.of(pack.tokens[around].tolist())[position - around.start]


def trace(pipeline: Pipeline, pack: int, position: int, *, part: Literal["train", "eval"] = "train") -> Json:
    """Where one token came from; see `Tracer`."""
    return Tracer(pipeline, part).of(pack, position)


def lines(found: Mapping[str, Any]) -> list[str]:
    """A trace for a person."""
    segment, text = found["segment"], f" {found['text']!r}," if found["text"] else ""
    told = [
        f"token {found['position']} of pack {found['pack']} (pack {found['row']} of {found['shard']}):{text} id "
        f"{found['id']}, {'trained' if found['trained'] else 'not trained'}",
        f"segment  {segment['number']} of the pack, its tokens {segment['begin']}:{segment['end']}; token "
        f"{segment['sample_token']} of its sample",
        f"record   {found['source']}/{found['path']}:{found['record']}"
        + (f", in {found['where']}" if found["where"] else ""),
    ]
    if rendered := found["rendered"]:
        told.append(f"rendered characters {rendered['begin']}:{rendered['end']}, {rendered['text']!r}")
    if field := found["field"]:
        told.append(f"field    {field['name']}, characters {field['begin']}:{field['end']}, {field['text']!r}")
    elif rendered:
        told.append("field    none: the template wrote it, or the map changed it")
    if place := found["file"]:
        line = f"line {place['line']}, " if place["line"] else ""
        told.append(f"file     {line}bytes {place['begin']}:{place['end']}")
    count = segment["end"] - segment["begin"]
    told.append(
        f"checked  the record gives the {count} tokens of the segment again"
        + (f" ({found['why']})" if found["why"] else "")
        if found["same"]
        else f"not the same: {found['why']}"
        if found["same"] is False
        else f"not checked: {found['why']}"
    )
    return told


def _token_text(folder: Path) -> TokenText | None:
    try:
        return TokenText(folder)
    except (FileNotFoundError, ValueError):
        return None


@dataclass(frozen=True)
class _Made:
    """One record, made again."""

    input: Input
    derived: Derived | None
    finding: str
    """Why there is no sample, or nothing."""
    changed: str
    """That the file changed, or nothing."""
    line: tuple[int, bytes] | None
    """Its first byte and its bytes, where a record is a line."""


class _Records:
    """Makes records again, and remembers the last."""

    def __init__(self, pipeline: Pipeline, tokenizer: Tokenizer, folder: Path) -> None:
        self._pipeline = pipeline
        self._tokenizer = tokenizer
        self._folder = folder
        self._deriver = Deriver(pipeline, tokenizer)
        self._inputs: dict[int, tuple[Input, str]] = {}
        self._last: tuple[tuple[int, int], _Made] | None = None

    def made(self, known: Mapping[str, Any], file: int, record: int) -> _Made:
        """A record of the input file that the manifest lists as `known`, under number `file`.

        Raises:
            CheckError: if there is no such file or record any more.
        """
        if self._last is None or self._last[0] != (file, record):
            if file not in self._inputs:
                one = self._input(known)
                changed = f"{one.where}: changed since prep read it" if self._is_changed(one, known) else ""
                self._inputs[file] = one, changed
            one, changed = self._inputs[file]
            chunk, number = self._chunk(one, file, record, changed=bool(changed))
            line = line_of(one.where, chunk[0], number) if one.format in ("jsonl", "text") else None
            derived, finding = None, "the record gives no sample now"
            try:
                derived = self._deriver.at(one, chunk, number) if line is None else self._of_line(one, line[1])
                finding = "" if derived is not None else finding
            except (DataError, RecordError) as error:
                finding = str(error)
            self._last = (file, record), _Made(one, derived, finding, changed, line)
        return self._last[1]

    def add_characters(self, found: dict[str, Json], made: _Made) -> None:
        """Add to a trace what the record tells of the token."""
        assert made.derived is not None
        token, derived = found["segment"]["sample_token"], made.derived
        if derived.record is None:
            at, line = _line_of_tokens(made.input.where, found["record"] - 1)
            if place := in_tokens(line, token):
                found["file"] = {"line": found["record"], "begin": at + place[0], "end": at + place[1]}
            return
        begin, end = derived.places(self._tokenizer)[token]
        found["rendered"] = {"begin": begin, "end": end, "text": derived.text[begin:end]}
        field = field_of(
            derived.text, begin, end, derived.record, lambda record: self._deriver.rendered(made.input, record)
        )
        if field is None:
            return
        value: Any = derived.record
        for key in field.keys:
            value = value[key]
        text = value[field.begin : field.end]
        found["field"] = {"name": field.name, "begin": field.begin, "end": field.end, "text": text}
        found["file"] = _in_file(made, field, found["record"])

    def _of_line(self, one: Input, line: bytes) -> Derived | None:
        """The sample of a line. What prep refuses in one needs no looking for: the tokens are compared.

        Raises:
            RecordError: if it is no record any more.
        """
        if not line.strip():
            return None
        try:
            record = orjson.loads(line) if one.format == "jsonl" else {"text": line.rstrip(b"\r\n").decode("utf-8")}
        except ValueError as error:
            raise RecordError("", f"the record cannot be read now: {error}") from error
        return self._deriver.of(one, record) if isinstance(record, dict) else None

    def _input(self, known: Mapping[str, Any]) -> Input:
        """The input file, without a look at all the others where it is where its path says."""
        sources = self._pipeline.prep.source
        index = next((i for i, one in enumerate(sources) if one.name == known["source"]), None)
        if index is not None:
            root = sources[index].path
            where = root if root.is_file() else root / known["path"]
            if where.is_file():
                return input_of(self._pipeline, OnDisk(index, known["path"], str(where)))
            for one in files_on_disk(self._pipeline).values():
                if (one.source, one.path) == (index, known["path"]):
                    return input_of(self._pipeline, one)
        raise CheckError(
            f"{known['source']}/{known['path']}: the shards in {self._folder} are made from it, and it is not among "
            "the inputs now; restore it"
        )

    def _is_changed(self, one: Input, known: Mapping[str, Any]) -> bool:
        state = one.where.stat()
        size, modified_ns, sha256 = known_digests(self._folder).get(str(one.where.resolve()), (-1, -1, ""))
        if (size, modified_ns, sha256) == (state.st_size, state.st_mtime_ns, known["sha256"]):
            return False
        return bool(state.st_size != known["size"] or digest_file(one.where) != known["sha256"])

    def _chunk(self, one: Input, file: int, record: int, *, changed: bool) -> tuple[tuple[int, int], int]:
        """The chunk that has the record, and its number there."""
        if not changed:
            if one.format == "ftdp":  # whose meta file knows every line
                return (record, record + 1), 0
            if kept := chunk_of(self._folder, file, record):
                begin, end, before = kept
                return (begin, end), record - before
        before = 0
        rules = rules_of(self._pipeline, self._tokenizer)
        for chunk in chunks_of([one]):
            count = count_records(chunk, rules)
            if record < before + count:
                return (chunk.begin, chunk.end), record - before
            before += count
        raise CheckError(f"{one.where}: has {before:,} records now; it changed since prep read it, restore it")


def _difference(derived: Derived | None, pack: Pack, segment: Mapping[str, Any]) -> str:
    """What of a segment the record does not give again, or nothing."""
    assert derived is not None
    begin, end = segment["begin"], segment["end"]
    start = int(pack.start[segment["number"]])
    tokens, loss = pack.tokens[begin:end].tolist(), pack.loss[begin:end].tolist()
    stop = start + len(tokens)
    again, trained = list(derived.tokens[start:stop]), [False, *derived.loss[start + 1 : stop]]
    if len(again) < len(tokens):
        return f"the record gives {len(derived.tokens)} tokens now, and the segment has its tokens {start}:{stop}"
    for at, (one, two) in enumerate(zip(tokens, again, strict=True)):
        if one != two:
            return f"token {at} of the segment is {one} in the shard, and {two} made again"
        if loss[at] != trained[at]:
            return f"token {at} of the segment is {'' if loss[at] else 'not '}trained in the shard, and otherwise again"
    return ""


def _line_of_tokens(path: Path, number: int) -> tuple[int, bytes]:
    """The byte at which a line of an ftdp file begins, and the line."""
    part = ftdp.lines(path, number, number + 1)
    offsets, _ = ftdp.read_meta(path, number, number + 1)
    return int(offsets[0]), part.text[part.starts[0] : part.ends[0]].tobytes()


def _in_file(made: _Made, field: Field, record: int) -> Json:
    """The bytes of the file that are the characters, where a record is a line."""
    if made.line is None:
        return None
    at, line = made.line
    if made.input.format == "jsonl":
        place = in_json(line, field)
    else:
        text = line.decode("utf-8")
        place = len(text[: field.begin].encode()), len(text[: field.end].encode())
    return place and {"line": record, "begin": at + place[0], "end": at + place[1]}
