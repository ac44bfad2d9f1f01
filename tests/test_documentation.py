"""The pages of docs/ and the README: their links lead somewhere, their commands exist, and what they show is so."""

import contextlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import pytest
import tomli
import yaml
from click.testing import CliRunner

from pipelines.api_reference import MARKDOWN, page
from pipelines.cli import main
from pipelines.schema import Pipeline
from prep.records import record_map

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
EXAMPLE = DOCS / "examples" / "github-actions.yml"

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def blocks(path: Path) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return _FENCE.findall(path.read_text(encoding="utf-8"))


def prose(path: Path) -> str:
    return _FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """What the site and GitHub make of the headings."""
    found = set()
    for heading in _HEADING.findall(prose(path)):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).strip()
        found.add(re.sub(r"\s+", "-", plain))
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in _LINK.findall(re.sub(r"`[^`\n]*`", "", prose(path))):
        if re.match(r"\w+://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.is_file(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"
        assert path.parent != DOCS or target.is_relative_to(DOCS), f"{link}: not on the site"


class _Site(yaml.SafeLoader):
    """mkdocs.yml, whose values are plain."""


def entries(nav: Any) -> Iterator[str]:
    for one in nav if isinstance(nav, list) else nav.values():
        if isinstance(one, str):
            yield one
        else:
            yield from entries(one)


def test_every_page_is_in_the_navigation_once() -> None:
    site = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader=_Site)
    assert sorted(entries(site["nav"])) == sorted(path.name for path in DOCS.glob("*.md"))
    assert site["theme"]["font"] is False


def commands(path: Path) -> list[list[str]]:
    """Every call of packtrain or make in the fenced blocks of a page, also below a launcher."""
    found = []
    for language, text in blocks(path):
        if language not in ("sh", "console", "bash", ""):
            continue
        for line in re.sub(r"\\\n\s*", "", text).splitlines():
            given = line.strip()
            if language == "console":
                if not given.startswith("$ "):
                    continue
                given = given[2:]
            try:
                words = shlex.split(given.replace('"$(', "").replace(')"', ""), comments=True)
            except ValueError:
                continue  # an answer that is shown
            start = next((index for index, word in enumerate(words) if word in ("packtrain", "make")), None)
            if start is None or (language == "" and start):
                continue
            end = next((index for index, word in enumerate(words) if word in ("|", ">", "&&", ";", "||")), len(words))
            found.append(words[start:end])
    return found


CALLS = [(path, words) for path in PAGES for words in commands(path)]


@pytest.mark.parametrize(
    ("path", "words"), CALLS, ids=[f"{path.name}-{number}" for number, (path, _) in enumerate(CALLS)]
)
def test_every_command_exists_with_these_options(path: Path, words: list[str]) -> None:
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    parse(words)


def parse(words: list[str]) -> None:
    """Hold a command line against the command, without running it."""
    try:
        context = main.make_context("packtrain", words[1:])
        while isinstance(context.command, click.Group):
            given = [*context._protected_args, *context.args]
            name, command, rest = context.command.resolve_command(context, given)
            assert command is not None
            context = command.make_context(name, rest, parent=context)
    except click.exceptions.Exit:  # --help
        pass


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_in_the_text_exist_with_these_options(path: Path) -> None:
    for command in re.findall(r"`(packtrain [^`|]+)`", prose(path)):
        with contextlib.suppress(click.MissingParameter, click.BadOptionUsage):  # the text need not say which FILE
            parse(shlex.split(command.replace("COMMAND", "env")))


def test_commands_are_found_and_held_against_the_command() -> None:
    assert len(CALLS) > 100
    for words in ("packtrain plam my.toml", "packtrain plan my.toml --layout-s", "packtrain order check"):
        with pytest.raises(click.UsageError):
            parse(words.split())


def test_what_quick_commands_are_shown_to_print_is_what_they_print(tmp_path: Path) -> None:
    shown = 0
    for path in PAGES:
        for language, text in blocks(path):
            command, _, answer = text.partition("\n")
            if language == "console" and re.match(r"\$ packtrain plan --from-\w+ \S+=", command):
                found = CliRunner().invoke(main, shlex.split(command)[2:]).output.splitlines()
                assert found[: len(answer.splitlines())] == answer.splitlines(), path
                shown += 1
    assert shown >= 2
    for words in (["recipes", "qwen3", "lora"], ["completion", "zsh"], ["env"], ["init", "qwen3-8b-lora-2k"]):
        assert words in [call[1 : 1 + len(words)] for _, call in CALLS]
        arguments = [*words, str(tmp_path)] if words[0] == "init" else words
        assert CliRunner().invoke(main, arguments).exit_code == 0


