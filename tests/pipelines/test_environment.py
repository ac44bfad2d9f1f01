"""`packtrain env FILE`: what a pipeline needs, what is missing of it, and the command that adds it."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines import environment
from pipelines.cli import main
from tests.train.runs import write_toml

HAVE = environment._version


def env(file: Path, *arguments: str) -> tuple[int, str]:
    answer = CliRunner().invoke(main, ["env", str(file), *arguments])
    return answer.exit_code, answer.output


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make packages missing, or give them another version."""

    def change(**versions: str | None) -> None:
        names = {name.replace("_", "-"): found for name, found in versions.items()} | versions
        monkeypatch.setattr(environment, "_version", lambda name: names[name] if name in names else HAVE(name))

    return change


def test_a_pipeline_that_can_run_here_lacks_nothing(tmp_path: Path) -> None:
    code, text = env(write_toml(tmp_path), "--json")
    found = json.loads(text)["needs"]
    assert code == 0
    assert {"numba", "torch", "deepspeed"} <= {one["name"] for one in found if one["required"] and one["met"]}
    assert "bitsandbytes" not in {one["name"] for one in found}, "nothing in the file needs it"


def test_what_is_missing_is_named_with_its_key_and_command(tmp_path: Path, without: Any) -> None:
    without(bitsandbytes=None, wandb=None, fastokens=None, torch=None)
    file = write_toml(tmp_path, ['log.trackers = ["wandb"]', 'optimizer.type = "paged_adamw_8bit"'])
    file.write_text(file.read_text().replace("[train.optimizer]\n", "").replace("lr = 0.01", "optimizer.lr = 0.01"))
    code, text = env(file)
    assert code == 5
    for line in (
        'bitsandbytes missing (train: train.optimizer.type = "paged_adamw_8bit"): pip install bitsandbytes',
        "wandb missing (train: train.log.trackers): pip install 'packtrain[wandb]'",
        "torch missing (train: to train and export): pip install 'packtrain[train]'",
        "fastokens missing (byte-level BPE, faster; not required): pip install 'packtrain[fast]'",
        "this machine lacks something for train",
    ):
        assert line in text.splitlines()


def test_a_package_that_is_too_old_is_named(tmp_path: Path, without: Any) -> None:
    without(torch="2.5.1+cu124")
    code, text = env(write_toml(tmp_path))
    assert code == 5
    assert "torch 2.5.1+cu124, needs 2.11 (train: to train and export): pip install 'packtrain[train]'" in text


def test_a_machine_that_only_prepares_lacks_nothing_for_prep(tmp_path: Path, without: Any) -> None:
    without(torch=None, fastokens=None)
    code, text = env(write_toml(tmp_path), "--json")
    unmet = {one["stage"] for one in json.loads(text)["needs"] if one["required"] and not one["met"]}
    assert (code, unmet) == (5, {"train"})


def test_without_a_file_the_extras_are_listed_with_their_commands(without: Any) -> None:
    without(torch=None)
    text = CliRunner().invoke(main, ["env"]).output
    assert "to train and export: pip install 'packtrain[train]'" in text
    assert "base  " in text
