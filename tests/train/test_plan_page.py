"""docs/plan.md shows what its commands print: `python -m tests.train.test_plan_page` writes it again."""

import os
import re
import shlex
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "plan.md"
COMMAND = re.compile(r"```console\n\$ packtrain (.*)\n((?:.*\n)*?)```\n")
TOML = re.compile(r"`(\w+\.toml)`[^`]*(?:`[^`]*`[^`]*)?\n```toml\n((?:.*\n)*?)```\n")


def written(page: str, folder: Path) -> str:
    """The page with what its commands print in an empty folder, on a machine without a GPU."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        CliRunner().invoke(main, ["init", "quickstart"], catch_exceptions=False)
        for name, content in TOML.findall(page):
            Path(name).write_text(content)

        def run(found: re.Match[str]) -> str:
            answer = CliRunner().invoke(main, shlex.split(found[1]), catch_exceptions=False)
            assert answer.exit_code == 0, answer.output
            return f"```console\n$ packtrain {found[1]}\n{_short(answer.stdout)}```\n"

        return COMMAND.sub(run, page)
    finally:
        os.chdir(before)


def _short(output: str) -> str:
    """JSON by its first characters."""
    return output if not output.startswith("{") else output[:110] + " ...\n"


def test_the_page_shows_what_its_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    page = PAGE.read_text(encoding="utf-8")
    assert len(COMMAND.findall(page)) == 5
    assert len(TOML.findall(page)) == 1
    assert written(page, tmp_path) == page


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")
