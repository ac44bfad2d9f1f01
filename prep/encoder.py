"""Records to token ids with loss: the map, the template and the tokenizer in one, many records at a time."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from pipelines import schema
from pipelines.bounds import RunawayTemplate
from prep.conversation import Json, RecordError
from prep.formats.fault import RecordFault
from prep.json_tokenizer import UntokenizedError
from prep.last_record import LastRecord
from prep.records import record_map
from prep.spans import Span, audible
from prep.store import LOSS_BIT
from prep.template import Template
from prep.tokenizer import SpecialTokenError, Tokenizer, load_tokenizer

_SHORT = 48
"""Characters of a run that is worth remembering: role headers, separators, short answers."""
_REMEMBERED = 1 << 16
"""Runs remembered at most."""

Marked = npt.NDArray[np.uint32]
"""Token ids of one sample, bit 31 set where the token carries loss."""
_Rendered = tuple[int, list[Span]]
"""A record's number and its spans."""


class Encoder:
    """Built from what pickles cheaply, one per process.

    Args:
        tokenizer: a tokenizer, or its directory.
        template: the [template] table.
        map_name: name of the record map.
        columns: the record's own name of a key that the map reads, by key.
        expendable: this process may be lost to a template that takes too much.
    Raises:
        ConfigError: if these do not go together.
    """

    def __init__(
        self,
        tokenizer: Path | Tokenizer,
        template: schema.Template,
        map_name: str,
        *,
        columns: Mapping[str, str] = MappingProxyType({}),
        expendable: bool = False,
    ) -> None:
        self._tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, Path) else tokenizer
        self._template = Template(template, self._tokenizer, expendable=expendable)
        self._map = record_map(map_name, columns)
        self._special = {text: np.array([id_], np.uint32) for text, id_ in self._tokenizer.special_tokens.items()}
        self._known: dict[tuple[str, bool], Marked] = {}

    def encode(
        self, batch: Iterable[tuple[int, Mapping[str, Json]]], last: LastRecord | None = None
    ) -> Iterator[tuple[int, Marked | None]]:
        """Every record's number with its sample, or with None where the map leaves the record out.

        Args:
            batch: records with their numbers.
            last: is told which one is rendered.
        Raises:
            RecordFault: for the first record that cannot be encoded, after those before it.
        """
        rendered: list[_Rendered] = []
        left_out: set[int] = set()
        fault: RecordFault | None = None
        for number, record in batch:
            if last is not None:
                last.is_at(number)
            try:
                conversation = self._map(record)
                if conversation is None:
                    left_out.add(number)
                rendered.append((number, self._template.render(conversation) if conversation else []))
            except RecordError as error:
                fault = RecordFault(number, str(error))
                break
            except RunawayTemplate as error:
                fault = RecordFault(number, str(error), fatal=True)
                break
        for number, sample in self._tokenized(rendered):
            yield number, None if number in left_out else sample
        if fault is not None:
            raise fault

    def plain_texts(self, record: Mapping[str, Json]) -> list[str]:
        """The texts of one record that are tokenized by themselves; none if it cannot be rendered."""
        try:
            conversation = self._map(record)
            spans = self._template.render(conversation) if conversation else []
        except (RecordError, RunawayTemplate):  # who tokenizes it says so
            return []
        return [span.text for span in spans if not span.special]

    def encode_record(self, record: Mapping[str, Json]) -> tuple[list[int], list[bool]]:
        """Token ids of one record, and whether each carries loss; empty where the map leaves it out.

        Raises:
            RecordError: if it cannot be encoded.
        """
        conversation = self._map(record)
        try:
            return self._template.sample(conversation) if conversation else ([], [])
        except (SpecialTokenError, UntokenizedError) as error:
            raise RecordError("", str(error)) from error

    def _tokenized(self, rendered: Sequence[_Rendered]) -> Iterator[tuple[int, Marked]]:
        spans = [span for _, spans in rendered for span in spans]
        try:
            tokens = self._runs(spans)
        except (SpecialTokenError, UntokenizedError) as error:
            if len(rendered) == 1:
                raise RecordFault(rendered[0][0], str(error)) from error
            for one in rendered:
                yield from self._tokenized([one])
            return
        begin = end = 0
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum([run.size for run in tokens], dtype=np.int64)])
        marked = np.concatenate([np.zeros(0, np.uint32), *tokens])
        loss = np.array([span.loss for span in spans], np.uint32) << 31
        marked |= np.repeat(loss, np.diff(bounds))
        for index in [index for index, span in enumerate(spans) if span.mute]:
            run = marked[bounds[index] : bounds[index + 1]]
            run[~np.array(audible(spans[index], tokens[index].tolist(), self._tokenizer), bool)] &= ~LOSS_BIT
        for number, own in rendered:
            begin, end = end, end + len(own)
            yield number, marked[bounds[begin] : bounds[end]]

    def _runs(self, spans: Sequence[Span]) -> list[Marked]:
        """Tokens of every span, each text tokenized once."""
        known = self._known
        wanted = {(span.text, span.opens): None for span in spans if not span.special}
        missing = [key for key in wanted if key not in known]
        found = self._tokenizer.encode_all([text for text, _ in missing], [opens for _, opens in missing])
        runs = dict(zip(missing, found.parts(), strict=True))
        runs |= {key: known[key] for key in wanted if key in known}
        for key in missing:
            if len(key[0]) <= _SHORT and len(known) < _REMEMBERED:
                known[key] = runs[key].copy()  # which may be a view into all of the batch
        return [self._special[span.text] if span.special else runs[span.text, span.opens] for span in spans]
