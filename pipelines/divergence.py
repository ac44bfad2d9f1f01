"""`packtrain verify A B`: where two runs or two artefacts first differ, in the order in which the work was done.

Of each kind of thing the first difference is named: what was set and recorded (kind, parent, setting), input file and
its record, pack with its token, step of the metrics, tensor with its element, any other file. Manifests say where to
look, so files of equal digests are not opened.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from pipelines.artifacts import MANIFEST, Json, Manifest, digest_file
from pipelines.checkpoints import Checkpoint
from pipelines.errors import DataError
from pipelines.file_ranges import FileRanges
from pipelines.progress import progress_bar
from pipelines.provenance import artefacts, find_artefact
from pipelines.safetensors_header import Entry, read_header
from pipelines.shards import Pack, ShardReader
from pipelines.terminal import printable

What = Literal["kind", "setting", "input", "record", "pack", "step", "tensor", "file"]

COMPUTED = ("epoch", "loss", "loss_tokens", "tokens", "grad_norm", "lr", "answer")
"""What a row of metrics.jsonl says of the computation; the rest is time and memory."""

_BLOCK = 1 << 22
"""Elements that are compared at once."""
_SHOWN = 80
"""Bytes of a record."""
_RECORDED = (
    "settings", "origins", "adapter", "tokenizer", "attention", "layout", "versions", "step", "packs_consumed",
    "optimizer", "scaler",
)  # fmt: skip
"""Facts that decide what the files of an artefact hold, and where a checkpoint is."""
_CONTENT = ("pack", "tensor", "file")
_LINES = {".jsonl", ".bin", ".csv", ".tsv", ".txt"}
"""Files whose lines are records."""
_STAGES = ("prep", "train", "export")


@dataclass(frozen=True)
class Divergence:
    """The first difference of one kind."""

    what: What
    where: str
    """Key, file and record, pack and token, step, or tensor and element."""
    a: Json
    b: Json
    """What is there; null for nothing."""

    def __str__(self) -> str:
        return f"{self.what} {self.where}: {_spelled(self.a)} in A, {_spelled(self.b)} in B"


@dataclass(frozen=True)
class Comparison:
    """What two places have in common, and where they part."""

    compared: Sequence[str]
    """Artefacts that both have, by their place below the two."""
    only_a: Sequence[str]
    only_b: Sequence[str]
    divergences: Sequence[Divergence]
    """The first of each kind, in the order of the work; empty where all is the same."""

    def as_json(self) -> dict[str, Json]:
        return {
            "same": not self.divergences,
            "compared": list(self.compared),
            "only_a": list(self.only_a),
            "only_b": list(self.only_b),
            "divergences": [vars(one) for one in self.divergences],
        }

    def text(self) -> str:
        if not self.divergences:
            lines = [f"the same: {', '.join(self.compared)}"]
        else:
            first, *rest = self.divergences
            lines = [f"first difference: {first}", *(f"then {one}" for one in rest)]
            if not any(one.what in ("kind", "step", *_CONTENT) for one in self.divergences):
                lines.append("no pack, step, tensor or file differs")
        lines += [f"only in A, not compared: {one}" for one in self.only_a]
        return "\n".join([*lines, *(f"only in B, not compared: {one}" for one in self.only_b)])


def compare(a: Path, b: Path) -> Comparison:
    """Find where two runs, two outputs of a stage or two artefacts first differ.

    What is found below both by the same name is compared. Every file is held against its manifest first.

    Raises:
        DataError: if the two have nothing in common.
        CheckError: at a file that is not as its manifest says.
    """
    for place in (a, b):
        if not place.is_dir():
            raise DataError(f"{place}: no such directory; name a run, or an artefact")
    below_a, below_b = _below(a), _below(b)
    common = [name for name in below_a if name in below_b]
    if not common:
        names = (", ".join(below) or f"no {MANIFEST}" for below in (below_a, below_b))
        raise DataError(f"{a}: {next(names)}; {b}: {next(names)}; name two runs, or two artefacts of one kind")
    found: dict[What, Divergence] = {}
    for name in common:
        if name.endswith("metrics.jsonl"):
            differences = _steps(below_a[name], below_b[name])
        elif "tensor" in found:
            continue  # what was computed from it differs as well
        else:
            differences = _artefacts(below_a[name], below_b[name])
        for one in differences:
            found.setdefault(one.what, one)
    return Comparison(
        compared=common,
        only_a=[name for name in below_a if name not in below_b],
        only_b=[name for name in below_b if name not in below_a],
        divergences=sorted(found.values(), key=lambda one: get_args(What).index(one.what)),
    )


def _below(place: Path) -> dict[str, Path]:
    """Artefacts and metrics at or below a place by their names there, in the order of the work."""
    found = {path.relative_to(place).as_posix(): path for path in artefacts(place)}
    runs = {path.parent.parent for path in found.values() if path.parent.name == "checkpoints"}
    for metrics in (folder / "metrics.jsonl" for folder in {*runs, place, place / "train"}):
        if metrics.is_file() and metrics.is_relative_to(place) and "." not in found:
            found[metrics.relative_to(place).as_posix()] = metrics
    return dict(sorted(found.items(), key=lambda one: (_stage(one[0]), "metrics" not in one[0], one[0])))


def _stage(name: str) -> int:
    return next((_STAGES.index(part) for part in name.split("/") if part in _STAGES), 1)


def _artefacts(a: Path, b: Path) -> Iterator[Divergence]:
    mine, other = _verified(a), _verified(b)
    if (mine.kind, mine.format_version) != (other.kind, other.format_version):
        kinds = (f"{one.kind} of format {one.format_version}" for one in (mine, other))
        yield Divergence("kind", str(a.name), next(kinds), next(kinds))
        return
    yield from _parents(a, mine, b, other)
    for key in _RECORDED:
        values = mine.facts.get(key), other.facts.get(key)
        yield from (Divergence("setting", *one) for one in _differences(*values, () if key == "settings" else (key,)))
    if mine.kind == "prep":
        yield from _inputs(a, mine, b, other)
    found = list(_content(a, mine, b, other))
    yield from found
    if not found and mine.facts.get("layout") == other.facts.get("layout"):
        yield from _other_bytes(mine, other)


def _content(a: Path, mine: Manifest, b: Path, other: Manifest) -> Iterator[Divergence]:
    if mine.kind == "prep":
        yield from _packs(a, mine, b, other)
    elif mine.kind == "checkpoint" and _digests(mine, ".safetensors") != _digests(other, ".safetensors"):
        yield from _training_state(Checkpoint(a), Checkpoint(b))
    else:
        yield from _weight_files(a, mine, b, other)
    yield from _files(a, mine, b, other)


def _other_bytes(mine: Manifest, other: Manifest) -> Iterator[Divergence]:
    """A file of other bytes in which nothing was found, such as state of an optimizer that is no number an element."""
    digests = _digests(mine), _digests(other)
    for name in sorted(digests[0].keys() & digests[1].keys()):
        if digests[0][name] != digests[1][name]:
            yield Divergence("file", name, digests[0][name], digests[1][name])
            return


def _verified(folder: Path) -> Manifest:
    manifest = Manifest.read(folder)
    assert manifest is not None, "found by its manifest"
    manifest.verify(folder)
    return manifest


def _parents(a: Path, mine: Manifest, b: Path, other: Manifest) -> Iterator[Divergence]:
    for kind in sorted({*mine.parents, *other.parents}):
        ids = mine.parents.get(kind), other.parents.get(kind)
        if ids[0] == ids[1]:
            continue
        places = [find_artefact(one, kind, id_) if id_ else None for one, id_ in zip((a, b), ids, strict=True)]
        if places[0] and places[1]:
            yield from _artefacts(places[0], places[1])
        else:
            yield Divergence("kind", f"parent {kind}", *ids)


def _differences(a: Json, b: Json, path: tuple[str, ...]) -> Iterator[tuple[str, Json, Json]]:
    """Key, and what is there on either side, for every difference below two values; an absent key is null."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            yield from _differences(a.get(key), b.get(key), (*path, key))
    elif isinstance(a, list) and isinstance(b, list):
        for index, (one, other) in enumerate(zip_longest(a, b)):
            yield from _differences(one, other, (*path, str(index)))
    elif a != b or type(a) is not type(b):
        yield ".".join(path), a, b


