"""Packs as ftdp, the token files of InternEvo and XTuner 0.1: a segment a line, in a folder for each source.

`<part>/<source>/shard-00000.bin` has lines `{"tokens": [...]}`, a token without loss negated; beside it, with `.meta`,
an int64 array of (byte offset of the line, tokens) by line. InternEvo tells kinds of data by the folder, so each source
has its own. Those trainers pack anew and have their own keys for how far attention reaches, so the segments are kept in
the order of the packs, and where packs end is not.

Id 0 has no sign, and both trainers take no loss from it: targets of that id are counted as lost.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import orjson

from pipelines.artifacts import Json
from pipelines.shards import Pack
from prep.convert.part import Part, counts

log = logging.getLogger(__name__)

VERSION = 1


def write(parts: Mapping[str, Part], folder: Path) -> dict[str, Json]:
    """Write every part into a folder of its own; returns what each holds."""
    found = {name: _write_part(part, folder / name) for name, part in parts.items()}
    lost, targets = (sum(counts[key] for counts in found.values()) for key in ("lost_targets", "targets"))
    if lost:
        log.warning(
            "prep convert: %s of %s targets have token id 0, which ftdp cannot mark as trained; they carry no loss "
            "there",
            f"{lost:,}",
            f"{targets:,}",
        )
    return found


def _write_part(part: Part, folder: Path) -> dict[str, int]:
    total = Counter(lost_targets=0)
    for shard, packs in enumerate(part.shards()):
        with ExitStack() as stack:
            files: dict[str, _Lines] = {}
            for pack in packs:
                total.update(counts(pack))
                total["lost_targets"] += int(np.count_nonzero(pack.loss & (pack.tokens == 0)))
                for source, tokens in _segments(pack, part):
                    if source not in files:
                        path = folder / source / f"shard-{shard:05}.bin"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        files[source] = _Lines(stack.enter_context(path.open("wb")))
                    files[source].append(tokens)
            for lines in files.values():
                lines.write_meta()
    return {**total}


def _segments(pack: Pack, part: Part) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """Each segment's source, and its tokens with their signs."""
    signed = pack.tokens.astype(np.int64)
    np.negative(signed, out=signed, where=~pack.loss)
    for file, (begin, end) in zip(pack.file.tolist(), pairwise(pack.segments.tolist()), strict=True):
        yield part.sources[file], signed[begin:end]


class _Lines:
    """One .bin file that is being written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._rows: list[tuple[int, int]] = []
        self._offset = 0

    def append(self, tokens: npt.NDArray[np.int64]) -> None:
        line = orjson.dumps({"tokens": tokens}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
        self._rows.append((self._offset, tokens.size))
        self._offset += self._file.write(line)

    def write_meta(self) -> None:
        with Path(f"{self._file.name}.meta").open("wb") as file:
            np.save(file, np.array(self._rows, np.int64))
