"""docs/json.md is what the commands print."""

import click
import pytest

from pipelines.cli import main
from tests.pipelines.json_page import PAGE, page


def test_every_command_is_on_the_page() -> None:
    headings = {line.removeprefix("## ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "## "}
    for name, command in main.commands.items():
        inner = command.commands if isinstance(command, click.Group) else {}
        for one in inner or [""]:
            words = name if one in ("", "run") else f"{name} {one}"
            assert words in headings, words


@pytest.mark.slow
def test_the_page_is_what_the_commands_print() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python -m tests.pipelines.json_page`"
