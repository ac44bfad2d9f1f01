"""The numbers of a run in trackers."""

import importlib.util
import json
import logging
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import MachineError
from tests.train.runs import checkpoints, pipeline, rows, share
from train import trackers
from train.run import run
from train.trackers import TRACKERS, TrackedRun, Trackers, check_installed, numbers_of, shown_settings

NAMES = list(TRACKERS)
CALLS: list[tuple[Any, ...]] = []
"""What the stand-ins were asked for, in order."""

FAKES = {
    "torch/utils/tensorboard.py": """
class SummaryWriter:
    def __init__(self, folder, purge_step): CALLS.append(("tensorboard", "open", folder, purge_step))
    def add_scalar(self, name, value, step): CALLS.append(("tensorboard", "add", step, name, value))
    def close(self): CALLS.append(("tensorboard", "close"))
""",
    "wandb.py": """
class Settings:
    def __init__(self, silent): assert silent
class _Run:
    dir, url, offline = "/somewhere/run/files", "https://wandb.example/run", True
    def log(self, numbers, step): CALLS.extend(("wandb", "add", step, name, value) for name, value in numbers.items())
    def finish(self, exit_code): CALLS.append(("wandb", "close", exit_code))
def init(**how):
    CALLS.append(("wandb", "open", how)); return _Run()
""",
    "swanlab.py": """
class _Run:
    def log(self, numbers, step): CALLS.extend(("swanlab", "add", step, name, value) for name, value in numbers.items())
    def finish(self, state): CALLS.append(("swanlab", "close", state))
def init(**how):
    CALLS.append(("swanlab", "open", how)); return _Run()
""",
    "mlflow/entities.py": """
def Metric(key, value, timestamp, step): return step, key, value
def Param(key, value): return key, value
""",
    "mlflow/__init__.py": """
from types import SimpleNamespace as Namespace
class MlflowClient:
    def __init__(self, tracking_uri): CALLS.append(("mlflow", "server", tracking_uri))
    def get_experiment_by_name(self, name): return None
    def create_experiment(self, name): return "1"
    def create_run(self, experiment, run_name, tags):
        CALLS.append(("mlflow", "open", run_name, tags)); return Namespace(info=Namespace(run_id="r1"))
    def update_run(self, run_id, status): CALLS.append(("mlflow", "go on", run_id, status))
    def set_terminated(self, run_id, status): CALLS.append(("mlflow", "close", run_id, status))
    def log_batch(self, run_id, metrics=(), params=()):
        CALLS.extend(("mlflow", "add", *metric) for metric in metrics)
        CALLS.extend(("mlflow", "parameter", *param) for param in params)
""",
    "trackio.py": """
class _Run:
    def log(self, numbers, step): CALLS.extend(("trackio", "add", step, name, value) for name, value in numbers.items())
    def finish(self): CALLS.append(("trackio", "close"))
def init(**how):
    CALLS.append(("trackio", "open", how)); return _Run()
""",
}
"""Stand-ins for the packages, which are optional: they have the calls that are made of them."""


@pytest.fixture(autouse=True)
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    for file, code in FAKES.items():
        name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module: Any = types.ModuleType(name)
        module.CALLS = CALLS
        exec(code, module.__dict__)
        module.__spec__ = importlib.util.spec_from_loader(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    tensorboard: Any = types.ModuleType("tensorboard")
    tensorboard.__spec__ = importlib.util.spec_from_loader("tensorboard", None)
    monkeypatch.setitem(sys.modules, "tensorboard", tensorboard)
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "SWANLAB_MODE", "SWANLAB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SWANLAB_INTERACTIVE", "true")  # so that it is as before after the test


def added(tracker: str) -> list[tuple[int, str, float]]:
    return [call[2:] for call in CALLS if call[:2] == (tracker, "add")]


def opened(tracker: str) -> list[Any]:
    return [call[2] for call in CALLS if call[:2] == (tracker, "open")]


