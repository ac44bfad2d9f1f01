"""Chunks on a Ray cluster of this machine: same bytes, also when a node is lost, and one line for what is wrong."""

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipelines.config import load
from pipelines.errors import DataError, MachineError
from prep.executors import ray as executor
from prep.formats import lines
from prep.run import run
from tests.prep.executors.maps import OBEDIENT, asking
from tests.prep.small import MakePipeline, conversations, written

ROOT = str(Path(__file__).parents[3])
ON_RAY = 'prep.executor="ray"'


def test_without_ray_the_command_that_installs_it_is_named(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match=r"pip install 'packtrain\[ray\]'"):
        run(load(make_pipeline(conversations(3)), [ON_RAY]))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A cluster on this machine: a head without a core for tasks, and two nodes of one core."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", ROOT)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    try:
        yield nodes
    finally:
        nodes.shutdown()


@pytest.mark.slow
def test_a_node_lost_in_the_middle_of_its_task_changes_no_byte(
    cluster: Any, make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 2000)
    victim = tmp_path / "victim"
    records = conversations(300).splitlines()
    file = make_pipeline("".join(asking(record, stay=str(victim)) for record in records))
    run(load(file, [OBEDIENT]), workers=1)
    once = written(file)
    (load(file).home / "prep" / "manifest.json").unlink()

    lost = cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    victim.write_text(lost.node_id)
    killed = []

    def kill() -> None:
        while not victim.with_suffix(".works").exists():
            time.sleep(0.05)
        cluster.remove_node(lost, allow_graceful=False)
        killed.append(lost)

    killer = Thread(target=kill)
    killer.start()
    run(load(file, [OBEDIENT, ON_RAY]))
    killer.join()
    assert killed
    assert written(file) == once


@pytest.mark.slow
def test_faults_and_other_versions_are_told_in_one_line(
    cluster: Any, make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add_node(num_cpus=1)
    monkeypatch.setattr(lines, "CHUNK_BYTES", 200)
    file = make_pipeline(conversations(10) + "\n\n{\n" + conversations(300) + "{\n")
    with pytest.raises(DataError, match=r"a\.jsonl:13:2: not valid JSON"):
        run(load(file, [ON_RAY]))
    chunks = len(lines.chunks(tmp_path / "data" / "a.jsonl"))
    assert len(list(load(file).home.glob("prep/.partial/*/chunk-*"))) < chunks / 2  # what comes later was not begun
    here = executor._versions()
    monkeypatch.setattr(executor, "_versions", lambda: {**here, "tokenizers": "0.0"})
    with pytest.raises(MachineError, match=r"ray: .* has tokenizers .* and not 0\.0; install the same"):
        run(load(file, [ON_RAY]))


def test_an_address_that_is_none_is_named(make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "nowhere")
    with pytest.raises(MachineError, match=r"ray: .*check RAY_ADDRESS"):
        run(load(make_pipeline(conversations(3)), [ON_RAY]))


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (
            lambda ray: ray.RayTaskError("f", "", ray.RaySystemError("x\nModuleNotFoundError: No module named 'prep'")),
            r"No module named 'prep'; install packtrain\[ray\] on every machine",
        ),
        (lambda ray: ray.WorkerCrashedError(), "a task was lost 6 times, probably out of memory; take larger machines"),
    ],
)
def test_what_the_machines_of_a_cluster_lack_is_told(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, failure: Callable[[Any], Exception], told: str
) -> None:
    exceptions = pytest.importorskip("ray").exceptions

    def failing(*_: object) -> Generator[executor.Found, None, None]:
        raise failure(exceptions)
        yield

    monkeypatch.setattr(executor, "_connected", nullcontext)
    monkeypatch.setattr(executor, "_results", failing)
    with pytest.raises(MachineError, match=told):
        run(load(make_pipeline(conversations(3)), [ON_RAY]))
