import json
import random
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from pipelines.toml_text import KeyPath, Spot, key_places, spell_key, spell_value, split_assignment, value_at

NAMES = st.sampled_from(["a", "b-c", "D_1", "7", "x y", "x.y", 'q"t', "é", "", "#", "[z]", "=", "'", "\\"])
TEXTS = st.sampled_from(
    ["", "plain", "two\nlines", 'quo"te', 'ends"', 'ends""', "it's", "]", "}", "# none", "a = 1", "'''", "back\\"]
)
SCALARS = st.one_of(TEXTS, st.integers(-9, 9), st.booleans(), st.dates(date(1990, 1, 1)), st.just(time(7, 32)))
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)
DOCUMENTS = st.dictionaries(
    NAMES, VALUES | st.lists(st.dictionaries(NAMES, VALUES, max_size=2), max_size=2), max_size=4
)


@given(DOCUMENTS, st.randoms(use_true_random=False))
def test_every_key_and_element_is_found_where_it_is_spelt(document: dict[str, Any], chance: random.Random) -> None:
    text = Writer(chance).document(document)
    assert tomli.loads(text) == document
    places = key_places(text)
    assert places.keys() == set(paths((), document))
    lines = text.split("\n")
    for path, spot in places.items():
        rest = "\n".join([lines[spot.line - 1][spot.column - 1 :], *lines[spot.line :]])
        assert begins_with(rest, path, value_at(document, path)), (path, spot, text)


def begins_with(text: str, path: KeyPath, value: object) -> bool:
    """Whether the text begins with the last part of a key, or with an element of an array."""
    name = path[-1]
    if isinstance(name, str):
        return begins_with_name(text, name)
    if isinstance(value, dict):  # inline, or under a [[header]] that ends with the array's name
        return text.startswith("{") or begins_with_name(text, str(path[-2]))
    if isinstance(value, str):
        return text.startswith(('"', "'"))
    return text.startswith("[" if isinstance(value, list) else spell_value(value))


def begins_with_name(text: str, name: str) -> bool:
    return any(text.startswith(spelt) and text[len(spelt)] in " \t.=]" for spelt in spellings(name))


def spellings(name: str) -> list[str]:
    """The ways to write a key."""
    ways = [json.dumps(name), json.dumps(name, ensure_ascii=False)]
    if name and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in name):
        ways += [name, name]
    return ways if "'" in name else [*ways, f"'{name}'"]


def paths(above: KeyPath, value: object) -> list[KeyPath]:
    """Every key and element below a value."""
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    return [path for step, item in items for path in [(*above, step), *paths((*above, step), item)]]


class Writer:
    """Spells a document as TOML in one of the many ways there are."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def document(self, table: dict[str, Any]) -> str:
        newline = self.chance.choice(["\n", "\r\n"])
        lines = self.table((), table)
        return newline.join(lines + [""] * self.chance.randint(0, 2))

    def table(self, path: tuple[str, ...], table: dict[str, Any]) -> list[str]:
        """The keys of a table, then its tables under headers of their own."""
        lines, below = [], []
        for name, value in table.items():
            here = (*path, name)
            if isinstance(value, dict) and self.chance.random() < 0.5:
                header = [f"{self.indent()}[{self.blank()}{self.key(here)}{self.blank()}]{self.comment()}"]
                below += header + self.table(here, value)
            elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
                if self.chance.random() < 0.5:
                    for item in value:
                        below += [f"[[{self.blank()}{self.key(here)}{self.blank()}]]{self.comment()}"]
                        below += self.table(here, item)
                else:
                    lines.append(self.assignment((name,), value))
            elif isinstance(value, dict) and value and self.chance.random() < 0.5:
                lines += [self.assignment((name, inner), item) for inner, item in value.items()]  # dotted keys
            else:
                lines.append(self.assignment((name,), value))
        return lines + below

    def assignment(self, path: tuple[str, ...], value: object) -> str:
        equals = f"{self.blank()}={self.blank()}"
        return f"{self.indent()}{self.key(path)}{equals}{self.value(value, inline=False)}{self.comment()}"

    def key(self, path: tuple[str, ...]) -> str:
        return f"{self.blank()}.{self.blank()}".join(self.chance.choice(spellings(part)) for part in path)

    def value(self, value: object, *, inline: bool) -> str:
        if isinstance(value, dict):
            inside = ", ".join(f"{self.key((name,))} = {self.value(item, inline=True)}" for name, item in value.items())
            return f"{{{self.blank()}{inside}{self.blank()}}}"
        if isinstance(value, list):
            gap = self.gap if not inline else self.blank
            inside = "".join(f"{gap()}{self.value(item, inline=inline)}{gap()}," for item in value)
            last = inside[:-1] if inside and self.chance.random() < 0.5 else inside
            return f"[{last}{gap()}]"
        if isinstance(value, str):
            return self.text(value, inline=inline)
        if isinstance(value, bool):
            return str(value).lower()
        return value.isoformat() if isinstance(value, date | time) else str(value)

    def text(self, value: str, *, inline: bool) -> str:
        spellings = [json.dumps(value, ensure_ascii=False)]
        if not inline:
            spellings.append('"""' + value.replace("\\", "\\\\").replace('"""', '""\\"').rstrip('"') + self.ends(value))
            if "'''" not in value and not value.endswith("'"):
                spellings.append(f"'''\n{value}'''")
        if "'" not in value and "\n" not in value:
            spellings.append(f"'{value}'")
        return self.chance.choice(spellings)

    def ends(self, value: str) -> str:
        return '"' * (len(value) - len(value.rstrip('"'))) + '"""'  # up to two quotes before the closing three

    def gap(self) -> str:
        return self.chance.choice(["", " ", "\n", " # ] 'not\n", "\t\n\n"])

    def blank(self) -> str:
        return self.chance.choice(["", " ", "\t "])

    def indent(self) -> str:
        return self.chance.choice(["", "  ", "# [ignored]\n", "\n"])

    def comment(self) -> str:
        return self.chance.choice(["", " # and 'so' \"on\" [[", "  "])


