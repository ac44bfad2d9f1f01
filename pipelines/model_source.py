"""Repositories of model hubs, brought to a directory of this machine: from the network, or from the local cache alone.

A stage asks for what it reads, the tokenizer or the model, and goes on with a pipeline that names directories. What a
revision stood for is kept as the commit, in the manifests and in run.json.
"""

import fcntl
import hashlib
import importlib
import inspect
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.artifacts import digest_file
from pipelines.errors import ConfigError, MachineError
from pipelines.progress import is_shown
from pipelines.schema import COMMIT, Origin, Pipeline
from pipelines.weight_index import read_index

log = logging.getLogger(__name__)

Part = Literal["tokenizer", "config", "weights"]
"""What is read of a repository; weights come with the config."""
Which = Literal["model", "tokenizer"]

_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_CONFIG = ("config.json", "generation_config.json")
_SAFETENSORS = ("model*.safetensors", "pytorch_model*.safetensors", "model.safetensors.index.json")
_BIN = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
_CODE = ("*.py",)
_PATTERNS: Mapping[Part, Sequence[str]] = {
    "tokenizer": _TOKENIZER,
    "config": _CONFIG,
    "weights": (*_CONFIG, *_SAFETENSORS),
}
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Hub:
    """A place that repositories are downloaded from, and the library that does it."""

    name: str
    library: str
    """The module with `snapshot_download`."""
    package: str
    """What pip installs for it."""
    branch: str
    """The main branch."""
    cache: str | None
    """`module:name` of its cache directory, if that holds models--org--name/snapshots/<commit>."""

    def module(self) -> Any:
        """The library.

        Raises:
            MachineError: if it is not installed.
        """
        try:
            return importlib.import_module(self.library)
        except ImportError as error:
            raise MachineError(
                f'source = "{self.name}" needs {self.library}, which is not installed here; pip install {self.package}'
            ) from error


HUBS: Mapping[str, Hub] = {
    "huggingface": Hub(
        "huggingface", "huggingface_hub", "huggingface_hub", "main", "huggingface_hub.constants:HF_HUB_CACHE"
    ),
    "modelscope": Hub("modelscope", "modelscope", "'packtrain[modelscope]'", "master", None),
    "openmind": Hub("openmind", "openmind_hub", "'packtrain[openmind]'", "main", "openmind_hub:OM_HUB_CACHE"),
}


def with_model(pipeline: Pipeline) -> Pipeline:
    """The pipeline with [model] a directory of this machine, downloaded if it has to be.

    Raises:
        ConfigError: if the directory is not there and the name may be a repository's; or that does not fit.
        MachineError: if it cannot be downloaded, or is not in the cache with run.offline.
    """
    return _with(pipeline, "model", ("weights",))


def with_tokenizer(pipeline: Pipeline) -> Pipeline:
    """The same for the directory that tokenization reads, [tokenizer]'s or else [model]'s."""
    return _with(pipeline, "tokenizer" if pipeline.tokenizer.name_or_path else "model", ("tokenizer",))


def with_small_files(pipeline: Pipeline) -> Pipeline:
    """The same of hubs' repositories for all but weights: what can be looked at before work."""
    for key, parts in _read(pipeline).items():
        if _origin(pipeline, key).source != "local":
            small: list[Part] = ["config" if part == "weights" else part for part in parts]
            pipeline = _with(pipeline, key, small)
    return pipeline


def fetch(pipeline: Pipeline) -> list[dict[str, str]]:
    """Download all that the pipeline's stages read of hubs, whatever run.offline says.

    Returns:
        What there is now, by table: its source, repository, revision and directory.
    """
    online = pipeline.model_copy(update={"run": pipeline.run.model_copy(update={"offline": False})})
    found = []
    for key, parts in _read(pipeline).items():
        if _origin(pipeline, key).source != "local":
            snapshot = _snapshot(online, key, parts)
            found.append({"table": key, **snapshot.origin, "folder": str(snapshot.folder)})
    return found


def missing_directory(pipeline: Pipeline, key: Which) -> str:
    """What to say of a directory that is not there: the name may be a hub's, then the key that says so is named."""
    if _may_be_a_repository(pipeline, key):
        return f'no such directory; if it is a hub\'s repository, set {key}.source = "huggingface"'
    return f"no such directory; name one with a {key}"


