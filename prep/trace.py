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
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipelines.artifacts import Json, digest_file
from pipelines.errors import CheckError, ConfigError, DataError, PacktrainError
from pipelines.model_source import with_tokenizer
from pipelines.schema import Pipeline
from pipelines.shards import Pack, ShardReader
from pipelines.token_text import TokenText
from prep.chunk import chunks_of, count_records
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


def trace(pipeline: Pipeline, pack: int, position: int, *, part: Literal["train", "eval"] = "train") -> Json:
    """Where a token came from, in the shape that this file's first lines describe.

    Args:
        pack: as the reader counts, from 0.
        position: of the token in the pack, from 0.
        part: the packs that are trained on, or those held out.
    Raises:
        ConfigError: if there is no such token.
        DataError: if there are no finished shards.
    """
    folder = pipeline.home / "prep"
    reader = ShardReader(folder, part)
    here = _in_shard(reader, folder, pack, position)
    found: dict[str, Json] = {**here, "where": None, "same": None, "why": "", "rendered": None, "field": None}
    found["file"] = None
    try:
        pipeline = with_tokenizer(pipeline)
        tokenizer = open_tokenizer(pipeline)
        same_settings(pipeline, reader.manifest.facts, tokenizer, folder)
        _Trace(pipeline, tokenizer, reader, folder).fill(found, reader[pack])
    except PacktrainError as error:
        found["why"] = str(error)
    return found


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
        if found["same"]
        else f"not the same: {found['why']}"
        if found["same"] is False
        else f"not checked: {found['why']}"
    )
    return told


def _in_shard(reader: ShardReader, folder: Path, number: int, position: int) -> dict[str, Json]:
    """What the shard itself tells of a token."""
    if not 0 <= number < len(reader):
        raise ConfigError(f"pack {number}: {folder} has the packs 0 to {len(reader) - 1}")
    pack = reader[number]
    if not 0 <= position < pack.tokens.size:
        raise ConfigError(f"token {position}: pack {number} has the tokens 0 to {pack.tokens.size - 1}")
    segment = int(np.searchsorted(pack.segments, position, side="right")) - 1
    begin, end = pack.segments[segment : segment + 2].tolist()
    shard, row = reader.place(number)
    source = reader.manifest.facts["files"][int(pack.file[segment])]
    return {
        "pack": number,
        "shard": shard,
        "row": row,
        "position": position,
        "id": int(pack.tokens[position]),
        "text": _text(folder, pack, begin, end, position),
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
    }


def _text(folder: Path, pack: Pack, begin: int, end: int, position: int) -> str | None:
    try:
        tokens = TokenText(folder / "tokenizer")
    except (FileNotFoundError, ValueError):
        return None
    around = slice(max(begin, position - 8), min(end, position + 8))  # a character may be of several tokens
    return tokens.of(pack.tokens[around].tolist())[position - around.start]


class _Trace:
    """Makes the one record again."""

    def __init__(self, pipeline: Pipeline, tokenizer: Tokenizer, reader: ShardReader, folder: Path) -> None:
        self._pipeline = pipeline
        self._tokenizer = tokenizer
        self._facts = reader.manifest.facts
        self._folder = folder

    def fill(self, found: dict[str, Json], pack: Pack) -> None:
        """Add what the record tells."""
        segment = found["segment"]
        file, record = int(pack.file[segment["number"]]), found["record"] - 1
        known = self._facts["files"][file]
        one = self._input(known)
        found["where"] = str(one.where)
        changed = self._is_changed(one, known)
        chunk, number = self._chunk(one, file, record)
        deriver = Deriver(self._pipeline, self._tokenizer)
        try:
            derived = deriver.at(one, chunk, number)
        except DataError as error:
            raise self._differs(found, one, str(error), changed=changed) from error
        if difference := _difference(derived, pack, segment, int(pack.start[segment["number"]])):
            raise self._differs(found, one, difference, changed=changed)
        assert derived is not None
        found["same"] = True
        self._characters(found, one, derived, deriver, chunk, number)
        if changed:  # elsewhere in it
            found["why"] = f"{one.where}: changed since prep read it, but not in this record"

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

    def _chunk(self, one: Input, file: int, record: int) -> tuple[tuple[int, int], int]:
        """The chunk that has the record, and its number there."""
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

    def _differs(self, found: dict[str, Json], one: Input, finding: str, *, changed: bool) -> CheckError:
        found["same"] = False
        if changed:
            return CheckError(f"{one.where}: changed since prep read it; {finding}")
        return CheckError(f"{finding}; verify the shards by `packtrain verify {self._folder}`")

    def _characters(
        self,
        found: dict[str, Json],
        one: Input,
        derived: Derived,
        deriver: Deriver,
        chunk: tuple[int, int],
        number: int,
    ) -> None:
        token = found["segment"]["sample_token"]
        if derived.record is None:
            at, line = line_of_tokens(one.where, chunk[0] + number)
            if place := in_tokens(line, token):
                found["file"] = {"line": found["record"], "begin": at + place[0], "end": at + place[1]}
            return
        begin, end = derived.places(self._tokenizer)[token]
        found["rendered"] = {"begin": begin, "end": end, "text": derived.text[begin:end]}
        field = field_of(derived.text, begin, end, derived.record, lambda record: deriver.rendered(one, record))
        if field is None:
            return
        value: Any = derived.record
        for key in field.keys:
            value = value[key]
        found["field"] = {
            "name": field.name,
            "begin": field.begin,
            "end": field.end,
            "text": value[field.begin : field.end],
        }
        found["file"] = _in_file(one, chunk, number, field, found["record"])


def _difference(derived: Derived | None, pack: Pack, segment: Mapping[str, int], start: int) -> str:
    """What of a segment the record does not give again, or nothing."""
    if derived is None:
        return "the record gives no sample now"
    begin, end = segment["begin"], segment["end"]
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


def line_of_tokens(path: Path, number: int) -> tuple[int, bytes]:
    """The byte at which a line of an ftdp file begins, and the line."""
    part = ftdp.lines(path, number, number + 1)
    offsets, _ = ftdp.read_meta(path, number, number + 1)
    return int(offsets[0]), part.text[part.starts[0] : part.ends[0]].tobytes()


def _in_file(one: Input, chunk: tuple[int, int], number: int, field: Field, record: int) -> Json:
    """The bytes of the file that are the characters, where a record is a line."""
    if one.format not in ("jsonl", "text"):
        return None
    at, line = line_of(one.where, chunk[0], number)
    if one.format == "jsonl":
        place = in_json(line, field)
    else:
        text = line.decode("utf-8")
        place = len(text[: field.begin].encode()), len(text[: field.end].encode())
    return place and {"line": record, "begin": at + place[0], "end": at + place[1]}