def _inputs(a: Path, mine: Manifest, b: Path, other: Manifest) -> Iterator[Divergence]:
    listed = zip_longest(mine.facts["files"], other.facts["files"])
    for index, (one, two) in enumerate(listed):
        names = [None if file is None else f"{file.get('source', '')}/{file['path']}" for file in (one, two)]
        if names[0] != names[1]:
            yield Divergence("input", f"number {index + 1} of the data order", *names)
            return
        if one != two:
            (key, *digests), *_ = sorted(_differences(one, two, ()), key=lambda found: found[0] != "sha256")
            yield Divergence("input", f"{names[0]}, its {key}", *digests)
            places = [_input_place(folder, index, file) for folder, file in ((a, one), (b, two))]
            if places[0] and places[1] and key == "sha256":
                yield from _record(str(names[0]), places[0], places[1])
            return


def _input_place(folder: Path, index: int, listed: Mapping[str, Any]) -> Path | None:
    """Where the input is, as long as it is what prep read."""
    try:
        path = Path(json.loads((folder / "run.json").read_bytes())["inputs"][index]["where"])
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return path if path.is_file() and digest_file(path) == listed["sha256"] else None


def _record(name: str, a: Path, b: Path) -> Iterator[Divergence]:
    if {a.suffix, b.suffix} <= _LINES:
        with a.open("rb") as mine, b.open("rb") as other:
            for number, (one, two) in enumerate(zip_longest(mine, other), start=1):
                if one != two:
                    yield Divergence("record", f"{name}:{number}", *_lines(one, two))
                    return
    elif a.suffix == b.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        rows = ((row for batch in ParquetFile(path).iter_batches(1024) for row in batch.to_pylist()) for path in (a, b))
        for number, (row, its) in enumerate(zip_longest(*rows), start=1):
            if row != its:
                texts = (None if one is None else str(one).encode() for one in (row, its))
                yield Divergence("record", f"{name}:{number}", *_lines(*texts))
                return


