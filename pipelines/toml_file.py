"""A pipeline TOML as text: its keys in the schema's order, each with a comment behind it."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any, NamedTuple

from pipelines.keys import names, schema_keys
from pipelines.toml_text import KeyPath, on_one_line, spell_key, spell_value


class Written(NamedTuple):
    """A value, and what to know about it."""

    value: Any
    comment: str = ""


def toml_file(keys: Mapping[KeyPath, Written], *, head: Iterable[str] = ()) -> str:
    """The text of a pipeline TOML.

    Args:
        keys: by their path, with the index of an array of tables as part of it: `("prep", "source", 0, "path")`. A key
            of a free table may be one of these paths, or be inside a value, which is then written on one line.
        head: lines of a comment at the beginning.
    """
    lines = [_comment(line) for line in head]
    for table, paths in groupby(sorted(keys, key=_place), key=lambda path: path[:-1]):
        listed = list(paths)
        lines += _header(table, blank=bool(lines))
        width = max(len(spell_key(path[-1:])) for path in listed)
        for path in listed:
            value, comment = keys[path]
            text = f"{spell_key(path[-1:]):{width}} = {spell_value(value, longest=1 << 30)}"
            lines.append(f"{text}  {_comment(comment)}" if comment else text)
    return "\n".join(lines) + "\n"


def _header(table: KeyPath, *, blank: bool) -> list[str]:
    if not table:
        return [""] * blank
    header = f"[[{spell_key(names(table))}]]" if isinstance(table[-1], int) else f"[{spell_key(names(table))}]"
    return ["", header] if blank else [header]


def _comment(text: str) -> str:
    return f"# {on_one_line(text)}".rstrip()


def _place(path: KeyPath) -> tuple[Any, ...]:
    """The schema's order: tables after the keys above them, keys of free tables as they come."""
    order = {key: index for index, key in enumerate(schema_keys())}
    table, last = names(path[:-1]), len(order)
    known = order.get((*table, str(path[-1])), last)
    elements = tuple(part for part in path if isinstance(part, int))
    return (order.get(table, -1 if not table else last), elements, known)
