"""The reference of all keys, for people and for editors; `python -m pipelines.reference` writes both files anew."""

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from inspect import cleandoc
from itertools import chain, groupby
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from pipelines.foreign import by_name
from pipelines.keys import Key, expectation, find, schema_keys
from pipelines.schema import Pipeline, Table
from pipelines.toml_text import spell_key, spell_value
from pipelines.vocabulary import planned_keys, planned_values

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = ROOT / "docs" / "keys.md"
JSON_SCHEMA = ROOT / "pipelines" / "pipeline.schema.json"


def reference() -> str:
    """Every key as Markdown: what it takes, its default, what it is for, what others call it."""
    keys = schema_keys().values()
    lines = [
        "# Keys of a pipeline TOML",
        "",
        "Written by `python -m pipelines.reference` from the schema. Unknown keys are errors; text is not taken for a",
        "number. Paths begin at the file that names them and may contain `${env:NAME}` or `${env:NAME:-fallback}`.",
        "`--set table.key=value` overrides one key. `Elsewhere` is what other trainers call a key.",
        "",
        "Editors with Taplo (Even Better TOML in VS Code) complete and check these keys where a file begins with",
        "`#:schema pipeline.schema.json`; `packtrain init` and `migrate` write that line and the schema beside it.",
        *("", "## Top of the file", ""),
        *(_bullet(key) for key in keys if len(key.path) == 1 and key.table is None),
    ]
    for table in (key for key in keys if key.table):
        lines += ["", f"## {table.header}", "", _purpose(table), ""]
        lines += [_bullet(key) for key in keys if key.path[:-1] == table.path and key.table is None]
    lines += ["", "## Not supported yet", "", "Refused by name until they are:", ""]
    for path, group in groupby(planned_keys(), key=lambda path: path[:-1]):
        lines.append(f"- `[{spell_key(path)}]`: {', '.join(f'`{key[-1]}`' for key in group)}")
    return "\n".join(lines) + "\n"


def json_schema() -> dict[str, Any]:
    """The JSON schema that editors check and complete a TOML by: `#:schema pipeline.schema.json` on its first line."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "packtrain pipeline",
        **_object(Pipeline, ()),
    }


def write() -> None:
    """Bring both files up to date with the schema."""
    MARKDOWN.parent.mkdir(exist_ok=True)
    MARKDOWN.write_text(reference(), encoding="utf-8")
    JSON_SCHEMA.write_text(spell_json(json_schema()), encoding="utf-8")


def spell_json(schema: Mapping[str, Any]) -> str:
    """A JSON file's text, in the schema's own order."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _bullet(key: Key) -> str:
    head = f"- `{key.path[-1]}`"
    if key.required:
        head += ", required"
    elif key.field.default is not None:
        head += f", default `{spell_value(key.field.default)}`"
    text = f"{head}: {expectation(key.kind)}. {key.documentation}"
    if planned := planned_values(key.path):
        text += f" Not supported yet: {', '.join(map(spell_value, planned))}."
    return f"{text} {_elsewhere(key)}".rstrip()


def _purpose(key: Key) -> str:
    assert key.table is not None
    text = cleandoc(key.table.__doc__ or "").removeprefix(f"{key.header}: ")
    text = text[:1].upper() + text[1:]
    if not key.required and key.field.default is None:
        text += " Optional."
    return f"{text} {key.field.description or ''}".rstrip()


def _elsewhere(key: Key) -> str:
    names: dict[str, list[str]] = {}
    for one in by_name().values():
        if one.key == key.name:
            names.setdefault(one.used_by, []).append(f"`{one.name}`")
    called = "; ".join(f"{', '.join(listed)} ({used_by})" for used_by, listed in names.items())
    return f"Elsewhere: {called}." if called else ""


def _object(table: type[Table], path: tuple[str, ...]) -> dict[str, Any]:
    keys = [found for name in table.model_fields if (found := find((*path, name)))]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {key.path[-1]: _property(key) for key in keys},
        "required": [key.path[-1] for key in keys if key.required],
    }


def _property(key: Key) -> dict[str, Any]:
    described = {"description": f"{key.documentation} {_elsewhere(key)}".strip(), **_shape(key.kind, key.path)}
    default = key.field.default
    if not key.required and default is not None and key.table is None:
        described["default"] = _as_json(default)
    return described


def _shape(kind: Any, path: tuple[str, ...]) -> dict[str, Any]:
    arguments = get_args(kind)
    match get_origin(kind):
        case found if found is Annotated:
            shape = _shape(arguments[0], path)
            return {**shape, **dict(_limits(arguments[1:], is_array=shape.get("type") == "array"))}
        case found if found in (Union, UnionType):
            shapes = [_shape(part, path) for part in arguments if part is not NoneType]
            return {"anyOf": shapes} if len(shapes) > 1 else shapes[0]
        case found if found is Literal:
            return {"enum": list(arguments)}
        case found if found is list:
            return {"type": "array", "items": _shape(arguments[0], path)}
        case found if found is tuple:
            count = len(arguments)
            return {"type": "array", "items": _shape(arguments[0], path), "minItems": count, "maxItems": count}
        case found if found is dict:
            return {"type": "object"}
    return _object(kind, path) if issubclass(kind, Table) else {"type": _TYPES[kind]}


_TYPES: Mapping[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    Decimal: "number",
    str: "string",
    Path: "string",
}


def _limits(limits: tuple[Any, ...], *, is_array: bool) -> Iterator[tuple[str, Any]]:
    for limit in chain.from_iterable(one.metadata if isinstance(one, FieldInfo) else [one] for one in limits):
        match limit:
            case annotated_types.Gt(gt=bound):
                yield "exclusiveMinimum", bound
            case annotated_types.Ge(ge=bound):
                yield "minimum", bound
            case annotated_types.Lt(lt=bound):
                yield "exclusiveMaximum", bound
            case annotated_types.Le(le=bound):
                yield "maximum", bound
            case annotated_types.MinLen(min_length=count):
                yield "minItems" if is_array else "minLength", count


def _as_json(value: object) -> Any:
    match value:
        case Path():
            return str(value)
        case Decimal():
            return int(value) if value == int(value) else float(value)
        case tuple():
            return list(value)
    return value


if __name__ == "__main__":
    write()