def _packs(a: Path, mine: Manifest, b: Path, other: Manifest) -> Iterator[Divergence]:
    for part in ("train", "eval"):
        facts = [manifest.facts if part == "train" else manifest.facts.get("eval") for manifest in (mine, other)]
        if not facts[0] or not facts[1]:
            if facts[0] != facts[1]:
                yield Divergence("pack", "held out", *(one and one["packs"] for one in facts))
            continue
        readers = ShardReader(a, part), ShardReader(b, part)
        for pack in range(_equal_packs(*readers), max(map(len, readers))):
            found = _pack(pack, *readers)
            if found is not None:
                yield Divergence("pack", f"{pack}{' held out' if part == 'eval' else ''}{found[0]}", *found[1:])
                break


def _equal_packs(a: ShardReader, b: ShardReader) -> int:
    """Packs of the first shards that are the same by their digests."""
    shards = zip(a.shards, a.packs_per_shard, b.shards, b.packs_per_shard, strict=False)
    return sum(packs for *_, packs in takewhile(lambda one: (one[0].sha256, one[1]) == (one[2].sha256, one[3]), shards))


def _pack(index: int, a: ShardReader, b: ShardReader) -> tuple[str, Json, Json] | None:
    """Where in a pack two readers differ, and what is there."""
    packs = [reader[index] if index < len(reader) else None for reader in (a, b)]
    one, other = packs
    if one is None or other is None:
        said = [None if pack is None else f"{pack.tokens.size} tokens" for pack in packs]
        return "", said[0], said[1]
    values: tuple[npt.NDArray[Any], npt.NDArray[Any]]
    if place := _unequal(one.tokens, other.tokens):
        what, values = "token", (one.tokens, other.tokens)
    elif place := _unequal(one.loss, other.loss):
        what, values = "loss of token", (one.loss, other.loss)
    elif place := _unequal(one.segments, other.segments):
        [at] = place
        return f" boundary {at}", _at(one.segments, at), _at(other.segments, at)
    else:
        return _other_origin(a, one, b, other)
    [at] = place
    said = [
        None if at >= pack.tokens.size else f"{_at(kept, at)} of {_origin(reader, pack, at)}"
        for kept, reader, pack in zip(values, (a, b), (one, other), strict=True)
    ]
    return f" {what} {at}", said[0], said[1]


def _other_origin(a: ShardReader, one: Pack, b: ShardReader, other: Pack) -> tuple[str, Json, Json] | None:
    """Where equal tokens of two packs are of other records, or of another place in them."""
    for segment, at in enumerate(one.segments[:-1].tolist()):
        said = [
            f"{_origin(reader, pack, at)} from its token {int(pack.start[segment])}"
            for reader, pack in ((a, one), (b, other))
        ]
        if said[0] != said[1]:
            return f" origin of token {at}", said[0], said[1]
    return None


