"""Samples made of records of the sources, before or beside any shards, as packs of one sample each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.artifacts import write_atomic
from pipelines.errors import ConfigError, DataError
from pipelines.model_source import with_tokenizer
from pipelines.schema import Pipeline
from pipelines.shards import Pack
from prep.chunk import chunks_of, count_records, fit
from prep.derived import Derived, Deriver
from prep.inputs import Input
from prep.job import rules_of
from prep.order import files_on_disk, input_of, inputs_read_only
from prep.rendering import check_rendering
from prep.store import LOSS_BIT
from prep.tokenizer import Tokenizer, open_tokenizer
from prep.tokenizer_files import plain_files


@dataclass(frozen=True)
class Sample:
    """One record as prep makes a sample of it, before its length is held against prep.max_length."""

    pack: Pack
    """Of this sample alone."""
    file: Mapping[str, str]
    """Its source and path, as manifests list input files."""
    derived: Derived
    becomes: str
    """What prep does with it other than take it as it is, or nothing."""


class SourceSamples:
    """The records of a pipeline's sources.

    Raises:
        ConfigError: if tokenizer, templates and maps do not go together.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = with_tokenizer(pipeline)
        self.tokenizer: Tokenizer = open_tokenizer(self._pipeline)
        check_rendering(self._pipeline, self.tokenizer)
        self._rules = rules_of(self._pipeline, self.tokenizer)
        self._deriver = Deriver(self._pipeline, self.tokenizer)

    def write_tokenizer(self, folder: Path) -> None:
        """Write the files that tell the texts of tokens."""
        for name, content in plain_files(self.tokenizer).items():
            write_atomic(folder / name, content)

    def first(self, count: int) -> Iterator[Sample]:
        """The first samples of every source, in data order.

        Raises:
            DataError: if a record is faulty, or the data order does not match.
        """
        inputs = inputs_read_only(self._pipeline)
        for source in range(len(self._pipeline.prep.source)):
            left = count
            for one in (one for one in inputs if one.source == source):
                before = 0
                for chunk in chunks_of([one]):
                    if not left:
                        break
                    for number, derived in self._deriver.first(one, (chunk.begin, chunk.end), left, before):
                        yield self._sample(one, before + number, derived)
                        left -= 1
                    if left:
                        before += count_records(chunk, self._rules)

    def at(self, name: str) -> Sample:
        """The sample of one record.

        Args:
            name: SOURCE:RECORD, or SOURCE/PATH:RECORD where the source has several files; records count from 1.
        Raises:
            ConfigError: if there is no such file.
            DataError: if there is no such record, or it gives no sample.
        """
        place, _, number = name.rpartition(":")
        if not place or not number.isdecimal() or int(number) < 1:
            raise ConfigError(f"--sample {name}: expected SOURCE:RECORD or SOURCE/PATH:RECORD, records from 1")
        one, record = self._input(name, place), int(number) - 1
        before = 0
        for chunk in chunks_of([one]):
            count = count_records(chunk, self._rules)
            if record < before + count:
                derived = self._deriver.at(one, (chunk.begin, chunk.end), record - before, before)
                if derived is None or not derived.tokens:
                    raise DataError(
                        f"{one.where}:{record + 1}: gives no sample; is it blank, or does its map leave it out?"
                    )
                return self._sample(one, record, derived)
            before += count
        raise DataError(f"{one.where}: has {before:,} records, no {record + 1:,}")

    def _input(self, name: str, place: str) -> Input:
        names = [source.name for source in self._pipeline.prep.source]
        found = [
            one
            for one in files_on_disk(self._pipeline).values()
            if place in (names[one.source], f"{names[one.source]}/{one.path}")
        ]
        if len(found) != 1:
            hint = f"the sources are {', '.join(names)}"
            if found:
                hint = f"{place} has {len(found)} files; name one, such as {place}/{found[0].path}:1"
            raise ConfigError(f"--sample {name}: {'no such source or file' if not found else 'which file?'}; {hint}")
        return input_of(self._pipeline, found[0])

    def _sample(self, one: Input, record: int, derived: Derived) -> Sample:
        tokens = np.array(derived.tokens, np.uint32)
        loss = np.array(derived.loss, np.bool_)
        if tokens.size > self._rules.max_length and self._rules.overlength == "error":
            becomes = f"overlong: {tokens.size:,} tokens, prep.max_length is {self._rules.max_length:,}"
        else:
            becomes = ", ".join(fit(tokens | np.where(loss, LOSS_BIT, np.uint32(0)), self._rules)[0])
        loss[:1] = False  # nothing comes before it that could predict it
        bounds = np.array([0, tokens.size], np.int32)
        zero = np.zeros(1, np.uint32)
        pack = Pack(tokens, loss, bounds, bounds, zero, zero + np.uint32(record), zero)
        return Sample(pack, {"source": one.name, "path": one.path}, derived, becomes)
