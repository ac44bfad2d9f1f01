"""Samples derived again from the raw data, and compared token for token with what the shards hold.

Digests tell that files are as they were written. This tells that what was written is what the data gives: records are
read, mapped, rendered and tokenized anew, with the library that defines the tokenizer.
"""

import json
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pipelines.artifacts import Json, canonical_json, digest_file
from pipelines.errors import CheckError
from pipelines.model_source import with_tokenizer
from pipelines.progress import progress_bar
from pipelines.schema import Pipeline
from prep.chunk import Rules, chunks_of, count_records, fit, outcomes
from prep.formats.fault import RecordFault
from prep.inputs import Input, digest
from prep.job import known_digests, rules_of, settings, versions
from prep.order import files_on_disk, input_of
from prep.segments import Segment, Segments, choose
from prep.store import LOSS_BIT, Marked
from prep.tokenizer import Tokenizer, open_tokenizer

_SHOWN = 8
"""Tokens shown on either side of a difference."""
_LONG = 80
"""Characters of a setting that are shown."""


def resample(pipeline: Pipeline, count: int) -> Json:
    """Derive `count` of the shards' segments again, or all where there are fewer.

    Which ones depends on the shards alone, and they are spread over all sources and files. Only the chunks that hold
    them are read, and of those only their records tokenized. A file that has the size and time it had when prep read
    it counts as unchanged, unless a difference is found in it.

    Returns:
        How many samples, tokens and input files were compared, and how many segments there are.
    Raises:
        DataError: if there are no finished shards, or an input cannot be read.
        CheckError: for the first that differs: a setting, the tokenizer, an input file, a token.
    """
    pipeline = with_tokenizer(pipeline)
    folder = pipeline.home / "prep"
    segments = Segments(folder)
    facts = segments.manifest.facts
    tokenizer = open_tokenizer(pipeline)
    same_settings(pipeline, facts, tokenizer, folder)
    sources = [one["source"] for one in facts["files"]]
    chosen = choose(segments.file, sources, count=count, key=int(segments.manifest.identity[:16], 16))
    by_file: dict[int, list[Segment]] = defaultdict(list)
    for segment in segments.at(chosen):
        by_file[segment.file].append(segment)
    inputs = _inputs(pipeline, facts, sorted(by_file), folder)
    check = _Check(folder, facts, rules_of(pipeline, tokenizer), tokenizer)
    with progress_bar("deriving again", int(chosen.size), "sample") as progress:
        tokens = 0
        for file, one in inputs.items():
            tokens += check.file(one, by_file[file])
            progress(len(by_file[file]))
    return {"samples": int(chosen.size), "segments": int(segments.file.size), "tokens": tokens, "files": len(inputs)}


def summary(result: Mapping[str, Any]) -> str:
    """What was compared, in a line."""
    return (
        f"{result['samples']:,} of {result['segments']:,} segments derived again from {result['files']:,} input files: "
        f"{result['tokens']:,} tokens and their targets are as in the shards"
    )