def _unequal(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> tuple[int] | None:
    """The first place where two arrays differ, in a tuple that is true; the end of the shorter where one goes on."""
    shorter = min(a.size, b.size)
    places = np.flatnonzero(a[:shorter] != b[:shorter])
    if places.size:
        return (int(places[0]),)
    return (shorter,) if a.size != b.size else None


def _at(values: npt.NDArray[Any], place: int) -> Json:
    return values[place].item() if place < values.size else None


def _origin(reader: ShardReader, pack: Pack, position: int) -> str:
    """The record that a token of a pack came from, as SOURCE/PATH:RECORD, records from 1."""
    segment = int(np.searchsorted(pack.segments, position, side="right")) - 1
    file = reader.manifest.facts["files"][int(pack.file[segment])]
    return f"{file.get('source', '')}/{file['path']}:{int(pack.record[segment]) + 1}"


def _steps(a: Path, b: Path) -> Iterator[Divergence]:
    mine, other = _rows(a), _rows(b)
    for key in sorted({*mine, *other}):
        one, two = mine.get(key), other.get(key)
        if one is None or two is None:
            continue  # one run is further than the other, or was asked other questions
        for name in COMPUTED:
            if one.get(name) != two.get(name):
                step, kind, _ = key
                yield Divergence(
                    "step", f"{step}{'' if kind == 'train' else f' ({kind})'} {name}", one.get(name), two.get(name)
                )
                return


def _rows(path: Path) -> dict[tuple[int, str, str], Mapping[str, Any]]:
    """Rows by step and kind; of a step that was done again after a kill, what was computed last."""
    found = {}
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break  # a run that goes on may be writing it
            try:
                row = json.loads(line)
                found[row["step"], row["kind"], str(row.get("prompt", ""))] = row
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{path}:{number}: not a row of metrics; compare checkpoints instead") from error
    return found


def _training_state(a: Checkpoint, b: Checkpoint) -> Iterator[Divergence]:
    if a.shapes != b.shapes:
        shapes = [{name: list(shape) for name, shape in one.shapes.items()} for one in (a, b)]
        yield from (Divergence("tensor", *one) for one in _shapes(*shapes))
        return
    kinds = sorted({*a.kinds(), *b.kinds()} - {"buffer"}, key=lambda kind: (kind != "parameter", kind))
    with progress_bar("comparing", len(kinds) * len(a.shapes), "tensor") as progress:
        for kind in kinds:
            for name in sorted(a.shapes, key=_in_order):
                progress()
                if kind != "parameter" and not (kind in a.kinds_of(name) and kind in b.kinds_of(name)):
                    if kind in (*a.kinds_of(name), *b.kinds_of(name)):
                        yield Divergence(
                            "tensor", f"{kind} of {name}", kind in a.kinds_of(name), kind in b.kinds_of(name)
                        )
                    continue
                size = int(np.prod(a.shapes[name], dtype=np.int64))
                what = name if kind == "parameter" else f"{kind} of {name}"
                readers = partial(a.read, kind, name), partial(b.read, kind, name)
                for start in range(0, size, _BLOCK):
                    values = [read(start, min(size, start + _BLOCK)) for read in readers]
                    found = _element(what, start, values[0], values[1])
                    if found:
                        yield found
                        return
    buffers = dict(a.buffers()), dict(b.buffers())
    for name in sorted(buffers[0].keys() & buffers[1].keys(), key=_in_order):
        found = _element(name, 0, buffers[0][name].reshape(-1), buffers[1][name].reshape(-1))
        if found:
            yield found


def _shapes(a: Json, b: Json) -> Iterator[tuple[str, Json, Json]]:
    for name in sorted({*a, *b}, key=_in_order):
        if a.get(name) != b.get(name):
            yield f"shape of {name}", a.get(name), b.get(name)


def _element(name: str, start: int, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> Divergence | None:
    """The first element of other bits, so that NaN is NaN and 0 is not -0."""
    unequal = np.flatnonzero(a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}"))
    if not unequal.size:
        return None
    at = int(unequal[0])
    return Divergence("tensor", f"{name} element {start + at}", *(str(one[at]) for one in (a, b)))


def _weight_files(a: Path, mine: Manifest, b: Path, other: Manifest) -> Iterator[Divergence]:
    """The first tensor of safetensors files that differs, however the tensors lie in files."""
    if _digests(mine, ".safetensors") == _digests(other, ".safetensors"):
        return
    stored = [_stored(folder, manifest) for folder, manifest in ((a, mine), (b, other))]
    ranges = FileRanges()
    names = sorted({*stored[0], *stored[1]}, key=_in_order)
    with progress_bar("comparing", len(names), "tensor") as progress:
        for name in names:
            progress()
            one, two = (tensors.get(name) for tensors in stored)
            said = [None if entry is None else f"{entry[1].dtype} {list(entry[1].shape)}" for entry in (one, two)]
            if one is None or two is None or said[0] != said[1]:
                yield Divergence("tensor", name, *said)
                return
            for start in range(0, one[1].size, _BLOCK):
                values = [_bytes(ranges, *entry, start) for entry in (one, two)]
                unequal = np.flatnonzero(values[0] != values[1])
                if unequal.size:
                    width = one[1].size // max(1, int(np.prod(one[1].shape, dtype=np.int64)))
                    element = int(unequal[0]) // width
                    bits = [part[element * width : (element + 1) * width][::-1].tobytes().hex() for part in values]
                    yield Divergence(
                        "tensor", f"{name} element {start // width + element}", *(f"0x{one}" for one in bits)
                    )
                    return


def _stored(folder: Path, manifest: Manifest) -> dict[str, tuple[Path, Entry]]:
    paths = [folder / record.path for record in manifest.files if record.path.endswith(".safetensors")]
    return {name: (path, entry) for path in paths for name, entry in read_header(path).items()}


def _bytes(ranges: FileRanges, path: Path, entry: Entry, start: int) -> npt.NDArray[np.uint8]:
    values = np.empty(min(_BLOCK, entry.size - start), np.uint8)
    ranges.read_bytes(path, entry.first + start, values)
    return values


def _files(a: Path, mine: Manifest, b: Path, other: Manifest) -> Iterator[Divergence]:
    """The first file that differs and whose content is not looked into otherwise."""
    digests = _digests(mine), _digests(other)
    for name in sorted({*digests[0], *digests[1]}):
        if digests[0].get(name) == digests[1].get(name) or name.endswith((".safetensors", ".arrow", ".npz")):
            continue
        if not (name in digests[0] and name in digests[1]):
            yield Divergence("file", name, *(digest.get(name) for digest in digests))
        elif name.endswith(".json"):
            values = (json.loads((folder / name).read_bytes()) for folder in (a, b))
            for key, one, two in _differences(next(values), next(values), ()):
                yield Divergence("file", f"{name}: {key}", one, two)
                return
            yield Divergence("file", name, "the same values", "in other bytes")
        else:
            yield _first_bytes(name, a / name, b / name)
        return


def _first_bytes(name: str, a: Path, b: Path) -> Divergence:
    at = 0
    with a.open("rb") as mine, b.open("rb") as other:
        while True:
            parts = [np.frombuffer(file.read(_BLOCK), np.uint8) for file in (mine, other)]
            shorter = min(one.size for one in parts)
            unequal = np.flatnonzero(parts[0][:shorter] != parts[1][:shorter])
            if unequal.size or parts[0].size != parts[1].size:
                place = int(unequal[0]) if unequal.size else shorter
                values = (int(one[place]) if place < one.size else None for one in parts)
                return Divergence("file", f"{name} byte {at + place}", *values)
            assert shorter, "their digests differ"
            at += shorter


def _digests(manifest: Manifest, ending: str = "") -> dict[str, str]:
    return {record.path: record.sha256 for record in manifest.files if record.path.endswith(ending)}


def _in_order(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _lines(a: bytes | None, b: bytes | None) -> list[str | None]:
    """Two lines as text: as much as `_SHOWN` bytes of either, from shortly before they part."""
    if a is None or b is None:
        start = 0
    else:
        shorter = min(len(a), len(b))
        unequal = np.flatnonzero(np.frombuffer(a, np.uint8, shorter) != np.frombuffer(b, np.uint8, shorter))
        parted = int(unequal[0]) if unequal.size else shorter
        start = parted - _SHOWN // 4 if max(len(a), len(b)) > _SHOWN and parted > _SHOWN // 2 else 0
    return [None if line is None else _text(line, start) for line in (a, b)]


def _text(line: bytes, start: int) -> str:
    cut = line.rstrip(b"\r\n")
    text = cut[start : start + _SHOWN].decode("utf-8", "replace")
    return f"{'...' if start else ''}{text}{'...' if len(cut) > start + _SHOWN else ''}"


def _spelled(value: Json) -> str:
    text = value if isinstance(value, str) else "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return printable(text if len(text) <= 2 * _SHOWN else f"{text[: 2 * _SHOWN]}...")
