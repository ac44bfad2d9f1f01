"""A config of another trainer as a pipeline TOML, with an account of every one of its keys."""

import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from pipelines.editor_schema import pointing, write_schema
from pipelines.errors import ConfigError
from pipelines.migrate import axolotl, internevo, llamafactory, python_config, yaml_config
from pipelines.migrate.config_tree import Node, Symbol, Unread, Verdict
from pipelines.migrate.draft import Draft
from pipelines.migrate.xtuner import config as xtuner
from pipelines.named_file import write_named_file
from pipelines.terminal import plural
from pipelines.toml_text import on_one_line, spell_value

Trainer = Literal["xtuner", "internevo", "axolotl", "llamafactory"]
_SECRET = re.compile(r"^token$|(hub|api|auth|access)_?token|secret|password|api_?key|webhook|alert_address", re.I)
_TITLES: dict[Verdict, str] = {
    "mapped": "mapped",
    "same": "so here without a key",
    "dropped": "dropped",
    "decide": "for you to decide",
}


class Line(NamedTuple):
    """What became of one key."""

    key: str
    line: int
    value: str
    verdict: Verdict
    keys: tuple[str, ...]
    note: str


@dataclass(frozen=True)
class Migration:
    """A pipeline, and the account."""

    toml: str
    lines: tuple[Line, ...]
    notes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """For programs."""
        counts = {verdict: sum(line.verdict == verdict for line in self.lines) for verdict in get_args(Verdict)}
        return {"keys": [line._asdict() for line in self.lines], "counts": counts, "notes": list(self.notes)}

    def report(self) -> str:
        """For people: every key, those that need a decision last."""
        parts = []
        for verdict, found in groupby(sorted(self.lines, key=_weight), key=lambda line: line.verdict):
            listed = list(found)
            parts += [f"{_TITLES[verdict]}: {plural(len(listed), 'key')}", *(f"  {_told(line)}" for line in listed)]
        if self.notes:
            parts += ["also for you to decide:", *(f"  {note}" for note in self.notes)]
        return "\n".join(parts)


def migrate(trainer: Trainer, path: Path, *, gpus: int | None = None) -> Migration:
    """Turn a config into a pipeline that the schema takes. No code in it is run.

    Args:
        trainer: whose it is.
        path: of the config.
        gpus: of the whole run, which no config says; without it the fewest that it can run on.
    Raises:
        ConfigError: if the file cannot be read, or GPUs do not divide.
    """
    draft = _draft(trainer, path, gpus)
    toml = draft.text()
    lines = [_line(leaf) for leaf in draft.config.leaves()]
    return Migration(toml, tuple(sorted(set(lines), key=lambda line: (line.line, line.key))), tuple(draft.notes))


def write(migration: Migration, out: Path) -> None:
    """Write the TOML, and the schema that it points to beside it.

    Raises:
        ConfigError: if another file is there.
    """
    content = pointing(migration.toml).encode()
    if out.is_file() and out.read_bytes() != content:
        raise ConfigError(f"{out}: exists with another content; move it away or choose another name")
    write_named_file(out, content)
    write_schema(out.parent)


def _draft(trainer: Trainer, path: Path, gpus: int | None) -> Draft:
    if trainer == "xtuner":
        return xtuner.draft(python_config.read(path), name=path.name, gpus=gpus)
    if trainer == "internevo":
        return internevo.draft(python_config.read(path), name=path.name, gpus=gpus)
    config = yaml_config.read(path)
    if trainer == "axolotl":
        return axolotl.draft(config, name=path.name, folder=path.parent, gpus=gpus)
    return llamafactory.draft(config, name=path.name, folder=path.parent, gpus=gpus)


def _line(leaf: Node) -> Line:
    assert leaf.finding is not None  # Draft.close gives every key one
    return Line(leaf.key, leaf.line, _shown(leaf), *leaf.finding)


def _shown(leaf: Node) -> str:
    if _SECRET.search(str(leaf.path[-1])) and isinstance(leaf.value, str):
        return "..."
    if leaf.alias is not None:
        return leaf.alias.key
    match leaf.value:
        case Symbol(name=text) | Unread(text=text):
            return on_one_line(text)
        case None:
            return "" if leaf.children is None else "[]" if leaf.is_list else "{}"
    return spell_value(leaf.value)


def _weight(line: Line) -> tuple[int, int, str]:
    order: tuple[Verdict, ...] = ("mapped", "same", "dropped", "decide")
    return order.index(line.verdict), line.line, line.key


def _told(line: Line) -> str:
    text = f"{line.line}: {line.key}" + (f" = {line.value}" if line.value else "")
    if line.verdict == "mapped":
        text += f" -> {', '.join(line.keys)}"
    return f"{text}: {line.note}" if line.note else text
