"""A peer that cannot be measured leaves its reason instead of a figure."""

import sys
from pathlib import Path

import pytest

from bench import peer


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(peer, "SCRIPTS", tmp_path)
    return tmp_path


def run(scripts: Path, source: str, *, timeout_s: float = 60) -> object:
    (scripts / "script.py").write_text(source)
    return peer.measure("script.py", 7, python=Path(sys.executable), timeout_s=timeout_s)


def test_the_last_line_a_script_prints_is_what_it_measured(scripts: Path) -> None:
    assert run(scripts, "import sys; print('hello'); print('{\"seconds\": ' + sys.argv[1] + '}')") == {"seconds": 7}


def test_a_script_that_fails_leaves_its_last_words(scripts: Path) -> None:
    assert run(scripts, "import not_there") == "failed: ModuleNotFoundError: No module named 'not_there'"


def test_a_script_that_prints_no_figures_has_failed(scripts: Path) -> None:
    assert run(scripts, "print('hello')") == "failed: hello"


def test_a_script_that_takes_too_long_is_ended(scripts: Path) -> None:
    assert run(scripts, "import time; time.sleep(60)", timeout_s=0.2) == "took more than 0.2 s"


def test_without_an_environment_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    assert peer.measure("script.py", python=tmp_path / "python") == "not installed: make .bench-venv/.ready"
    assert peer.installed(tmp_path / "python") == {}