def test_every_tracker_gets_every_number_and_goes_on_after_a_stop(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    settings = pipeline(folder, max_steps=3, checkpoint={"save_steps": 2}, log={"trackers": NAMES})
    run(settings)
    expected = [(row["step"], name, value) for row in rows(folder) for name, value in numbers_of(row).items()]
    assert {(1, "train/loss", rows(folder)[0]["loss"]), (3, "train/lr", rows(folder)[2]["lr"])} <= set(expected)
    assert {name for _, name, _ in expected} >= {"train/loss_by_source/s", "train/skipped", "train/tokens_per_s"}
    assert "train/step" not in {name for _, name, _ in expected}
    for name in NAMES:
        assert added(name) == expected
    home = folder / "tiny" / "train"
    for how in opened("wandb") + opened("swanlab") + opened("trackio"):
        assert (how["name"], how["group"], how["config"]["train"]["max_steps"]) == ("tiny", "work", 3)
    assert (opened("wandb")[0]["mode"], opened("wandb")[0]["dir"]) == ("offline", home)
    assert (opened("swanlab")[0]["mode"], opened("swanlab")[0]["log_dir"]) == ("offline", str(home / "swanlog"))
    assert ("mlflow", "server", f"sqlite:///{home / 'mlflow.db'}") in CALLS
    assert ("mlflow", "parameter", "train.max_steps", "3") in CALLS
    assert ("tensorboard", "open", str(home / "tensorboard"), 1) in CALLS
    closed = {("wandb", "close", 0), ("swanlab", "close", "success"), ("mlflow", "close", "r1", "FINISHED")}
    assert closed <= {call for call in CALLS if call[1] == "close"}

    first = {name: opened(name)[0] for name in NAMES}
    CALLS.clear()
    (checkpoints(folder)[-1] / "manifest.json").unlink()  # as if it had been stopped in step 3
    run(settings)
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    assert {step for step, _, _ in added("tensorboard")} == {3}, "which it takes back when it is opened"
    assert ("tensorboard", "open", str(home / "tensorboard"), 3) in CALLS
    for name in NAMES[1:]:
        assert added(name) == [], "it has step 3 already"
    assert [opened(name)[0]["id"] for name in ("wandb", "swanlab")] == [first["wandb"]["id"], first["swanlab"]["id"]]
    assert ("mlflow", "go on", "r1", "RUNNING") in CALLS
    assert not opened("mlflow")
    assert [first["trackio"]["resume"], opened("trackio")[0]["resume"]] == ["never", "allow"]

    CALLS.clear()
    run(settings, resume=False)  # another run in the trackers
    assert opened("wandb")[0]["id"] != first["wandb"]["id"]
    assert {step for step, _, _ in added("wandb")} == {1, 2, 3}


def test_tracker_that_comes_later_gets_the_steps_before(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, max_steps=3, checkpoint={"save_steps": 2}))
    (checkpoints(folder)[-1] / "manifest.json").unlink()
    run(pipeline(folder, max_steps=3, checkpoint={"save_steps": 2}, log={"trackers": ["wandb"]}))
    assert sorted({step for step, _, _ in added("wandb")}) == [1, 2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_tracker_without_its_package_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = TRACKERS[name].package
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None if module == missing else module)
    with pytest.raises(MachineError, match=rf"trackers = \[\"{name}\"\]: .*run `pip install {missing}`"):
        check_installed([name])


def tracked(folder: Path) -> TrackedRun:
    return TrackedRun(name="tiny", group="work", config={}, folder=folder, done=0)


def test_failing_tracker_is_told_of_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    monkeypatch.setattr(sys.modules["swanlab"]._Run, "log", fail)
    opened = Trackers(["wandb", "swanlab"], tracked(tmp_path), identity="a", resume=True)
    for step in range(3):
        opened.add({"kind": "train", "step": step, "loss": 1.0})
    opened.close(finished=False)
    assert sorted(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING) == [
        "swanlab: no route to host; the run goes on, and metrics.jsonl has every number",
        "wandb: not opened: no route to host; the run goes on, and metrics.jsonl has every number",
    ]
    assert ("swanlab", "close", "aborted") in CALLS
    assert json.loads((tmp_path / "trackers.json").read_text())["ids"].keys() == {"swanlab"}


def test_hanging_tracker_is_not_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = threading.Event()
    monkeypatch.setattr(sys.modules["wandb"], "init", lambda **_: hangs.wait())
    monkeypatch.setattr(trackers, "CLOSE_S", 0.1)
    opened = Trackers(["wandb"], tracked(tmp_path), identity="a", resume=True)
    opened.add({"kind": "train", "step": 1, "loss": 1.0})
    opened.close(finished=True)
    hangs.set()
    assert "wandb: still not done after" in caplog.text


def test_online_without_a_key_asks_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    Trackers(["wandb"], tracked(tmp_path), identity="a", resume=True).close(finished=True)
    assert "there is no key; run `wandb login`" in caplog.text
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password key\n")
    monkeypatch.delenv("WANDB_MODE")
    Trackers(["wandb"], tracked(tmp_path), identity="a", resume=True).close(finished=True)
    assert opened("wandb")[0]["mode"] is None, "its own settings say"


def test_settings_are_shown_without_secrets(tmp_path: Path) -> None:
    settings = pipeline(tmp_path, deepspeed={"extra": {"hub": {"api_key": "abc", "url": "https://me:abc@host/x"}}})
    shown = shown_settings(settings)
    assert shown["train"]["deepspeed"]["extra"] == {"hub": {"url": "https://host/x"}}
    assert shown["prep"]["pack"]["capacity"] == 40
    assert "abc" not in json.dumps(shown)
