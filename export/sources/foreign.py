"""What other trainers wrote, as an export reads a checkpoint of ours."""

import json
import shutil
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from export.sources import deepspeed, distributed, plain, universal
from export.sources.awq import AwqTensor
from export.sources.found import Found
from export.sources.names import Named, named, namings, refuse_code
from export.sources.original import as_llama, is_original, original_naming, taken_apart
from export.sources.stored import Float32, StoredTensor, files_of
from pipelines.artifacts import Json, Manifest, canonical_json, digest_file, identity, stamp, write_atomic
from pipelines.errors import CheckError, ConfigError, DataError
from pipelines.failing_disk import storage_error
from pipelines.file_ranges import FileRanges
from pipelines.llama_layouts import KEY, unit_rows
from pipelines.progress import progress_bar
from pipelines.toml_text import on_one_line

_READERS = (universal.find, deepspeed.find, distributed.find, plain.find)
_TOKENIZER = "tokenizer.json"
_BLOCK = 1 << 20
_THREADS = 2
_LISTED = 6  # names in a message
_MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What comes of taking apart values that are of another kind than they have to be."""


@dataclass(frozen=True)
class Beside:
    """Where an export looks for what a directory of weights lacks."""

    model: Callable[[], Path | None] = lambda: None
    """The directory of config.json, if there is none with the weights."""
    tokenizer: Callable[[], Path | None] = lambda: None
    """The tokenizer's directory, likewise."""
    prep: Path | None = None
    """The tokenizer that prep wrote, with its probes and its chat template; it is taken in any case."""
    code: bool = False
    """Whether Python files that come with the model may run."""
    cache: Path | None = None
    """A file that keeps the digests of weights for as long as their files stay as they are."""


ALONE = Beside()
"""Nowhere: the directory has to have all."""


def find(folder: Path) -> Found:
    """Whatever weights are in a directory.

    Raises:
        CheckError: if they are incomplete or damaged.
        DataError: if there are none, or of a kind that is not read.
    """
    for reader in _READERS:
        try:
            found = reader(folder)
        except (CheckError, DataError) as error:  # names of tensors may hold anything, lines of their own too
            raise type(error)(on_one_line(str(error))) from error
        except _MALFORMED as error:
            raise CheckError(
                f"{folder}: what its files say of the weights does not fit together ({type(error).__name__}: {error}); "
                "copy it again"
            ) from error
        except OSError as error:
            if storage_error(error) is not None:
                raise
            raise CheckError(f"{error.filename or folder}: cannot be read ({error.strerror}); copy it again") from error
        if found is not None:
            return found
    if not folder.is_dir():
        raise DataError(f"{folder}: no such directory")
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    listed = ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")
    raise DataError(
        f"{folder}: holds {listed or 'nothing'}, so no checkpoint that is read: packtrain's, DeepSpeed's, of "
        "torch.distributed.checkpoint, or a directory of safetensors; name its directory"
    )


