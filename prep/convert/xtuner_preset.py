"""Packs in the preset form of XTuner 1: samples in JSON lines, and arrays that say which of them make a pack.

    <part>/data/shard-00000.jsonl   a document a line: {"input_ids": [...], "labels": [...]}, labels not shifted
    <part>/data/padding.jsonl       one line of a pack's length without targets, where packs are not all full
    <part>/pack/boundaries.npy      int64[packs + 1], the rows of samples.npy that each pack is made of
    <part>/pack/samples.npy         int64[rows, 6]: path, line, -1, -1, first token, token behind the last
    <part>/pack/paths.json          the files of data by their absolute paths, which XTuner finds its datasets by
    <part>/order.npy                int64[packs], the packs in the order in which to train on them
    packtrain_samples.py            gives XTuner the samples as they are, since they are tokenized already

A document is what attention stays inside of: a segment, unless prep.pack says otherwise. XTuner refuses packs that are
not full, so a slice of the padding fills each up; no token of it is a target. After the directory has been moved,
converting again writes paths.json anew.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.resources import files as resources
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import orjson

from pipelines.artifacts import Json, write_atomic
from pipelines.shards import IGNORE, Pack
from prep.convert.part import Part, counts

VERSION = 1

_SAMPLES = "packtrain_samples.py"
_WHOLE = -1
"""In place of characters: the sample is no piece of a text that XTuner cuts itself."""

Int64 = npt.NDArray[np.int64]


def write(parts: Mapping[str, Part], folder: Path) -> dict[str, Json]:
    """Write every part into a folder of its own; returns what each holds."""
    (folder / _SAMPLES).write_bytes((resources("prep.convert") / f"{_SAMPLES}.txt").read_bytes())
    return {name: _write_part(part, folder / name) for name, part in parts.items()}


def place(folder: Path, final: Path) -> None:
    """Write each part's paths.json for data that lies, or will lie, below `final`."""
    for pack in sorted(folder.glob("*/pack")):
        data = pack.parent / "data"
        shards = sorted(data.glob("shard-*"), key=lambda path: (len(path.name), path.name))  # more than 99,999 too
        names = [path.name for path in (*shards, *data.glob("padding*"))]
        paths = [str(final / pack.parent.name / "data" / name) for name in names]
        write_atomic(pack / "paths.json", json.dumps(paths, ensure_ascii=False, indent=1).encode("utf-8"))


def _write_part(part: Part, folder: Path) -> Json:
    (folder / "data").mkdir(parents=True)
    (folder / "pack").mkdir()
    total = Counter(padding=0)
    rows_per_pack: list[int] = []
    padding = len(part.packs_per_shard)
    with _Rows(folder / "pack" / "samples.npy") as rows:
        for shard, packs in enumerate(part.shards()):
            line = 0
            with (folder / "data" / f"shard-{shard:05}.jsonl").open("wb") as file:
                for pack in packs:
                    file.writelines(_lines(pack))
                    found = _rows(pack, shard, line, padding=padding, capacity=part.capacity)
                    rows.append(found)
                    rows_per_pack.append(len(found))
                    total.update(counts(pack))
                    total["padding"] += part.capacity - pack.tokens.size
                    line += pack.cu_seqlens.size - 1
    if total["padding"]:
        nothing = np.zeros(part.capacity, np.int64)
        (folder / "data" / "padding.jsonl").write_bytes(_line(nothing, np.full_like(nothing, IGNORE)))
    np.save(folder / "pack" / "boundaries.npy", np.cumsum([0, *rows_per_pack], dtype=np.int64))
    np.save(folder / "order.npy", np.arange(len(rows_per_pack), dtype=np.int64))
    return {**total}


def _lines(pack: Pack) -> Iterator[bytes]:
    tokens, labels = pack.tokens.astype(np.int64), pack.labels
    for begin, end in pairwise(pack.cu_seqlens.tolist()):
        yield _line(tokens[begin:end], labels[begin:end])


def _line(tokens: Int64, labels: Int64) -> bytes:
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps({"input_ids": tokens, "labels": labels}, option=options)


def _rows(pack: Pack, path: int, line: int, *, padding: int, capacity: int) -> Int64:
    """The rows of one pack, whose documents are the lines from `line` on of file number `path`."""
    lengths = np.diff(pack.cu_seqlens)
    rows = np.full((lengths.size, 6), _WHOLE, np.int64)
    rows[:, 0], rows[:, 1], rows[:, 4], rows[:, 5] = path, np.arange(line, line + lengths.size), 0, lengths
    missing = capacity - pack.tokens.size
    return np.concatenate([rows, [[padding, 0, _WHOLE, _WHOLE, 0, missing]]]) if missing else rows


class _Rows:
    """samples.npy while it grows, so that its rows need not fit in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rows = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def append(self, rows: Int64) -> None:
        self._file.write(rows.tobytes())
        self._rows += len(rows)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            begin = self._begin
            self._file.seek(0)
            self._write_header()
            assert self._begin == begin  # NumPy leaves room for every number of rows
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": "<i8", "fortran_order": False, "shape": (self._rows, 6)}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._begin = self._file.tell()
