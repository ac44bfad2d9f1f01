"""A pack as a person reads it: its samples as text, what is trained marked, and where each of them came from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipelines.artifacts import Json
from pipelines.shards import Pack
from pipelines.terminal import columns, printable
from pipelines.token_text import TokenText

LINES = 40
"""Of a pack, unless asked otherwise."""
COLUMNS = 100

_LINES_OF_A_SAMPLE = 4  # at least: where it is from, its beginning, what is left out, its end
_LAID_OUT = 20_000  # tokens from each end of a sample: more than a screen shows
_GREEN, _DIM, _PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
_OPENS, _CLOSES = "\u27e6", "\u27e7"  # around what is trained, where there are no colours
_NEWLINE = "\u21b5"


class Preview:
    """Packs as text, in so many lines each.

    Args:
        files: the input files of the manifest, which packs' samples are from.
        tokenizer: a directory whose tokenizer.json says what the tokens are.
        colour: trained text is green; without, it stands between marks.
        lines: of a pack, its title not counted; longer ones are shortened in the middle of samples.
        width: columns of a line.
    """

    def __init__(
        self,
        files: Sequence[Mapping[str, Json]],
        tokenizer: Path,
        *,
        colour: bool,
        lines: int = LINES,
        width: int = COLUMNS,
    ) -> None:
        self._files = files
        self._colour, self._lines, self._width = colour, max(lines, 2 * _LINES_OF_A_SAMPLE), width
        self.tokens: TokenText | None = None
        self.why_ids = ""
        """Why there are no texts, or nothing."""
        try:
            self.tokens = TokenText(tokenizer)
        except FileNotFoundError:
            self.why_ids = "no tokenizer beside the shards"
        except ValueError as error:
            self.why_ids = str(error)

    def of(self, pack: Pack, title: str) -> str:
        """Title, samples and a last line; several lines without a line feed at the end."""
        samples = [_Sample.of(pack, index) for index in range(pack.segments.size - 1)]
        trained = "green" if self._colour else f"between {_OPENS} and {_CLOSES}"
        counts = f"{_tokens(pack.tokens.size, int(np.count_nonzero(pack.loss)))} in {_many(len(samples), 'sample')}"
        ids = "" if self.tokens else f"; token ids, as there is {self.why_ids}"
        return "\n".join([f"{title}: {counts}; what is trained is {trained}{ids}", *self._body(pack, samples), "└"])

    def _body(self, pack: Pack, samples: Sequence["_Sample"]) -> Iterator[str]:
        most = self._lines // _LINES_OF_A_SAMPLE
        head, tail = samples, samples[:0]
        if len(samples) > most:
            head, tail = samples[: most - most // 2], samples[len(samples) - most // 2 :]
        shown = [(sample, [*self._layout(pack, sample)]) for sample in (*head, *tail)]
        rooms = _share([len(lines) for _, lines in shown], self._lines - len(shown))
        for index, ((sample, lines), room) in enumerate(zip(shown, rooms, strict=True)):
            if index == len(head):
                yield self._dim(f"⋮ {_left_out(samples[len(head) : -len(tail)])} left out")
            yield f"├ {self._dim(self._heading(pack, sample))}"
            yield from (f"│ {line}" for line in self._shortened(lines, room))

    def _heading(self, pack: Pack, sample: "_Sample") -> str:
        file = int(pack.file[sample.index])
        where = f"file {file}, record {int(pack.record[sample.index]) + 1}"
        if file < len(self._files):
            one = self._files[file]
            where = f"{one['source']}/{one['path']}:{int(pack.record[sample.index]) + 1}"
        cut = f", from its token {start:,} on" if (start := int(pack.start[sample.index])) else ""
        joined = "" if sample.is_document else "; attends to what is before it"
        return printable(f"{where}{cut}: {_tokens(sample.tokens, sample.trained)}{joined}")

    def _layout(self, pack: Pack, sample: "_Sample") -> Iterator["_Line"]:
        """The lines of a sample, the middle of a very long one left out already."""
        ends = [range(sample.start, sample.stop)]
        if sample.tokens > 2 * _LAID_OUT:
            ends = [ends[0][:_LAID_OUT], ends[0][-_LAID_OUT:]]
        for number, part in enumerate(ends):
            if number:
                skipped = slice(ends[0].stop, part.start)
                yield _Line([], skipped.stop - skipped.start, int(np.count_nonzero(pack.loss[skipped])))
            yield from self._wrapped(pack, part, sample.borders)

    def _wrapped(self, pack: Pack, part: range, borders: Sequence[int]) -> Iterator["_Line"]:
        ids = pack.tokens[part.start : part.stop].tolist()
        texts = self.tokens.of(ids) if self.tokens else [f"{id_} " for id_ in ids]
        line, used, room = _Line(), 0, self._width - 2
        for at, text in zip(part, texts, strict=True):
            if at in borders:
                yield line
                yield _Line([("┄ attention begins anew", None)])
                line, used = _Line(), 0
            trained = bool(pack.loss[at])
            line.tokens += 1
            line.trained += trained
            for character in text:
                shown = _NEWLINE if character == "\n" else self._shown(character)
                wide = sum(map(columns, shown))
                if used + wide > room:
                    yield line
                    line, used = _Line(), 0
                line.add(shown, trained)
                used += wide
                if character == "\n":
                    yield line
                    line, used = _Line(), 0
        if line.runs or line.tokens:
            yield line

    def _shown(self, character: str) -> str:
        if not self._colour and character in (_OPENS, _CLOSES):
            return character.encode("unicode_escape").decode("ascii")  # so that marks are ours alone
        return printable(character)

    def _shortened(self, lines: Sequence["_Line"], room: int) -> Iterator[str]:
        if len(lines) <= room:
            yield from map(self._painted, lines)
            return
        head, tail = room - room // 2 - 1, room // 2
        rest = lines[head : len(lines) - tail]
        yield from map(self._painted, lines[:head])
        count = _tokens(sum(line.tokens for line in rest), sum(line.trained for line in rest))
        yield self._dim(f"… {count} left out …")
        yield from map(self._painted, lines[len(lines) - tail :])

    def _painted(self, line: "_Line") -> str:
        return "".join(self._marked(text, trained) for text, trained in line.runs)

    def _marked(self, text: str, trained: bool | None) -> str:
        if not trained:
            return self._dim(text) if trained is None else text
        return f"{_GREEN}{text}{_PLAIN}" if self._colour else f"{_OPENS}{text}{_CLOSES}"

    def _dim(self, text: str) -> str:
        return f"{_DIM}{text}{_PLAIN}" if self._colour else text


@dataclass
class _Line:
    """What stands in one line, and the tokens that begin in it."""

    runs: list[tuple[str, bool | None]] = field(default_factory=list)
    """Texts with whether they are trained; None for what is not of the data."""
    tokens: int = 0
    trained: int = 0

    def add(self, text: str, trained: bool) -> None:
        if self.runs and self.runs[-1][1] == trained:
            text = self.runs.pop()[0] + text
        self.runs.append((text, trained))


@dataclass(frozen=True)
class _Sample:
    """One segment of a pack."""

    index: int
    start: int
    stop: int
    trained: int
    is_document: bool
    """It begins a document: attention does not reach what is before it."""
    borders: Sequence[int]
    """Where documents begin within it."""

    @property
    def tokens(self) -> int:
        return self.stop - self.start

    @classmethod
    def of(cls, pack: Pack, index: int) -> "_Sample":
        start, stop = pack.segments[index : index + 2].tolist()
        begins = pack.cu_seqlens[np.searchsorted(pack.cu_seqlens, start) :]
        begins = begins[: np.searchsorted(begins, stop)].tolist()
        return cls(
            index, start, stop, int(np.count_nonzero(pack.loss[start:stop])), start in begins,
            [border for border in begins if border > start],
        )  # fmt: skip


def _share(wanted: Sequence[int], room: int) -> list[int]:
    """Room for each, as many lines as it wants where others want fewer than their share."""
    given = [0] * len(wanted)
    for left, index in zip(range(len(wanted), 0, -1), sorted(range(len(wanted)), key=wanted.__getitem__), strict=True):
        given[index] = min(wanted[index], room // left)
        room -= given[index]
    return given


def _left_out(samples: Sequence[_Sample]) -> str:
    count = _tokens(sum(sample.tokens for sample in samples), sum(sample.trained for sample in samples))
    return f"{_many(len(samples), 'sample')} of {count}"


def _tokens(count: int, trained: int) -> str:
    return f"{_many(count, 'token')}, {trained:,} trained"


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