LEAST = """
schema_version = 1
[run]
name = "least"
[model]
name_or_path = "model"
[prep.pack]
capacity = 1024
[[prep.source]]
name = "all"
path = "data"
[train]
global_batch_size = 1
[train.optimizer]
lr = 1e-5
"""


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables merge, the rest replaces, as with `extends`."""
    result = dict(below)
    for key, value in above.items():
        former = result.get(key)
        result[key] = merged(former, value) if isinstance(former, dict) and isinstance(value, dict) else value
    return result


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_toml_is_of_the_schema(path: Path) -> None:
    for language, text in blocks(path):
        if language == "toml":
            table = merged(tomli.loads(LEAST), tomli.loads(text, parse_float=Decimal))
            if "scratch" in table["model"]:
                del table["model"]["name_or_path"]
            Pipeline.model_validate(table, context={"base": ROOT})


def test_records_of_the_page_of_formats_are_read() -> None:
    text = (DOCS / "data-formats.md").read_text(encoding="utf-8")
    found = re.findall(r'^`map = "(\w+)"`.*?```json\n(.*?)```', text, re.DOTALL | re.MULTILINE)
    assert {name for name, _ in found} == {"openai", "sharegpt", "alpaca", "oasst1", "pretrain", "none"}
    for name, lines in found:
        for line in lines.splitlines():
            record = json.loads(line)
            if name == "none":
                assert {type(token) for token in record["tokens"]} == {int}
            else:
                conversation = record_map(name)(record)
                assert conversation is not None
                assert conversation.messages[-1].role == "assistant"


def test_the_page_of_the_python_api_is_that_of_the_code() -> None:
    assert MARKDOWN.read_text(encoding="utf-8") == page(), "run `python -m pipelines.api_reference`"


def test_the_job_for_github_checks_order_and_bytes_by_commands_that_exist() -> None:
    job = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    assert set(job[True]) == {"pull_request", "push"}  # YAML takes `on` for true
    steps = [step["run"] for step in job["jobs"]["order"]["steps"] if "run" in step]
    lines = [line.strip() for step in steps for line in step.splitlines()]
    calls = [
        shlex.split(line.replace("$workers", "1"), comments=True) for line in lines if line.startswith("packtrain ")
    ]
    assert ["order", "check"] in [call[1:3] for call in calls]
    assert any("--golden" in call for call in calls)
    for call in calls:
        parse(call)
    for step in steps:
        subprocess.run(["bash", "-n", "-c", step], check=True)


@pytest.mark.parametrize("path", sorted((DOCS / "figures").glob("*.svg")), ids=lambda path: path.stem)
def test_figures_say_what_they_show_and_load_nothing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    root = xml.etree.ElementTree.fromstring(text)
    names = {child.tag.rpartition("}")[2] for child in root}
    assert {"title", "desc"} <= names
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"href=|url\((?!#)|@import|<script", text)


def test_the_picture_of_a_report_is_small_and_a_png() -> None:
    content = (DOCS / "figures" / "report.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert len(content) < 200_000


def test_figures_of_the_readme_are_those_that_were_measured() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| `make bench-(\w+)` \|$", text, re.MULTILINE)
    assert len(rows) >= 5
    for row, name in rows:
        measured = re.findall(r"[\d,.]*\d", (ROOT / "bench" / "results" / f"{name}.md").read_text(encoding="utf-8"))
        for figure in re.findall(r"(?<![\w.])\d[\d,.]*(?= (?:ms|s|GB|MB|Mtok|tok|samples))", row):
            assert figure in measured, f"{figure} in {row!r}: not in bench/results/{name}.md; measure and write it anew"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(command, cwd=ROOT, check=True)
    written = list((tmp_path / "site").glob("*.html"))
    assert len(written) > len(list(DOCS.glob("*.md")))  # and 404.html
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<(script|img|iframe|link)[^>]+(src|href)=\"?(https?:)?//", text), path
    assert (tmp_path / "site" / "search" / "search_index.js").is_file()
