"""The ready pipelines: TOML files that ship with the package, and what they need beside them."""

import os
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines.artifacts import make_directory, write_atomic
from pipelines.document import Document, read
from pipelines.editor_schema import pointing, write_schema
from pipelines.errors import ConfigError
from pipelines.keys import find
from pipelines.toml_file import Written, toml_file
from pipelines.toml_text import KeyPath, value_at

HERE = Path(__file__).parent
READY = HERE / "ready"
"""Recipes for models of a hub; short, since they extend the files in parents/."""

_COMMENT = re.compile(r'(?:[^"#]|"(?:\\.|[^"\\])*")*#\s*(?P<text>.*)')
_NEXT = "Put your data where prep.source.path says; then: packtrain order write, check, prep, plan, train, export."


def recipes(words: Sequence[str] = ()) -> dict[str, str]:
    """What each ready pipeline does, by name: the first comment of its file.

    Args:
        words: that the name or the text has to have, all of them, in upper or lower case.
    """
    found = {}
    for path in (*sorted(HERE.glob("*.toml")), *sorted(READY.glob("*.toml"), key=lambda path: path.stem)):
        found[path.stem] = _purpose(path)
    return {
        name: what for name, what in found.items() if all(word.lower() in f"{name} {what}".lower() for word in words)
    }


def copy(name: str, folder: Path) -> list[Path]:
    """Copy a recipe into `folder`: one of a hub's model as a single file, another with the folder of its name.

    The schema by which an editor completes and checks it comes along, and follows the package that wrote it last.

    Returns:
        The files that were written.
    Raises:
        ConfigError: if there is no such recipe, or a file of another content is in the way. Nothing is copied then.
    """
    if name not in recipes():
        near = get_close_matches(name.lower(), recipes(), 5, 0.7)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ConfigError(f"{name}: no such recipe; {hint}`packtrain recipes` lists all of them")
    if (READY / f"{name}.toml").is_file():
        contents = {Path(f"{name}.toml"): pointing(self_standing(READY / f"{name}.toml")).encode()}
    else:
        sources = [HERE / f"{name}.toml", *_shipped(HERE / name)]
        contents = {path.relative_to(HERE): path.read_bytes() for path in sources}
    missing = {}
    for relative, content in contents.items():
        target = folder / relative
        if not target.exists():
            missing[target] = content
        elif target.read_bytes() != content:
            raise ConfigError(f"{target}: exists with another content; move it away or choose another directory")
    for target, content in missing.items():
        make_directory(target.parent, "name another directory")
        write_atomic(target, content)
    return [*missing, *write_schema(folder)]


def self_standing(path: Path) -> str:
    """A pipeline with the files it extends in one text, each key with its comment."""
    document = read(path)
    texts: dict[str, list[str]] = {}
    keys = {}
    for key in document.places:
        if _stands_alone(document, key):
            place = document.places[key]
            lines = texts.setdefault(place.given_by, Path(place.given_by).read_text(encoding="utf-8").splitlines())
            comment = _COMMENT.match(lines[place.line - 1])
            keys[key] = Written(_beside(key, value_at(document.table, key)), comment["text"] if comment else "")
    return toml_file(keys, head=[_purpose(path), _NEXT])


def generate(data: Path, write: Callable[[Path], object]) -> list[Path]:
    """Let `write` make the directory `data` (it is given the parent of one), unless it is there; returns its files."""
    if data.exists():
        return []
    with TemporaryDirectory(dir=make_directory(data.parent), prefix=".") as temporary:
        write(Path(temporary))
        (Path(temporary) / data.name).rename(data)
    return sorted(data.iterdir())


def _purpose(path: Path) -> str:
    """A file's first comment, which an editor's directive may stand above."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith("#:")).removeprefix("#").strip()


def _stands_alone(document: Document, key: KeyPath) -> bool:
    """Whether a place is that of a value with a key, and not of a table or of an array's element."""
    if key[0] == "extends" or not isinstance(key[-1], str):
        return False
    value = value_at(document.table, key)
    is_tables = isinstance(value, list) and any(isinstance(one, dict) for one in value)
    return not isinstance(value, dict) and not is_tables


def _beside(key: KeyPath, value: object) -> object:
    """A value as it is written beside the recipe: parents/../data is data, and 0.00002 is 2e-5."""
    if isinstance(value, Decimal):
        return float(value)
    known = find(key)
    return os.path.normpath(value) if known and known.is_path and isinstance(value, str) and ".." in value else value


def _shipped(folder: Path) -> list[Path]:
    # data/ is generated and __pycache__ is Python's; neither ships.
    inside = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in inside if not {"data", "__pycache__"} & set(path.relative_to(folder).parts))
