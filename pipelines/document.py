"""A TOML document as read from a file and the files it extends, with the place of every key."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import tomli

from pipelines.errors import ConfigError
from pipelines.keys import find
from pipelines.schema import expand
from pipelines.toml_syntax import explain
from pipelines.toml_text import KeyPath, key_places, spell_key, spell_value, value_at


class Place(NamedTuple):
    """Where a key was given."""

    given_by: str
    """The file, or the `--set` option."""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.given_by}:{self.line}:{self.column}" if self.line else self.given_by


@dataclass
class Document:
    """A TOML document, possibly merged from several files, with the place of every key."""

    path: Path
    table: dict[str, Any]
    places: dict[KeyPath, Place]

    def place(self, key: KeyPath) -> Place:
        """Where a key stands; for one that does not, its table or else the file's beginning."""
        while key and key not in self.places:
            key = key[:-1]
        return self.places.get(key, Place(str(self.path), 1, 1))

    def forget(self, key: KeyPath) -> None:
        """Drop the places of a key and of everything in it."""
        for known in [known for known in self.places if known[: len(key)] == key]:
            del self.places[known]


def read(path: Path, cited: str = "", above: tuple[Path, ...] = ()) -> Document:
    """A file merged over the files it extends, and these over theirs."""
    if path.resolve() in above:
        raise ConfigError(f"{cited}: a file cannot extend itself; remove it")
    document = _parse(path, cited)
    extends = document.table.get("extends")
    if not isinstance(extends, list) or not all(isinstance(item, str) for item in extends):
        return document  # nothing to extend, or for the schema to complain about
    merged = Document(path, {}, {})
    for index, parent in enumerate(extends):
        key = ("extends", index)
        cited = f"{document.place(key)}: {spell_key(key)} = {spell_value(parent)}"
        try:
            location = Path(expand(parent))
        except ValueError as error:
            raise ConfigError(f"{cited}: {error}") from error
        found = read(path.parent / location, cited, (*above, path.resolve()))
        _begin_paths_at(location.parent, found.table)
        _merge(merged, found)
    _merge(merged, document)
    return merged


def parse_value(text: str) -> Any:
    """The value that a piece of TOML spells, with exact decimals.

    Raises:
        ValueError: with what is wrong with it.
    """
    try:
        parsed = _loads(f"value = {text}")
    except tomli.TOMLDecodeError as error:
        raise ValueError(explain(f"value = {text}", error)[1]) from error
    if parsed.keys() != {"value"}:
        raise ValueError("expected the value alone")
    return parsed["value"]


def values(path: KeyPath, value: object) -> Iterator[tuple[KeyPath, object]]:
    """Every value of a document that is neither a table nor an array, with its key."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from values((*path, key), item)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from values((*path, index), item)
    else:
        yield path, value


def _parse(path: Path, cited: str) -> Document:
    source = f"{cited}: {path}" if cited else str(path)
    try:
        if cited and path.exists() and not path.is_file() and not path.is_dir():
            raise ConfigError(f"{source}: a device or a pipe; name a TOML file")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{source}: no such file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{source}: a directory; name the TOML file in it") from error
    except OSError as error:
        raise ConfigError(f"{source}: cannot be read ({error.strerror})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8-sig")
        row, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        byte = f"0x{content[error.start]:02x}"
        raise ConfigError(f"{path}:{row}:{column}: byte {byte} is not UTF-8; save the file as UTF-8") from error
    try:
        table = _loads(text)
        spots = key_places(text)
    except tomli.TOMLDecodeError as error:
        spot, finding = explain(error.doc, error)
        raise ConfigError(f"{path}:{spot.line}:{spot.column}: {finding}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return Document(path, table, {key: Place(str(path), *spot) for key, spot in spots.items()})


def _loads(text: str) -> dict[str, Any]:
    try:
        return tomli.loads(text, parse_float=Decimal)
    except tomli.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("arrays or tables are nested too deep; no key needs that") from error
    except ValueError as error:  # from int(), which says what Python's limit is
        raise ValueError("a number has thousands of digits; no key needs that") from error


def _begin_paths_at(folder: Path, table: dict[str, Any]) -> None:
    """Let the paths of a file in `folder` mean the same in a file beside that folder."""
    for key, value in values((), table):
        known = find(key if isinstance(key[-1], str) else key[:-1])
        holder = value_at(table, key[:-1])
        is_repository = key[-1] == "name_or_path" and holder.get("source", "local") != "local"
        if known and known.is_path and isinstance(value, str) and not is_repository:
            try:
                text = str(folder / expand(value))
            except ValueError:
                continue  # for the schema to complain about
            holder[key[-1]] = text


def _merge(below: Document, above: Document) -> None:
    """Lay a document over another: tables merge, arrays and values replace."""

    def lay(table: dict[str, Any], over: Mapping[str, Any], path: KeyPath) -> None:
        for name, value in over.items():
            if isinstance(value, dict) and isinstance(table.get(name), dict):
                lay(table[name], value, (*path, name))
            else:
                below.forget((*path, name))
                table[name] = value

    lay(below.table, above.table, ())
    below.places |= above.places
