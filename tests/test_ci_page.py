"""The page on CI as its reader goes through it: the files are made once, and then the job's own steps are run."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.pipelines.json_page import write_pipeline
from tests.prep.small import conversations

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "ci.md"
JOB = ROOT / "docs" / "examples" / "github-actions.yml"


def bash(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A step as the runner starts it, with `packtrain` on the path."""
    command = folder / "bin" / "packtrain"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{command.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    shell = ["bash", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_what_the_page_has_you_commit_passes_the_job_and_a_changed_byte_fails_it(tmp_path: Path) -> None:
    write_pipeline(tmp_path).rename(tmp_path / "my-sft.toml")
    once, whenever = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[:2]
    made = bash(once.replace("git add", "ls"), tmp_path)
    assert made.returncode == 0, made.stderr
    checked = bash(whenever, tmp_path)
    assert checked.returncode == 0, checked.stderr
    job = yaml.safe_load(JOB.read_text(encoding="utf-8"))
    steps = {step["name"]: step["run"] for step in job["jobs"]["order"]["steps"] if "run" in step}
    assert steps.pop("Install") == "pip install packtrain"
    for name, step in steps.items():
        done = bash(step, tmp_path)
        assert done.returncode == 0, (name, done.stdout, done.stderr)
    shutil.rmtree(tmp_path / "work")  # as in a fresh checkout
    data = tmp_path / "data" / "a.jsonl"
    data.write_bytes(data.read_bytes().replace(b"word", b"sword", 1))
    differs = bash(step, tmp_path)
    assert (differs.returncode, "golden.json: written for other settings, other input files" in differs.stderr) == (
        4,
        True,
    )
    data.with_name("more.jsonl").write_text(conversations(1))
    differs = bash(steps["The files are as listed"], tmp_path)
    assert (differs.returncode, "+more.jsonl" in differs.stderr) == (4, True), differs.stderr
