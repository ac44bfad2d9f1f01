"""What a config calls its model and its data: a directory here, or a repository of a hub."""

import re
from pathlib import PurePosixPath

from pipelines.migrate.config_tree import Finding, Node
from pipelines.migrate.draft import Draft
from pipelines.toml_file import Written

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_DATA_FILE = re.compile(r"\.(jsonl?|parquet|arrow|csv|tsv|txt|bin)(\.(gz|zst))?$")

_FOLDERS = frozenset(("model", "models", "data", "dataset", "datasets", "ckpts", "checkpoints", "outputs", "saves"))
"""Names that nobody's repositories are under, and many people's files are."""


def map_model(draft: Draft, node: Node | None, table: str, *, source: str = "huggingface") -> None:
    """name_or_path and source of [model] or [tokenizer], from what a config names.

    Args:
        draft: to write to.
        node: the name; nothing happens where there is none.
        table: "model" or "tokenizer".
        source: of the hub, where it names a repository.
    """
    value = node.get("") if node else None
    if node is None or not isinstance(value, str):
        draft.map(node, f"{table}.name_or_path")  # says what is not known of it
        return
    if _REPOSITORY.fullmatch(value) and not _is_local(value):
        draft.map(node, f"{table}.name_or_path", value, keep=True)
        draft.put(f"{table}.source", source, f'a repository; "local" if {value} is a directory of yours')
    else:
        draft.map(node, f"{table}.name_or_path", local(value), keep=True)


def map_data(draft: Draft, node: Node, index: int) -> None:
    """The path of a source, from a file, a directory, or a data set of a hub."""
    value = node.get("")
    path = ("prep", "source", index, "path")
    if isinstance(value, str) and value and _is_local(value):
        draft.map(node, f"prep.source.{index}.path", local(value), note=_begins(value))
        return
    name = draft.keys[("prep", "source", index, "name")].value
    draft.keys[path] = Written(f"data/{name}", f"decide: was: {node.key}")
    if isinstance(value, str) and value:
        what = f"prep reads files: `hf download {value} --repo-type dataset --local-dir data/{name}`, or name your own"
    else:
        what = "name the file or the directory of the data"
    node.finding = Finding("decide", (f"prep.source.{index}.path",), what)


def add_source(draft: Draft, name: str) -> int:
    """Begin a source; returns its index."""
    names = {keys.value for path, keys in draft.keys.items() if path[:2] == ("prep", "source") and path[-1] == "name"}
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._") or "data"
    unique = next(
        one for number in range(1, len(names) + 2) if (one := f"{clean}-{number}" if number > 1 else clean) not in names
    )
    draft.keys[("prep", "source", len(names), "name")] = Written(unique[:128])
    return len(names)


def need_source(draft: Draft) -> None:
    """A pipeline has a source, also where the config names none."""
    if ("prep", "source", 0, "name") not in draft.keys:
        index = add_source(draft, "data")
        draft.ask(f"prep.source.{index}.path", "data", "name the file or the directory of the data")


def stem(value: object) -> str:
    """A name for what a path or a repository holds."""
    found = PurePosixPath(str(value)).name if isinstance(value, str) else ""
    return _DATA_FILE.sub("", found)


def local(value: str) -> str:
    """A path as the TOML takes it."""
    return "${env:HOME}" + value[1:] if value.startswith("~/") else value or "."


def run_name(draft: Draft, text: str) -> None:
    """The run's name, by the config's or the file's."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._") or "run"
    draft.keys[("run", "name")] = Written(clean[:128])


def _is_local(value: str) -> bool:
    first = value.partition("/")[0]
    return first in _FOLDERS or bool(_DATA_FILE.search(value)) or not _REPOSITORY.fullmatch(value)


def _begins(value: str) -> str:
    return "" if value.startswith(("/", "~")) else "begins at this file"
