"""One record as prep makes a sample of it, with all that leads from a token back to the record."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from pipelines.bounds import RunawayTemplate
from pipelines.errors import DataError
from pipelines.schema import Pipeline
from prep.conversation import Json, RecordError
from prep.formats import FORMATS, columnar, ftdp
from prep.formats.fault import RecordFault
from prep.inputs import Input
from prep.records import record_map
from prep.rendering import template_of
from prep.spans import Span
from prep.store import LOSS_BIT
from prep.template import Template
from prep.tokenizer import Tokenizer


@dataclass(frozen=True)
class Derived:
    """A record's tokens. Of data that came tokenized there is nothing else."""

    tokens: Sequence[int]
    loss: Sequence[bool]
    record: Mapping[str, Json] | None = None
    spans: Sequence[Span] = ()
    template: Template | None = None

    @cached_property
    def text(self) -> str:
        """What the template made of the record."""
        return "".join(span.text for span in self.spans)

    def places(self, tokenizer: Tokenizer) -> list[tuple[int, int]]:
        """[tokens] begin and end of the characters of `text` that each token stands for."""
        assert self.template is not None
        found: list[tuple[int, int]] = []
        before = 0
        for span in self.spans:
            own = [(0, len(span.text))] if span.special else tokenizer.offsets(span.text, opens=span.opens)
            found += [(before + begin, before + end) for begin, end in own]
            before += len(span.text)
        return found


class Deriver:
    """Makes samples of records of a pipeline's inputs.

    Args:
        pipeline: whose template and sources say how.
        tokenizer: what it tokenizes with.
    """

    def __init__(self, pipeline: Pipeline, tokenizer: Tokenizer) -> None:
        self._pipeline = pipeline
        self._tokenizer = tokenizer
        self._templates: dict[tuple[str | None, str | None], Template] = {}

    def of(self, one: Input, record: Mapping[str, Json]) -> Derived | None:
        """The sample of a record of an input; None where its map leaves it out.

        Raises:
            RecordError: if it cannot be rendered.
        """
        conversation = record_map(one.map, dict(one.columns))(record)
        if conversation is None:
            return None
        template = self._template(one)
        spans = template.render(conversation)
        return Derived(*template.tokens(spans), record, spans, template)

    def rendered(self, one: Input, record: Mapping[str, Json]) -> str | None:
        """What the template makes of a record; None where it is refused or left out."""
        try:
            conversation = record_map(one.map, dict(one.columns))(record)
            spans = self._template(one).render(conversation) if conversation else []
        except RecordError:
            return None
        return "".join(span.text for span in spans)

    def at(self, one: Input, chunk: tuple[int, int], number: int, before: int | None = None) -> Derived | None:
        """The sample of a record of a chunk, counted from the chunk's first; None where it gives none.

        Args:
            one: the file.
            chunk: begin and end.
            number: of the record.
            before: records of the file before the chunk, where that is known.
        Raises:
            DataError: if it is faulty, or there is no such record.
        """
        place = f"{one.where}, record {number + 1} of its chunk {chunk[0]}..{chunk[1]}"
        place = place if before is None else f"{one.where}:{before + number + 1}"
        try:
            found: Any
            if one.format in ("parquet", "arrow", "hf_disk"):
                limit = self._pipeline.prep.max_record_bytes
                found = columnar.record(one.where, *chunk, number, max_bytes=limit)
            else:
                found = next(islice(self._records(one, *chunk), number, None), None)
            if isinstance(found, RecordFault):
                raise found
            if one.format == "ftdp":
                return None if found is None else _tokenized(found)
            return None if found is None else self.of(one, found)
        except RecordFault as fault:
            raise DataError(f"{place}: {fault.message}") from fault
        except (RecordError, RunawayTemplate) as error:
            raise DataError(f"{place}: {error}") from error

    def first(self, one: Input, chunk: tuple[int, int], count: int, before: int = 0) -> Iterator[tuple[int, Derived]]:
        """The first samples of a chunk, with their record numbers in it.

        Args:
            one: the file.
            chunk: begin and end.
            count: of samples, at most.
            before: records of the file before the chunk.
        Raises:
            DataError: if one of them is faulty.
        """
        for number, found in enumerate(self._records(one, *chunk)):
            if not count:
                return
            try:
                if isinstance(found, RecordFault):
                    raise found
                made = None if found is None else _tokenized(found) if one.format == "ftdp" else self.of(one, found)
            except RecordFault as fault:
                raise DataError(f"{one.where}:{before + number + 1}: {fault.message}") from fault
            except (RecordError, RunawayTemplate) as error:
                raise DataError(f"{one.where}:{before + number + 1}: {error}") from error
            if made is not None and made.tokens:
                count -= 1
                yield number, made

    def _records(self, one: Input, begin: int, end: int) -> Iterator[Any]:
        if one.format == "ftdp":
            return (sample for _, sample in ftdp.samples(one.where, begin, end, vocab_size=self._tokenizer.vocab_size))
        limit = self._pipeline.prep.max_record_bytes
        return (record for _, record in FORMATS[one.format].records(one.where, begin, end, max_bytes=limit))

    def _template(self, one: Input) -> Template:
        key = one.template, one.system
        if key not in self._templates:
            self._templates[key] = Template(template_of(self._pipeline.template, *key), self._tokenizer)
        return self._templates[key]


def _tokenized(marked: Any) -> Derived:
    return Derived((marked & ~LOSS_BIT).tolist(), ((marked & LOSS_BIT) != 0).tolist())
