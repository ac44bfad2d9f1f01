"""The ready pipelines: short files that extend common ones, and the single files they become."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.config import load
from pipelines.document import read
from pipelines.recipes import READY, copy, recipes, self_standing

FILES = sorted(READY.glob("*.toml"))
PARENTS = sorted((READY / "parents").rglob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_becomes_one_file_that_says_the_same(path: Path, tmp_path: Path) -> None:
    written, schema = copy(path.stem, tmp_path)
    assert (written, schema) == (tmp_path / path.name, tmp_path / "pipeline.schema.json")
    assert written.read_text().startswith(f"#:schema {schema.name}\n# "), "editors find the schema beside it"
    assert copy(path.stem, tmp_path) == [], "the second time there is nothing to do"
    one = tomli.loads(written.read_text())
    assert "extends" not in one
    assert dict(values(one)) == {
        key: value if key[-1] not in ("path", "file") else value.replace("parents/../", "")
        for key, value in values(read(path).table)
        if key[0] != "extends"
    }
    pipeline = load(written)
    assert pipeline.run.name == path.stem
    assert pipeline.prep.source[0].path.is_relative_to(tmp_path / "data"), "data lies beside the file"


def values(table: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    if isinstance(table, dict):
        for key, value in table.items():
            yield from values(value, (*path, key))
    elif isinstance(table, list):
        for index, value in enumerate(table):
            yield from values(value, (*path, index))
    else:
        yield path, table if isinstance(table, bool | int | str) else float(table)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_does_what_its_name_says_on_documents_that_its_model_can_read(path: Path) -> None:
    pipeline = load(path)
    train = pipeline.train
    assert train is not None
    (model,) = re.findall(r"parents/models/(.*)\.toml", path.read_text())
    assert path.stem.startswith(f"{model}-")
    kind = path.stem.removeprefix(f"{model}-").split("-")
    assert (pipeline.model.lora is not None) == (kind[0] in ("lora", "qlora"))
    assert (pipeline.model.quantization is not None) == (kind[0] == "qlora")
    assert (pipeline.template.name == "none") == (kind[0] == "pretrain")
    assert (pipeline.prep.order.shuffle == "xtuner") == (kind[-1] == "ftdp")
    capacity = pipeline.prep.pack.capacity
    assert capacity in ({"2k": (2048,), "32k": (32768,), "128k": (131072,), "1m": (1_000_000, 2**20)}[kind[1]])
    assert (train.parallel.sequence_parallel_size > 1) == (capacity > 2048)
    made_for = int(
        re.findall(r"up to ([\d,]+) tokens", (READY / f"parents/models/{model}.toml").read_text())[0].replace(",", "")
    )
    assert (pipeline.model.max_position_embeddings or made_for) >= capacity
    assert pipeline.model.max_position_embeddings is None or made_for < capacity, "set only where it is needed"
    assert f"{capacity:,} tokens" in recipes()[path.stem]


def test_every_parent_is_extended_by_a_recipe_and_opens_with_a_sentence() -> None:
    used = {parent for path in FILES for parent in re.findall(r'"(parents/.*?)"', path.read_text())}
    assert {str(path.relative_to(READY)) for path in PARENTS} == used
    assert all(path.read_text().startswith("# ") for path in (*PARENTS, *FILES))


def test_comments_come_along() -> None:
    text = self_standing(READY / "internlm2-7b-full-32k-ftdp.toml")
    assert text.startswith(
        "# InternLM2 7B: every parameter, packs of 32,768 tokens, tokenized data in a fixed order.\n"
    )
    assert 'shuffle                  = "internrepo"  # InternRepoSampler\'s order of packs; "xtuner" is' in text
    assert "lr = 2e-5" in text


def test_recipes_are_found_by_words(tmp_path: Path) -> None:
    found = json.loads(CliRunner().invoke(main, ["recipes", "QWEN3", "lora", "--json"]).output)["recipes"]
    assert {"qwen3-8b-lora-2k", "qwen3-8b-qlora-2k"} <= set(found)
    assert all("qwen3" in name and "lora" in name for name in found)
    assert "no recipe has all these words" in CliRunner().invoke(main, ["recipes", "nonsense"]).output
    answer = CliRunner().invoke(main, ["init", "qwen3-8b-lora", str(tmp_path)])
    assert answer.exit_code == 2
    assert "no such recipe; " in answer.output
    assert "qwen3-8b-lora-2k" in answer.output
    (tmp_path / "qwen3-8b-lora-2k.toml").write_text("mine")
    assert CliRunner().invoke(main, ["init", "qwen3-8b-lora-2k", str(tmp_path)]).exit_code == 2
    assert (tmp_path / "qwen3-8b-lora-2k.toml").read_text() == "mine"


def test_the_schema_beside_a_recipe_follows_the_package(tmp_path: Path) -> None:
    _, schema = copy("llama3-8b-full-2k", tmp_path)
    schema.write_text("{}")
    assert copy("llama3-8b-full-2k", tmp_path) == [schema]
    assert len(schema.read_bytes()) > 10_000
