import json
import re
from decimal import Decimal
from typing import Any

import pytest

from pipelines.keys import Key, schema_keys
from pipelines.reference import JSON_SCHEMA, MARKDOWN, json_schema, reference, spell_json
from pipelines.vocabulary import planned_keys

AGAIN = "run `python -m pipelines.reference`"
KEYS = list(schema_keys().values())


def test_the_shipped_reference_is_that_of_the_schema() -> None:
    assert MARKDOWN.read_text(encoding="utf-8") == reference(), AGAIN


def test_the_shipped_json_schema_is_that_of_the_schema() -> None:
    assert JSON_SCHEMA.read_text(encoding="utf-8") == spell_json(json_schema()), AGAIN


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_is_documented(key: Key) -> None:
    assert key.documentation.endswith("."), "write a docstring below the key, ending with a full stop"
    if key.table:
        assert (key.table.__doc__ or "").startswith(f"{key.header}: "), "begin the docstring with the table's header"
        section = f"## {key.header}\n"
    else:
        section = f"## {schema_keys()[key.path[:-1]].header}\n" if len(key.path) > 1 else "## Top of the file\n"
    text = reference().partition(section)[2].partition("\n## ")[0]
    assert key.table or re.search(rf"^- `{key.path[-1]}`.*{re.escape(key.documentation)}", text, re.MULTILINE)


def test_what_is_not_supported_yet_is_listed() -> None:
    text = reference().partition("## Not supported yet\n")[2]
    for *table, name in planned_keys():
        assert re.search(rf"^- `\[{re.escape('.'.join(table))}\]`: .*`{name}`", text, re.MULTILINE)


def test_the_json_schema_has_every_key_with_its_type_and_default() -> None:
    for key in KEYS:
        node: Any = json_schema()
        for name in key.path:
            node = node.get("items", node)["properties"][name]
        assert node["description"].startswith(key.documentation)
        if key.table is None and not key.required and key.field.default is not None:
            default = key.field.default
            assert node["default"] == (
                float(default)
                if isinstance(default, Decimal)
                else list(default)
                if isinstance(default, tuple)
                else default
                if isinstance(default, bool | int | float | str | list | dict)
                else str(default)
            )
    assert json.loads(spell_json(json_schema())) == json_schema()


def test_the_json_schema_spells_limits_and_choices() -> None:
    tables = json_schema()["properties"]
    pack = tables["prep"]["properties"]["pack"]
    assert pack["additionalProperties"] is False
    assert pack["required"] == ["capacity"]
    assert pack["properties"]["capacity"]["exclusiveMinimum"] == 0
    assert pack["properties"]["strategy"]["enum"] == ["in_order", "best_fit", "concat_split", "none"]
    train = tables["train"]["properties"]
    assert train["nproc_per_node"]["anyOf"] == [{"enum": ["auto"]}, {"type": "integer", "exclusiveMinimum": 0}]
    betas = train["optimizer"]["properties"]["betas"]
    assert (betas["minItems"], betas["maxItems"]) == (2, 2)
    assert betas["items"] == {"type": "number", "minimum": 0, "exclusiveMaximum": 1}
    assert tables["prep"]["properties"]["source"]["minItems"] == 1
