"""Reading a pipeline TOML: every problem at once, each with its place and what to do."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipelines.complaints import complaints, line, unknown_keys
from pipelines.document import Document, Place, parse_value, read, values
from pipelines.errors import ConfigError
from pipelines.schema import Pipeline
from pipelines.toml_text import KeyPath, on_one_line, spell_key, spell_value, split_assignment, value_at


def load(path: Path, overrides: Sequence[str] = ()) -> Pipeline:
    """Read the pipeline at `path` and the files it extends, with `a.b=value` overrides in TOML syntax on top.

    An element of an array is named by its index or, where it is a table, by its name: `prep.source.chat.weight=0.5`.
    Paths in an override begin where those of the file do.

    Raises:
        ConfigError: with one line per problem: `file:line:column: key = value: finding; remedy`.
    """
    document = read(path)
    problems = [problem for text in overrides if (problem := _override(document, text))]
    pipeline, found = _validate(document, path.parent)
    found.sort(key=lambda problem: (problem[0].given_by != str(path), problem[0], spell_key(problem[1])))
    problems += [line(str(place), key, finding, document.table) for place, key, finding in found]
    if problems or pipeline is None:
        raise ConfigError(*problems)
    return pipeline


def _validate(document: Document, base: Path) -> tuple[Pipeline | None, list[tuple[Place, KeyPath, str]]]:
    found = {key: "does not fit 64 bits" for key, value in values((), document.table) if _is_huge(value)}
    table = deepcopy(document.table)
    pipeline = None
    while pipeline is None:
        try:
            pipeline = Pipeline.model_validate(table, context={"base": base, "places": document.places})
        except ValidationError as error:
            for key, finding in complaints(error, table):
                found.setdefault(key, finding)
            # What ties keys together is checked only in a table whose keys are all known, so look again without.
            unknown = unknown_keys(error)
            if not unknown:
                break
            for key in unknown:
                del value_at(table, key[:-1])[key[-1]]
    return pipeline, [(document.place(key), key, finding) for key, finding in found.items()]


def _override(document: Document, text: str) -> str:
    """Set the key that `a.b=value` names; returns what is wrong with it, or nothing."""
    place = Place(f"--set {on_one_line(text)}")
    try:
        names, spelt = split_assignment(text)
    except ValueError:
        return f"{place}: expected KEY=VALUE, such as --set run.seed=7"
    try:
        value = parse_value(spelt)
    except ValueError as error:
        finding = str(error)
        if "needs quotes" in finding:
            finding += f", kept from the shell: --set '{spell_key(names)}={spell_value(spelt)}'"
        return f"{place}: {finding}"
    if names[0] == "extends":
        return f"{place}: only a file can extend another"
    path: KeyPath = ()
    holder: Any = document.table
    step: str | int | None
    for name in names:
        if isinstance(holder, list):
            step = _element(holder, name)
            if step is None:
                return f"{place}: {spell_key(path)} has no element {spell_key([name])}; it has {_elements(holder)}"
        elif isinstance(holder, dict):
            step = name
        else:
            return f"{place}: {spell_key(path)} = {spell_value(holder)} is no table"
        path = (*path, step)
        if len(path) < len(names):
            if isinstance(step, str) and step not in holder:
                holder[step] = {}
                document.places[path] = place
            holder = holder[step]
    holder[path[-1]] = value
    document.forget(path)
    document.places[path] = place
    return ""


def _element(array: list[Any], name: str) -> int | None:
    if name.isdecimal():
        return int(name) if int(name) < len(array) else None
    named = [index for index, item in enumerate(array) if isinstance(item, dict) and item.get("name") == name]
    return named[0] if named else None


def _elements(array: list[Any]) -> str:
    named = [spell_value(item["name"]) for item in array if isinstance(item, dict) and "name" in item]
    return f"0 to {len(array) - 1}" + (f", named {', '.join(named)}" if named else "") if array else "none"


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and not -(2**63) <= value < 2**63