class Foreign:
    """A checkpoint that packtrain did not write.

    Raises:
        CheckError: if it is incomplete or damaged, or its names are not the model's.
        ConfigError: if Transformers does not know the model.
        DataError: if there are no weights, or no config.json or tokenizer for them.
    """

    def __init__(self, folder: Path, beside: Beside) -> None:
        self.folder = folder
        found = find(folder)
        gathered = Path(mkdtemp(prefix="packtrain-"))
        weakref.finalize(self, shutil.rmtree, gathered, ignore_errors=True)
        self.model = _gather_model(folder, found, beside, gathered)
        self.tokenizer = _tokenizer(folder, found, beside)
        self._named, self._normalized = _named(folder, found, self.model, beside)
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tensor.shape for name, tensor in self._named.tensors.items()
        }
        self.step = found.step
        self.packs_consumed = 0
        self.adapter: Json = None
        self._ranges = FileRanges()
        self._cache = beside.cache
        self._seen = {path: stamp(path) for path in self._files()}
        self.manifest = self._manifest(found)

    def read(self, kind: str, name: str, start: int = 0, stop: int | None = None) -> Float32:
        """Elements start..stop of a flattened tensor; there is no kind but `parameter`."""
        assert kind == "parameter"
        tensor = self._named.tensors[name]
        stop = tensor.size if stop is None else stop
        if name not in self._normalized:
            return tensor.read(self._ranges, start, stop)
        width = tensor.shape[1]
        first, last = start // width * width, -(-stop // width) * width
        rows = unit_rows(tensor.read(self._ranges, first, last).reshape(-1, width))
        return rows.reshape(-1)[start - first : stop - first]

    @property
    def is_packed(self) -> bool:
        """Whether any matrix is stored in 4 bits."""
        return any(isinstance(tensor, AwqTensor) for tensor in self._named.tensors.values())

    def packed(self, name: str) -> tuple[AwqTensor, FileRanges] | None:
        """A matrix as the 4 bits that it is stored in, and how to read it; None where it is stored as numbers."""
        tensor = self._named.tensors[name]
        return (tensor, self._ranges) if isinstance(tensor, AwqTensor) else None

    def verify(self) -> None:
        """Read what the digests are of once more, unless that was just done.

        Raises:
            CheckError: if the weights changed, or a tied tensor is there twice and not the same.
        """
        if self._from_cache:
            self._refuse_others()
        self._compare_twice()

    def refuse_changed(self) -> None:
        """Read what the digests are of again if a file of it changed since; one that is gone was read before.

        Raises:
            CheckError: if the weights changed.
        """
        now = {path: stamp(path) for path in self._seen}
        if any(found not in (None, self._seen[path]) for path, found in now.items()):
            self._refuse_others()

    def _refuse_others(self) -> None:
        try:
            changed = self._digests(fresh=True) != self.manifest.facts["files"]
        except FileNotFoundError:
            changed = True
        if changed:
            raise CheckError(f"{self.folder}: changed since its digests were taken; export again")

    def _compare_twice(self) -> None:
        for name, other, first in self._named.twice:
            for start in range(0, first.size, _BLOCK):
                stop = min(start + _BLOCK, first.size)
                one, two = (tensor.read(self._ranges, start, stop) for tensor in (other, first))
                if not np.array_equal(one.view(np.uint32), two.view(np.uint32)):
                    raise CheckError(
                        f"{self.folder}: {name} is tied to another tensor by config.json, and they differ; set "
                        "tie_word_embeddings to false there if the model has both"
                    )

    def _manifest(self, found: Found) -> Manifest:
        """Identity by the bytes that are read: of the weights, and of the small files beside them."""
        small = {path.name: digest_file(path) for path in sorted(self.model.rglob("*")) if path.is_file()}
        small |= {path.name: digest_file(path) for path in _tokenizer_files(self.tokenizer)}
        files = self._digests()
        tensors = {name: _described(tensor, self.folder) for name, tensor in self._named.tensors.items()}
        facts: dict[str, Json] = {
            "buffers": {},
            "files": files,
            "format": found.format,
            "loss": None,
            "packs_consumed": 0,
            "parameters": {name: list(shape) for name, shape in self.shapes.items()},
            "step": found.step,
            "tied": dict(self._named.tied),
        }
        return Manifest(
            "checkpoint",
            0,
            identity("foreign", found.format, tensors, sorted(self._normalized), files, small),
            {},
            [],
            facts,
        )

    def _files(self) -> dict[Path, list[tuple[int, int]]]:
        """The ranges of every file that are read, in order."""
        return files_of([*self._named.tensors.values(), *(other for _, other, _ in self._named.twice)])

    def _digests(self, *, fresh: bool = False) -> dict[str, str]:
        """SHA-256 by file over the ranges of it that are read, in order."""
        ranges = self._files()
        known = {} if fresh else _cached(self._cache)
        keys = {path: _key(path, pieces) for path, pieces in ranges.items()}
        missing = [path for path, key in keys.items() if key not in known]
        self._from_cache = len(missing) < len(keys)
        total = sum(size for path in missing for _, size in ranges[path])
        with (
            progress_bar(f"reading {self.folder.name}", total, "B") as progress,
            ThreadPoolExecutor(_THREADS) as threads,
        ):
            tasks = {path: threads.submit(_digest, self._ranges, path, ranges[path], progress) for path in missing}
            digests = {path: task.result() for path, task in tasks.items()}
        found = {path: digests[path] if path in digests else known[keys[path]] for path in keys}
        if self._cache is not None and missing:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._cache, canonical_json({keys[path]: digest for path, digest in found.items()}))
        return {_place(path, self.folder): digest for path, digest in found.items()}


def _digest(ranges: FileRanges, path: Path, pieces: list[tuple[int, int]], progress: Callable[[int], object]) -> str:
    digest, buffer = sha256(), np.empty(4 * _BLOCK, np.uint8)
    for first, size in pieces:
        for start in range(first, first + size, buffer.size):
            part = buffer[: min(buffer.size, first + size - start)]
            ranges.read_bytes(path, start, part)
            digest.update(part.data)
            progress(part.size)
    return digest.hexdigest()