def code_digest(folder: Path) -> str:
    """SHA-256 over the names and digests of all Python files in a model directory."""
    lines = (f"{digest_file(path)} {path.relative_to(folder).as_posix()}\n" for path in sorted(folder.rglob("*.py")))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Wait until no other process of this user on this machine is in here with the same name."""
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"packtrain-{os.getuid()}-{digest}.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Snapshot:
    folder: Path
    origin: Mapping[str, str]


def _read(pipeline: Pipeline) -> dict[Which, list[Part]]:
    """What all stages together read."""
    model: list[Part] = ["weights"] if pipeline.train and pipeline.model.scratch is None else []
    if pipeline.tokenizer.name_or_path is None:
        return {"model": [*model, "tokenizer"]}
    return {"model": model, "tokenizer": ["tokenizer"]} if model else {"tokenizer": ["tokenizer"]}


def _with(pipeline: Pipeline, key: Which, parts: Sequence[Part]) -> Pipeline:
    origin = _origin(pipeline, key)
    if origin.name_or_path is None:
        return pipeline
    if origin.source == "local":
        if not origin.name_or_path.is_dir() and _may_be_a_repository(pipeline, key):
            raise ConfigError(f"{pipeline.cite(f'{key}.name_or_path')}: {missing_directory(pipeline, key)}")
        return pipeline
    snapshot = _snapshot(pipeline, key, parts)
    return pipeline.located(key, snapshot.folder, snapshot.origin)


def _may_be_a_repository(pipeline: Pipeline, key: Which) -> bool:
    """Whether a path that was written looks like org/name."""
    written = os.path.relpath(_origin(pipeline, key).name_or_path or "", pipeline.base)
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", written, re.ASCII) is not None


def _origin(pipeline: Pipeline, key: Which) -> Origin:
    return pipeline.tokenizer if key == "tokenizer" else pipeline.model


def _snapshot(pipeline: Pipeline, key: Which, parts: Sequence[Part]) -> _Snapshot:
    origin = _origin(pipeline, key)
    hub, repository = HUBS[origin.source], str(origin.name_or_path)
    revision = origin.revision or hub.branch
    bins = pipeline.model.weights_format == "safetensors_or_bin"
    code = key == "model" and pipeline.model.trust_remote_code

    def snapshot(folder: Path) -> _Snapshot:
        commit = folder.name if _is_commit(folder.name) else revision
        return _Snapshot(folder, {"source": hub.name, "repository": repository, "revision": commit})

    def lacks(folder: Path) -> str:
        if code and next(folder.rglob("*.py"), None) is None:
            return "no code in Python files"
        return next(filter(None, (_lacks(folder, part, bins=bins) for part in parts)), "")

    with one_at_a_time(f"{hub.name}:{repository}"):
        if pipeline.run.offline or _is_commit(revision):
            folder = _cached(hub, repository, revision, origin)
            if folder is not None and not lacks(folder):
                return snapshot(folder)
            if pipeline.run.offline:
                finding = "is not there" if folder is None else f"has {lacks(folder)}"
                raise MachineError(
                    f"{pipeline.cite(f'{key}.name_or_path')}: in the local cache of {hub.name}, revision {revision} "
                    f"{finding}, and run.offline = true; run `packtrain fetch FILE` where there is a network"
                )
        patterns = [*(_CODE if code else ()), *(pattern for part in parts for pattern in _PATTERNS[part])]
        folder = _download(pipeline, key, hub, revision, patterns)
        if "weights" in parts and bins and _lacks(folder, "weights", bins=False):
            folder = _download(pipeline, key, hub, folder.name if _is_commit(folder.name) else revision, _BIN)
    if finding := lacks(folder):
        remedy = "" if bins or "weights" not in finding else (
            '; where it has .bin files, set model.weights_format = "safetensors_or_bin"'
        )  # fmt: skip
        raise ConfigError(f"{pipeline.cite(f'{key}.name_or_path')}: the repository has {finding}{remedy}")
    found = snapshot(folder)
    log.info("%s: %s of %s, revision %s", key, repository, hub.name, found.origin["revision"])
    return found


def _cached(hub: Hub, repository: str, revision: str, origin: Origin) -> Path | None:
    """The directory of a revision in the local cache; nothing is asked of the network."""
    if hub.cache is None:
        try:
            where = hub.module().snapshot_download(
                repository, revision=revision, local_files_only=True, **_place(origin)
            )
        except Exception:  # its libraries and versions have no error of their own in common
            return None
        return Path(where)
    module, name = hub.cache.split(":")
    hub.module()
    cache = Path(origin.source_args.get("cache_dir") or getattr(importlib.import_module(module), name))
    folder = cache / f"models--{repository.replace('/', '--')}"
    try:
        commit = revision if _is_commit(revision) else (folder / "refs" / revision).read_text().strip()
    except OSError:
        return None
    where = folder / "snapshots" / commit
    return where if where.is_dir() else None


def _download(pipeline: Pipeline, key: Which, hub: Hub, revision: str, patterns: Sequence[str]) -> Path:
    origin = _origin(pipeline, key)
    library = hub.module()
    arguments = _arguments(pipeline, key, library)
    try:
        with _bars(hub):
            where = library.snapshot_download(
                str(origin.name_or_path), revision=revision, allow_patterns=list(patterns), **arguments
            )
    except Exception as error:  # three libraries, over two HTTP clients: what they raise has nothing else in common
        finding = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MachineError(
            f"{pipeline.cite(f'{key}.name_or_path')}: {hub.name} does not give revision {revision}: {finding}; check "
            f"name and revision, {key}.source_args, and the network; run.offline = true takes what was fetched before"
        ) from error
    return Path(where)


@contextmanager
def _bars(hub: Hub) -> Iterator[None]:
    """Leave the bars to the library, which knows bytes; Hugging Face's shows none where ours would show none."""
    if hub.name != "huggingface" or is_shown(sys.stderr):
        yield
        return
    utils: Any = importlib.import_module("huggingface_hub.utils")
    were_off = utils.are_progress_bars_disabled()
    utils.disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            utils.enable_progress_bars()