def test_a_table_stands_at_its_own_header_rather_than_where_it_is_passed_through() -> None:
    places = key_places("[a.b]\nc = 1\n\n  [a]\nd.e = 2\n")
    assert places["a",] == Spot(4, 4)
    assert places["a", "b"] == Spot(1, 4)
    assert places["a", "d"] == Spot(5, 1)
    assert places["a", "d", "e"] == Spot(5, 3)


def test_tables_below_an_array_of_tables_belong_to_its_newest_element() -> None:
    places = key_places("[[s]]\nn = 1\n[s.t]\nk = 1\n[[s]]\n[s.t]\nk = 2\n")
    assert places["s", 0, "t", "k"] == Spot(4, 1)
    assert places["s", 1, "t", "k"] == Spot(7, 1)
    assert places["s",] == Spot(1, 3)


def test_two_quotes_may_stand_before_the_three_that_end_a_text() -> None:
    places = key_places("a = \"\"\"x\"\"\"\"\"\nb = '''y'''''\nc = 1")
    assert places == {("a",): Spot(1, 1), ("b",): Spot(2, 1), ("c",): Spot(3, 1)}


def test_columns_count_characters() -> None:
    assert key_places('x = { "名" = "文字", k = 1 }')["x", "k"] == Spot(1, 19)


@pytest.mark.parametrize("text", ["", "= 1", "[a", "a", '"open', "a.", "[x] = 2"])
def test_what_is_no_assignment_is_not_split(text: str) -> None:
    with pytest.raises(ValueError, match="key = value"):
        split_assignment(text)


@given(st.lists(NAMES, min_size=1, max_size=3))
def test_a_spelt_key_is_read_back(parts: list[str]) -> None:
    assert split_assignment(f"{spell_key(parts)} = 1") == (tuple(parts), "1")


@given(st.one_of(SCALARS, st.lists(SCALARS, max_size=2)))
def test_a_spelt_value_is_read_back_and_has_one_line(value: object) -> None:
    text = spell_value(value, longest=1000)
    assert "\n" not in text
    assert tomli.loads(f"v = {text}")["v"] == value


def test_values_are_spelt_as_in_toml() -> None:
    assert spell_value(67_108_864) == "67_108_864"
    assert spell_value(1e-8) == "1e-8"
    assert spell_value(Decimal("nan")) == "nan"
    assert spell_value(Decimal("-Infinity")) == "-inf"
    assert spell_value(Path("a/b")) == '"a/b"'
    assert spell_value({"a": True, "b c": []}) == '{ a = true, "b c" = [] }'
    assert spell_value("x" * 300) == '"' + "x" * 198 + "…"
    assert spell_value(["x" * 100]) == '["' + "x" * 57 + "…"
