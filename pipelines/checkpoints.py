"""The checkpoint format: the training state as named fragments, readable on any number of ranks and without torch.

A checkpoint is a directory `step-00000500` that appears by rename:

    manifest.json                    kind `checkpoint`, parent `prep`; its facts are listed below
    state-00000-of-00002.safetensors one per rank: the fragments that rank owns
    model/                           config.json and generation_config.json as the exporter needs them, and the
                                     Python files of a model whose own code was trusted
    tokenizer/                       the tokenizer directory that prep read, with its chat template

Facts of the manifest:

    run            identity of the training run: settings and data; the manifest's own identity is that of the bytes
    parameters     name -> shape of every trained tensor, each tied tensor once
    tied           other name -> name in `parameters`
    buffers        name -> shape of every persistent buffer (kind `buffer`, float32 or int64)
    weights        [{"path", "size", "sha256"}] of the beginning of each state file, as far as it holds parameters and
                   buffers: who wants no more than those need not read the optimizer's state to know that they are whole
    kinds          what the optimizer keeps for each element, such as exp_avg
    optimizer      its scalars, such as {"step": 500.0}
    scaler         the dynamic loss scaler's state, for fp16
    skipped_steps  steps so far whose gradient was not finite, and which changed nothing
    step, total_steps, epoch, packs_consumed      where the run is
    loss           {"first": mean loss of the first step, "last": of this one}; of those with a finite loss
    settings       what the run's identity is made of, so that a difference can be named
    origins        only where the model is of a hub: {"model": {"source", "repository", "revision"}}, a commit
    layout         {"world_size", "zero_stage", "precision"} of the run that wrote it; any other can read it
    versions       of the libraries that computed it
    weights_only   only where the optimizer was not saved, so that no run can continue: true
    adapter        only where an adapter was trained, and `parameters` are its own:
                   {"base": {"sha256": `digest_base` of the model below it}, "config": PEFT's configuration,
                   "layers": adapted module -> {"rank", "scaling", "transposed", "dora"}},
                   and where the model below it was in 4 bits "four_bits": {"type": nf4 or fp4, "block": numbers with
                   one scale, "scale_block": scales with one scale of their own, or null, "compute_dtype": what they
                   were unpacked to, "matrices": name -> {"offset": added to every scale, "transposed": packed column
                   by column, "sha256": of the packed bytes, the scales and the scales' scales}}

A fragment is a flat run of one tensor's elements. Its key is `kind/name/first element`, for example
`parameter/model.norm.weight/0` or `exp_avg/model.layers.0.mlp.up_proj.weight/8192`. `parameter` is the float32 master
weight; the other kinds are the optimizer's. Fragments of one tensor never overlap and together cover it, however
ZeRO cut it, so any layout can be loaded into any other and the exporter reads only the ranges it wants.

Optimizers that pack numbers into blocks keep state that is not one number an element. It is saved as it is, under
`block/stretches.name/0`, where `stretches` is a digest of which elements of which parameters lie in the tensor that the
optimizer steps: only a layout that cuts the parameters the same way finds it.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from pipelines.artifacts import MANIFEST, FileRecord, Json, Manifest, Stamps, digest_file, other_digest
from pipelines.errors import CheckError, DataError
from pipelines.file_ranges import FileRanges
from pipelines.safetensors_header import read_header
from pipelines.schema import Pipeline

FORMAT_VERSION = 1
STEP_NAME = re.compile(r"step-(\d{8})")
_KEY = re.compile(r"([^/]+)/([^/]+)/(\d+)")


@dataclass(frozen=True)
class Fragment:
    """A flat run of one tensor's elements in one file."""

    path: Path
    key: str
    start: int
    """First element within the flattened tensor."""
    size: int
    """Elements."""
    first: int
    """Byte of the file that they begin at."""