def _key(path: Path, pieces: list[tuple[int, int]]) -> str:
    """What a digest stays valid for."""
    stat = path.stat()
    about = (str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_dev)
    return identity(about, pieces)


def _cached(path: Path | None) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_bytes())) if path is not None else {}
    except (OSError, ValueError, TypeError):
        return {}  # it is made again


def _described(tensor: StoredTensor, folder: Path) -> Json:
    pieces = [{**vars(piece), "path": _place(piece.path, folder)} for piece in tensor.pieces]
    return {"shape": list(tensor.shape), "pieces": pieces}


def _place(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _gather_model(folder: Path, found: Found, beside: Beside, into: Path) -> Path:
    """config.json and what belongs to it, without whatever else lies in the directory."""
    within = next((one for one in found.beside if (one / "config.json").is_file()), None)
    where = within or beside.model()
    if where is None or not (where / "config.json").is_file():
        raise DataError(
            f"{folder}: has no config.json, and model.name_or_path names no model that has; put the model's there"
        )
    config = _config(where / "config.json")
    shutil.copyfile(where / "config.json", into / "config.json")
    if (where / "generation_config.json").is_file():
        _config(where / "generation_config.json")
        shutil.copyfile(where / "generation_config.json", into / "generation_config.json")
    if config.pop("quantization_config", None) is not None:  # what is read are numbers like any other model's
        write_atomic(into / "config.json", canonical_json(config))
    if is_original(config):
        write_atomic(into / "config.json", canonical_json(as_llama(config, folder)))
        return into
    for key in ("model_type", "architectures", "vocab_size"):
        if not config.get(key):
            raise DataError(f"{where / 'config.json'}: {key} is missing; put the model's own config.json there")
    if beside.code and "AutoModelForCausalLM" in (config.get("auto_map") or {}):
        for path in sorted(where.glob("*.py")):
            if path.name != "zero_to_fp32.py":  # which DeepSpeed leaves beside its checkpoints
                shutil.copyfile(path, into / path.name)
    return into


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckError(f"{path}: cannot be read ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise CheckError(f"{path}: holds no settings by name; copy it again")
    return found


def _named(folder: Path, found: Found, model: Path, beside: Beside) -> tuple[Named, set[str]]:
    """The tensors, and those of them whose rows are to be divided by their length."""
    config = _config(model / "config.json")
    code = model if next(model.glob("*.py"), None) else None
    try:
        choices = namings(config, folder, code)
    except ConfigError:
        if not beside.code:
            refuse_code(config, folder)
        raise
    if KEY not in config:
        return named(folder, found, choices), set()
    original, layout = original_naming(config[KEY], choices[0])
    stored = named(folder, found, [original, *choices])
    if stored.tensors.keys() != original.shapes.keys():
        return stored, set()  # a Llama's names already, and lengths divided by
    return taken_apart(folder, stored, layout, choices[0]), layout.normalized


def _tokenizer(folder: Path, found: Found, beside: Beside) -> Path:
    """The directory of the tokenizer: prep's, the checkpoint's own, or the one that the pipeline names."""
    own = next((one for one in found.beside if (one / _TOKENIZER).is_file()), None)
    if beside.prep is not None:
        if own is not None and _vocabulary(own) != _vocabulary(beside.prep):
            raise DataError(
                f"{own / _TOKENIZER}: has other tokens than {beside.prep}, which this pipeline's prep made; set "
                "tokenizer.name_or_path to the checkpoint's own and run prep again, or use another run.name"
            )
        return beside.prep
    where = own or beside.tokenizer()
    if where is None or not (where / _TOKENIZER).is_file():
        raise DataError(
            f"{folder}: has no {_TOKENIZER}, and the pipeline names none; run `packtrain prep` with this file, which "
            "makes one of tokenizer.name_or_path"
        )
    return where


def _vocabulary(folder: Path) -> dict[str, int]:
    path = folder / _TOKENIZER
    try:
        return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing more particular
        raise CheckError(f"{path}: not a tokenizer ({error}); copy it again") from error


def _tokenizer_files(folder: Path) -> list[Path]:
    kinds = ("*token*.json", "chat_template.jinja", "probes.json", "vocab.json", "merges.txt", "tokenizer.model")
    return sorted({path for kind in kinds for path in folder.glob(kind) if path.is_file()})
