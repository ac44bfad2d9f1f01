"""What counts as a finding, that it is kept, and what `make fuzz` says without its fuzzer."""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import DataError
from tests.fuzz import limits
from tests.fuzz.__main__ import main
from tests.fuzz.findings import Findings
from tests.fuzz.target import Feed, Finding, Target, attempt


def refuse(text: str) -> Feed:
    def feed(data: bytes, folder: Path) -> None:
        raise DataError(text)

    return feed


def test_an_exception_of_any_kind_is_a_finding() -> None:
    def feed(data: bytes, folder: Path) -> None:
        raise KeyError(data)

    with pytest.raises(KeyError):
        attempt(Target("x", feed), b"x")


@pytest.mark.parametrize("text", ["", "no place", "x.txt:1: ", "x.txt: good; mend it\nno place"])
def test_a_refusal_without_place_and_finding_is_a_finding(text: str) -> None:
    with pytest.raises(Finding, match="says too little"):
        attempt(Target("x", refuse(text)), b"")


def test_a_refusal_that_says_where_and_what_is_none() -> None:
    assert attempt(Target("x", refuse("x.txt:1: bad; mend it")), b"") == "x.txt:1: bad; mend it"


def test_time_and_memory_are_findings_whatever_was_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(data: bytes, folder: Path) -> None:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass

    def large(data: bytes, folder: Path) -> None:
        np.ones(200 << 20, np.uint8)

    large(b"", Path())  # the process has held as much before
    monkeypatch.setattr(limits, "SECONDS", 0.01)
    with pytest.raises(Finding, match="took 0 s"):
        attempt(Target("x", slow), b"x")
    monkeypatch.setattr(limits, "SECONDS", 10.0)
    monkeypatch.setattr(limits, "BYTES", 100 << 20)
    with pytest.raises(Finding, match="GB of memory"):
        attempt(Target("x", large), b"x")


def test_each_kind_is_kept_once_with_the_least_that_does_it(tmp_path: Path) -> None:
    def feed(data: bytes, folder: Path) -> None:
        assert b"!!" not in data
        if b"?" in data:
            raise KeyError("question")

    findings = Findings(Target("x", feed), tmp_path)
    for data in (b"fine", b"a lot of text !! and more", b"!! again", b"why?"):
        findings.take(data)
    assert sorted(path.read_bytes() for path in tmp_path.glob("*.input")) == [b"!!", b"?"]
    assert len([*tmp_path.glob("*.txt")]) == 2


def test_without_atheris_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert main(["--seconds", "1"]) == 5
    assert "atheris is not installed for Python" in capsys.readouterr().err


@pytest.mark.slow
def test_the_fuzzer_runs_a_target_and_keeps_what_reaches_new_code(tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; make fuzz installs it")
    shutil.copytree(Path(__file__).with_name("corpus") / "data_order", tmp_path / "corpus" / "data_order")
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", "3", "--only", "data_order"]
    command += ["--work", str(tmp_path / "work"), "--corpus", str(tmp_path / "corpus")]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    assert "findings: none" in said.stdout