def _arguments(pipeline: Pipeline, key: str, library: Any) -> dict[str, Any]:
    """source_args as the library takes them, secrets from the environment."""
    origin = pipeline.tokenizer if key == "tokenizer" else pipeline.model
    parameters = inspect.signature(library.snapshot_download).parameters
    open_ended = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
    found: dict[str, Any] = {}
    for name, value in origin.source_args.items():
        argument = name.removesuffix("_env")
        if argument not in parameters and not open_ended:
            raise ConfigError(
                f"{pipeline.cite(f'{key}.source_args')}: {library.__name__}.snapshot_download takes no {argument}; "
                "remove it"
            )
        if name != argument and not os.environ.get(value):
            raise ConfigError(f"{pipeline.cite(f'{key}.source_args')}: environment variable {value} is not set; set it")
        found[argument] = os.environ[value] if name != argument else value
    return found


def _place(origin: Origin) -> dict[str, Any]:
    return {"cache_dir": origin.source_args["cache_dir"]} if "cache_dir" in origin.source_args else {}


def _is_commit(revision: str) -> bool:
    return re.fullmatch(COMMIT, revision) is not None


def _lacks(folder: Path, part: Part, *, bins: bool) -> str:
    """What is not there of what is read, or nothing; a download that was cut off leaves some out."""
    if part == "tokenizer":
        names = ("tokenizer.json", "tokenizer.model")
        return "" if any((folder / name).is_file() for name in names) else f"neither {' nor '.join(names)}"
    if not (folder / "config.json").is_file():
        return "no config.json"
    if part == "config":
        return ""
    for index in _INDEXES[: 1 + bins]:
        if (folder / index).is_file():
            try:
                named = set(read_index(folder / index).values())
            except ValueError:
                return f"a damaged {index}"
            return next((f"no {name}" for name in sorted(named) if not (folder / name).is_file()), "")
    patterns = ("*.safetensors", "pytorch_model*.bin")[: 1 + bins]
    there = any(next(folder.glob(pattern), None) for pattern in patterns)
    return "" if there else "no weights in safetensors files"
