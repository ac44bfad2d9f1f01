"""The keys of a pipeline TOML, read off the schema: what each takes, its default and its documentation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from itertools import chain
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from pipelines.schema import Pipeline, Table
from pipelines.toml_text import KeyPath, spell_key, spell_value


@dataclass(frozen=True)
class Key:
    """One key, or one table, of the schema."""

    path: tuple[str, ...]
    """Without the indices of arrays: every [[prep.source]] has the same keys."""
    field: FieldInfo

    @property
    def name(self) -> str:
        return spell_key(self.path)

    @property
    def kind(self) -> Any:
        """Its type with all constraints, as the schema declares it."""
        return Annotated[self.field.annotation, *self.field.metadata] if self.field.metadata else self.field.annotation

    @property
    def required(self) -> bool:
        return self.field.is_required()

    @property
    def documentation(self) -> str:
        """The docstring; that of the table for a table without one of its own."""
        text = self.field.description or (self.table.__doc__ if self.table else None) or ""
        return " ".join(text.split())

    @property
    def table(self) -> type[Table] | None:
        """The schema's class where this key is a table or an array of tables."""
        return next((part for part in _parts(self.kind) if isinstance(part, type) and issubclass(part, Table)), None)

    @property
    def is_free(self) -> bool:
        """Whether it is a table of keys that the schema does not name."""
        return any(get_origin(part) is dict for part in _parts(self.kind))

    @property
    def is_array(self) -> bool:
        return any(get_origin(part) in (list, tuple) for part in _parts(self.kind))

    @property
    def is_path(self) -> bool:
        return Path in _parts(self.kind)

    @property
    def is_text(self) -> bool:
        """Whether it takes more text than values by name."""
        return bool({str, Path} & set(_parts(self.kind)))

    @property
    def values(self) -> tuple[str | int, ...]:
        """The values it takes by name, in the schema's order."""
        return tuple(chain.from_iterable(get_args(part) for part in _parts(self.kind) if get_origin(part) is Literal))

    @property
    def header(self) -> str:
        """How a table begins: `[prep.pack]`, or `[[prep.source]]`."""
        return f"[[{self.name}]]" if self.is_array else f"[{self.name}]"

    @property
    def example(self) -> str:
        """`capacity = 32768`, for a key without a default."""
        return f"{spell_key(self.path[-1:])} = {spell_value(self.field.examples[0])}" if self.field.examples else ""


@cache
def schema_keys() -> Mapping[tuple[str, ...], Key]:
    """Every table and key of the schema, tables before their keys, in the schema's order."""
    return {key.path: key for key in _keys(Pipeline, ())}


def find(path: KeyPath) -> Key | None:
    """The schema's key at a path of a document, or None where the schema has none."""
    return schema_keys().get(names(path))


def is_known(path: KeyPath) -> bool:
    """Whether the schema has the key, or a table above it that takes any key."""
    found = find(path)
    return bool(found) or (len(path) > 1 and (above := find(path[:-1])) is not None and above.is_free)


def names(path: KeyPath) -> tuple[str, ...]:
    """A document's path without the indices of arrays."""
    return tuple(part for part in path if isinstance(part, str))


def expectation(kind: Any) -> str:
    """What a type takes, in words that end a sentence: `a whole number from 1`."""
    if kind is NoneType:
        return ""
    if get_origin(kind) is Annotated:
        inner, *limits = get_args(kind)
        return expectation(inner) + _limits(limits, whole=inner is int)
    arguments = get_args(kind)
    match get_origin(kind):
        case found if found is Literal:
            return _choice([spell_value(value) for value in arguments])
        case found if found in (Union, UnionType):
            return _choice([text for text in map(expectation, arguments) if text])
        case found if found is tuple:
            return f"an array of {len(arguments)}, each {expectation(arguments[0])}"
        case found if found is list:
            item = arguments[0]
            if isinstance(item, type) and issubclass(item, Table):
                return "an array of tables"
            return f"an array, each item {expectation(item)}"
        case found if found is dict:
            return "a table"
    if isinstance(kind, type) and issubclass(kind, Table):
        return "a table"
    return _WORDS[kind]


def item_kind(kind: Any) -> Any:
    """The type of an array's items."""
    (array,) = (part for part in _parts(kind) if get_origin(part) in (list, tuple))
    return get_args(array)[0]


_WORDS: Mapping[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    Decimal: "a number",
    str: "text in quotes",
    Path: "a path in quotes",
}


def _keys(table: type[Table], above: tuple[str, ...]) -> Iterator[Key]:
    for name, field in table.model_fields.items():
        key = Key((*above, name), field)
        yield key
        if key.table:
            yield from _keys(key.table, key.path)


def _parts(kind: Any) -> list[Any]:
    """A type and the types it is made of."""
    if get_origin(kind) is Literal:
        return [kind]
    inside = [part for part in get_args(kind) if isinstance(part, type) or get_origin(part) is not None]
    return [kind, *chain.from_iterable(map(_parts, inside))]


def _limits(limits: list[Any], *, whole: bool) -> str:
    low = high = ""
    for limit in chain.from_iterable(one.metadata if isinstance(one, FieldInfo) else [one] for one in limits):
        match limit:
            case annotated_types.Gt(gt=bound):
                low = " from 1" if whole and bound == 0 else f" above {spell_value(bound)}"
            case annotated_types.Ge(ge=bound):
                low = f" from {spell_value(bound)}"
            case annotated_types.Lt(lt=bound):
                high = f" to below {spell_value(bound)}"
            case annotated_types.Le(le=bound):
                high = f" to {spell_value(bound)}"
            case annotated_types.MinLen(min_length=1):
                high = ", at least one"
    return low + high


def _choice(texts: list[str]) -> str:
    *most, last = texts
    return f"{', '.join(most)} or {last}" if most else last
