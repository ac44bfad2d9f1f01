"""`packtrain report`: named by its file or its directory, and where it cannot write."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from tests.pipelines.report.written import write_run
from tests.train.runs import write_toml


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("named")
    write_toml(folder)
    return write_run(folder / "work", until="train")


def test_the_file_and_the_directory_name_the_same_run(run: Path) -> None:
    pages = []
    for name in (run.parents[1] / "tiny.toml", run):
        answer = CliRunner().invoke(main, ["report", str(name)])
        assert answer.exit_code == 0, answer.output
        assert answer.stdout.startswith(f"{run / 'report.html'}: ")
        assert "export  has not run" in answer.stdout
        pages.append((run / "report.html").read_bytes())
    assert pages[0] == pages[1]


def test_json_says_what_the_page_begins_with(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    answer = CliRunner().invoke(main, ["report", str(run), "-o", str(out), "--json"])
    found = json.loads(answer.stdout)
    assert (found["file"], found["bytes"]) == (str(out), out.stat().st_size)
    assert found["headline"]["step"] == 300
    assert found["stages"]["train"] == {"finished": True, "state": "finished: 300 steps"}
    assert [one["kind"] for one in found["artefacts"]] == ["checkpoint", "checkpoint", "prep"]


def test_what_cannot_be_done_is_one_line_with_its_exit_code(run: Path, tmp_path: Path) -> None:
    write_toml(tmp_path)
    for arguments, code, message in (
        ([str(tmp_path / "tiny.toml")], 3, "no run here"),
        ([str(tmp_path)], 3, "no run here"),
        ([str(tmp_path / "missing.toml")], 2, "no such file"),
        ([str(run), "-o", str(tmp_path)], 5, "a directory; name the file to write"),
        ([str(run), "--set", "run.seed=1"], 2, "--set changes a pipeline file"),
    ):
        answer = CliRunner().invoke(main, ["report", *arguments])
        assert (answer.exit_code, message in answer.output) == (code, True), answer.output
        assert "Traceback" not in answer.output


def test_a_directory_with_nothing_but_a_lock_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "prep").mkdir()
    (tmp_path / "prep" / ".lock").touch()
    answer = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert (answer.exit_code, "no run here" in answer.output) == (3, True), answer.output


def test_a_file_that_holds_something_else_is_named_without_a_traceback(tmp_path: Path) -> None:
    run = write_run(tmp_path, steps=6)
    (run / "export" / "eval.json").write_text('{"answers": 3, "accuracy": "high", "of": []}')
    answer = CliRunner().invoke(main, ["report", str(run)])
    assert answer.exit_code == 4, answer.output
    assert f"{run}: its files hold something else than the stages write" in answer.stderr