def same_settings(pipeline: Pipeline, facts: Mapping[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a pipeline that is not the one the shards were made with."""
    now = json.loads(canonical_json(settings(pipeline)))
    if difference := _difference(now, facts["settings"], ""):
        key, here, there = difference
        key = "run.seed" if key == "seed" else key
        raise CheckError(
            f"{key} is {_said(here)}, and was {_said(there)} when the shards in {folder} were written; set it back, or "
            "run `packtrain prep` again"
        )
    if tokenizer.digest != facts["tokenizer"]:
        raise CheckError(
            f"{pipeline.tokenizer_dir}: differs from the tokenizer that the shards in {folder} were written with; "
            "restore it, or run `packtrain prep` again"
        )


_ABSENT = object()


def _difference(here: Json, there: Json, key: str) -> tuple[str, Json, Json] | None:
    """The first key in which two settings differ, and both its values."""
    if isinstance(here, dict) and isinstance(there, dict):
        pairs = [(name, here.get(name, _ABSENT), there.get(name, _ABSENT)) for name in sorted({*here, *there})]
    elif isinstance(here, list) and isinstance(there, list):
        if len(here) != len(there):
            return f"the number of {key}", len(here), len(there)
        pairs = [(str(index), *both) for index, both in enumerate(zip(here, there, strict=True))]
    else:
        return None if here == there else (key, here, there)
    found = (_difference(one, other, f"{key}.{name}" if key else name) for name, one, other in pairs)
    return next(filter(None, found), None)


def _said(value: Json) -> str:
    if value is _ABSENT:
        return "not set"
    text = json.dumps(value, ensure_ascii=False)  # a template file counts by its text, which may be long
    return text if len(text) <= _LONG else f"{text[:_LONG]}..."


def _inputs(pipeline: Pipeline, facts: Mapping[str, Any], files: Sequence[int], folder: Path) -> dict[int, Input]:
    """The input files with these numbers, as they are on disk.

    Raises:
        CheckError: if one is missing or is not what prep read.
    """
    sources = pipeline.prep.source
    on_disk = {(sources[one.source].name, one.path): one for one in files_on_disk(pipeline).values()}
    found: dict[int, Input] = {}
    for file in files:
        known = facts["files"][file]
        one = on_disk.get((known["source"], known["path"]))
        if one is None:
            raise CheckError(
                f"{known['source']}/{known['path']}: the shards in {folder} are made from it, and it is not among the "
                "inputs now; restore it, or run `packtrain prep` again"
            )
        found[file] = input_of(pipeline, one)
    digested = digest(list(found.values()), workers=len(os.sched_getaffinity(0)), known=known_digests(folder))
    for file, now in zip(found, digested, strict=True):
        known = facts["files"][file]
        if now.format != known["format"]:
            raise CheckError(
                f"{now.where}: is read as {now.format} here, and was read as {known['format']}; set format in "
                f"[[prep.source]] {now.name!r} back, or run `packtrain prep` again"
            )
        if now.sha256 != known["sha256"]:
            raise CheckError(_changed(now.where))
    return found


def _changed(where: Path) -> str:
    return f"{where}: changed since prep read it; restore it, or run `packtrain prep` again"


@dataclass(frozen=True)
class _Check:
    """Compares segments with what their records give now."""

    folder: Path
    facts: Mapping[str, Any]
    rules: Rules
    tokenizer: Tokenizer

    def file(self, one: Input, segments: Sequence[Segment]) -> int:
        """Derive the segments that are of one input file; returns the tokens compared."""
        by_record: dict[int, list[Segment]] = defaultdict(list)
        for segment in segments:
            by_record[segment.record].append(segment)
        tokens = before = 0
        for chunk in chunks_of([one]):
            try:
                count = count_records(chunk, self.rules)
            except RecordFault as fault:  # behind which nothing can be read
                finding = f"record {before + fault.record + 1:,} is faulty now: {fault.message}"
                self._differ(next(iter(by_record.values()))[0], one, finding)
            wanted = {record - before for record in by_record if before <= record < before + count}
            if wanted:
                for record, outcome in outcomes(chunk, self.rules, wanted):
                    for segment in by_record.pop(before + record, ()):
                        tokens += self._compare(segment, one, outcome)
            before += count
            if not by_record:
                break
        for record, left in by_record.items():
            self._differ(left[0], one, f"there is no sample in record {record + 1:,} of {before:,} now")
        return tokens

    def _compare(self, segment: Segment, one: Input, outcome: Marked | RecordFault | None) -> int:
        if isinstance(outcome, RecordFault):
            self._differ(segment, one, f"the record is faulty now: {outcome.message}")
        reasons, pieces = fit(outcome, self.rules)
        found = segment.tokens()
        begin, piece = next(
            (pair for pair in pieces if pair[0] <= segment.start < pair[0] + pair[1].size), (0, np.zeros(0, np.uint32))
        )
        if not piece.size:
            why = f" ({', '.join(reasons)})" if reasons else ""
            self._differ(segment, one, f"the record gives no sample that begins at token {segment.start:,} now{why}")
        # A cut is only where a pack begins or ends, so any other segment has to be the sample as a whole.
        cut = self.facts["settings"]["prep"]["pack"]["strategy"] == "concat_split"
        derived = piece[segment.start - begin :] if cut and segment.number == 0 else piece
        if cut and segment.is_last:
            derived = derived[: found.size]
        derived = derived.copy()
        derived[0] &= ~LOSS_BIT
        self._same(segment, one, found, derived)
        return found.size

    def _same(self, segment: Segment, one: Input, found: Marked, derived: Marked) -> None:
        shared = min(found.size, derived.size)
        different = np.flatnonzero(found[:shared] != derived[:shared])
        if not different.size and found.size == derived.size:
            return
        at = int(different[0]) if different.size else shared
        if at < shared and (found[at] ^ derived[at]) == LOSS_BIT:
            which = "a target in the shard, and none" if found[at] & LOSS_BIT else "no target in the shard, and one"
            self._differ(segment, one, f"token {at:,}, {self._text(found, at, at + 1)}, is {which} derived again")
        self._differ(
            segment,
            one,
            f"token {at:,} of {found.size:,} in the shard is {self._shown(found, at)}, and derived again, of "
            f"{derived.size:,}, it is {self._shown(derived, at)}",
        )

    def _shown(self, tokens: Marked, at: int) -> str:
        if at >= tokens.size:
            return f"missing behind {self._text(tokens, at - _SHOWN, at)}"
        return f"{int(tokens[at] & ~LOSS_BIT)} in {self._text(tokens, at - _SHOWN, at + _SHOWN)}"

    def _text(self, tokens: Marked, begin: int, end: int) -> str:
        ids = tokens[max(0, begin) : end] & ~LOSS_BIT
        return json.dumps(self.tokenizer.decode(ids.tolist()), ensure_ascii=False)

    def _differ(self, segment: Segment, one: Input, finding: str) -> NoReturn:
        if digest_file(one.where) != self.facts["files"][segment.file]["sha256"]:
            raise CheckError(_changed(one.where))
        now = versions()
        other = [
            f"{name} {old}, now {now.get(name)}" for name, old in self.facts["versions"].items() if old != now[name]
        ]
        raise CheckError(
            f"{self.folder / segment.shard}: pack {segment.row}, segment {segment.number}, from "
            f"{one.where}:{segment.record + 1} (source {one.name!r}): {finding}; run `packtrain prep` again"
            + (f" (prep ran with {', '.join(other)})" if other else "")
        )