class Checkpoint:
    """A finished checkpoint, opened for reading. Its small files have the digests of the manifest; see `verify`.

    Raises:
        DataError: if it is no checkpoint, or of another version.
        CheckError: if a small file, or what says where the tensors are, is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        manifest = Manifest.read(folder)
        if manifest is None or manifest.kind != "checkpoint":
            raise DataError(f"{folder}: not a finished checkpoint; name a step-* directory that holds {MANIFEST}")
        if manifest.format_version != FORMAT_VERSION:
            raise DataError(
                f"{folder}: checkpoint of format {manifest.format_version}, this version reads {FORMAT_VERSION}; "
                "export it with the version that wrote it"
            )
        manifest.below("model/", "tokenizer/").verify(folder)
        self.folder = folder
        self.manifest = manifest
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(shape) for name, shape in manifest.facts["parameters"].items()
        }
        """Every trained parameter by name."""
        self._seen: Stamps = {}
        self._blocks: dict[str, Fragment] = {}
        self._ranges = FileRanges()
        self._fragments = self._index()

    @property
    def model(self) -> Path:
        """The directory of config.json, and of the Python files of a model whose own code was trusted."""
        return self.folder / "model"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer directory that prep read."""
        return self.folder / "tokenizer"

    def verify(self) -> None:
        """Compare with the manifest what weights are read from: all but the optimizer's state.

        Raises:
            CheckError: if a file is missing or damaged.
        """
        self._seen = self.manifest.stamps(self.folder)
        self._compare(self.manifest)

    def refuse_changed(self) -> None:
        """Look again, after weights were read, where a file changed since `verify`; one that is gone was read before.

        Raises:
            CheckError: if a file is damaged.
        """
        now = self.manifest.stamps(self.folder)
        there = [path for path, found in now.items() if found is not None]
        if any(now[path] != self._seen[path] for path in there):
            self._compare(self.manifest.without(now.keys() - there))

    def _compare(self, manifest: Manifest) -> None:
        # Earlier versions mixed the two: then every file counts as a whole.
        listed = {record.path for record in manifest.files}
        found = [FileRecord(**one) for one in manifest.facts.get("weights", [])]
        beginnings = [one for one in found if one.path in listed]
        manifest.verify(self.folder, hashes=False)
        manifest.without(one.path for one in beginnings).verify(self.folder)
        paths = [self.folder / one.path for one in beginnings]
        with ThreadPoolExecutor(2) as threads:
            digests = threads.map(lambda path, one: digest_file(path, first=one.size), paths, beginnings)
            for path, digest, one in zip(paths, digests, beginnings, strict=True):
                if digest != one.sha256:
                    raise other_digest(path)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.manifest.facts["step"])

    @property
    def adapter(self) -> Json:
        """What was trained on top of which model; None where the whole model was."""
        return self.manifest.facts.get("adapter")

    @property
    def packs_consumed(self) -> int:
        """Packs of the global order consumed: the position in the data."""
        return int(self.manifest.facts["packs_consumed"])

    @property
    def is_resumable(self) -> bool:
        """Whether it holds the optimizer's state, and not the weights alone."""
        return not self.manifest.facts.get("weights_only", False)

    @property
    def has_blocks(self) -> bool:
        """Whether there is state that is not one number an element."""
        return bool(self._blocks)

    def kinds(self) -> list[str]:
        """`parameter`, and what the optimizer keeps per parameter."""
        return sorted({kind for kind, _ in self._fragments})

    def kinds_of(self, name: str) -> list[str]:
        """What the optimizer keeps for each element of a parameter."""
        return self._kinds.get(name, [])

    @cached_property
    def _kinds(self) -> dict[str, list[str]]:
        found: defaultdict[str, list[str]] = defaultdict(list)
        for kind, name in sorted(self._fragments):
            if kind != "parameter":
                found[name].append(kind)
        return dict(found)

    def block(self, stretches: str) -> dict[str, npt.NDArray[Any]]:
        """State that only fits a tensor of these stretches of the parameters, by its names.

        Raises:
            CheckError: if the parameters were cut otherwise.
        """
        found = {}
        for name, piece in self._blocks.items():
            if name.split(".")[0] == stretches:
                with safe_open(piece.path, framework="numpy") as file:
                    found[name.removeprefix(f"{stretches}.")] = file.get_tensor(piece.key)
        if not found:
            layout = self.manifest.facts["layout"]
            raise CheckError(
                f"{self.folder}: the state of this optimizer fits only the layout that wrote it, "
                f"{layout['world_size']} ranks with zero_stage = {layout['zero_stage']}; continue on that one, or "
                "start another run from its weights with train.load_from"
            )
        return found

    def fragments(self, kind: str, name: str) -> list[Fragment]:
        """The pieces of one tensor in element order.

        Raises:
            CheckError: if they do not cover the tensor exactly.
        """
        pieces = self._fragments.get((kind, name), [])
        position = 0
        for piece in pieces:
            if piece.start != position:
                break
            position += piece.size
        expected = int(np.prod(self.shapes[name], dtype=np.int64))
        if position != expected:
            raise CheckError(
                f"{self.folder}: {kind} of {name} holds {position} of {expected} elements in one piece; "
                "the checkpoint is incomplete, use another one"
            )
        return pieces

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        """Elements start..stop of a flattened tensor, reading only the fragments that hold them."""
        size = int(np.prod(self.shapes[name], dtype=np.int64))
        stop = size if stop is None else stop
        values = np.empty(stop - start, np.float32)
        for piece in self.fragments(kind, name):
            first, last = max(start, piece.start), min(stop, piece.start + piece.size)
            if first < last:
                at = piece.first + (first - piece.start) * values.itemsize
                self._ranges.read_bytes(piece.path, at, values[first - start : last - start])
        return values

    def tensors(self, kind: str = "parameter") -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
        """Every tensor of a kind, whole and in its shape, one at a time."""
        for name, shape in self.shapes.items():
            if kind != "parameter" and kind not in self.kinds_of(name):
                continue  # such as a running mean that only matrices have
            yield name, self.read(kind, name).reshape(shape)

    def buffers(self) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Every persistent buffer of the model, whole and in its shape: float32 or int64."""
        for name, shape in self.manifest.facts["buffers"].items():
            (piece,) = self._fragments["buffer", name]
            with safe_open(piece.path, framework="numpy") as file:
                yield name, file.get_tensor(piece.key).reshape(shape)

    def _index(self) -> dict[tuple[str, str], list[Fragment]]:
        fragments: defaultdict[tuple[str, str], list[Fragment]] = defaultdict(list)
        for record in self.manifest.files:
            if not re.fullmatch(r"state-\d{5}-of-\d{5}\.safetensors", record.path):
                continue
            path = self.folder / record.path
            for key, entry in read_header(path).items():
                found = _KEY.fullmatch(key)
                if found is None or (found[1] not in ("block", "buffer") and entry.dtype != "F32"):
                    raise CheckError(f"{path}: {key} as {entry.dtype} is no fragment; use another checkpoint")
                kind, name = found[1], found[2]
                piece = Fragment(path, key, int(found[3]), prod(entry.shape), entry.first)
                if kind == "block":
                    self._blocks[name] = piece
                else:
                    fragments[kind, name].append(piece)
        return {key: sorted(pieces, key=lambda piece: piece.start) for key, pieces in fragments.items()}


def fragment_key(kind: str, name: str, start: int) -> str:
    """The key of a fragment inside a state file."""
    return f"{kind}/{name}/{start}"


def base_folder(pipeline: Pipeline) -> Path:
    """The directory of the model below an adapter; the trainer writes that of a model from scratch."""
    return pipeline.model.name_or_path or pipeline.home / "train" / "base"


def base_files(folder: Path) -> list[Path]:
    """The weight files of a model directory, sorted: those in safetensors, or where it has none, those that torch.save
    wrote."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def digest_base(folder: Path) -> str:
    """SHA-256 over the names and digests of a model directory's weight files.

    Raises:
        DataError: if there are none.
    """
    paths = base_files(folder)
    if not paths:
        raise DataError(f"{folder}: no weight files of the model below an adapter; download the model's weights")
    with ThreadPoolExecutor() as threads:
        digests = list(threads.map(digest_file, paths))
    lines = "".join(f"{digest} {path.name}\n" for digest, path in zip(digests, paths, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()


def step_folder(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return checkpoints / f"step-{step:08d}"


def finished(checkpoints: Path) -> list[Path]:
    """Complete checkpoints below a directory, oldest first. Half-written ones are not seen."""
    if not checkpoints.is_dir():
        return []
    found: list[Any] = [path for path in checkpoints.iterdir() if STEP_NAME.fullmatch(path.name)]
    return sorted(path for path in found if (path / MANIFEST).is_file())
