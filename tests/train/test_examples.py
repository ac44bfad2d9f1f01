"""docs/examples: scripts and containers, started as a scheduler would start them. No scheduler runs here."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.train.runs import checkpoints, share, write_toml
from tests.train.test_launch import PATIENCE_S, STEPS, free_port, path, wait_for_steps, work
from train.launchers import Node, Ranks, launch_of

EXAMPLES = Path(__file__).parents[2] / "docs/examples"
BATCH = ["slurm-task-per-gpu.sbatch", "slurm-task-per-node.sbatch"]


def sbatch_options(name: str) -> dict[str, str]:
    lines = [line.split() for line in (EXAMPLES / name).read_text().splitlines() if line.startswith("#SBATCH")]
    return dict(option.lstrip("-").partition("=")[::2] for _, option in lines)


@pytest.mark.parametrize("name", BATCH)
def test_batch_scripts_ask_for_what_packtrain_reads(name: str) -> None:
    options = sbatch_options(name)
    assert options["signal"] == "SIGUSR1@180"
    assert "requeue" in options
    assert subprocess.run(["bash", "-n", str(EXAMPLES / name)], check=False).returncode == 0
    per_node = int(options["ntasks-per-node"])
    step = {
        "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": str(2 * per_node), "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x2)",
        "SLURM_PROCID": str(per_node), "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    }  # fmt: skip
    assert isinstance(launch_of(step), Node if "per-node" in name else Ranks)


@pytest.mark.slow
def test_batch_scripts_train_and_requeue_when_time_is_up(tmp_path: Path, shards: Path) -> None:
    folder = work(tmp_path / "run", shards, f"max_steps = {STEPS}")
    for name in BATCH:  # the second goes on where the first was stopped
        per_gpu = "per-gpu" in name
        environment = {
            **os.environ, "PATH": path(folder), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
            "SLURM_JOB_ID": str(free_port()), "SLURM_NNODES": "1" if per_gpu else "2",
            "SLURM_NTASKS_PER_NODE": "2" if per_gpu else "1",
        }  # fmt: skip
        command = ["bash", str(EXAMPLES / name), "tiny.toml"]
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            if per_gpu:
                wait_for_steps(folder, process)
                (srun,) = children(process.pid)
                os.kill(srun, signal.SIGUSR1)  # Slurm signals a job's steps and not its shell
            _, errors = process.communicate(timeout=PATIENCE_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
        assert process.returncode == (75 if per_gpu else 0), errors
        if per_gpu:
            assert (folder / "scontrol.log").read_text() == f"requeue {environment['SLURM_JOB_ID']}"
    assert checkpoints(folder / "work")[-1].name == f"step-{STEPS:08d}"


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(child) for child in listed.stdout.split()]


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["spec"]["containers"]
    assert found["command"][:2] == ["packtrain", "train"]
    assert {"mountPath": "/dev/shm", "name": "memory"} in found["volumeMounts"]
    return dict(found)


def test_pods_of_an_indexed_job_are_machines() -> None:
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes-job.yaml").read_text())
    pods = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == pods
    found = container(job["spec"]["template"])
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    for pod in range(pods):
        environment = {
            one["name"]: one["value"]
            if "value" in one
            else {index: str(pod)}[one["valueFrom"]["fieldRef"]["fieldPath"]]
            for one in found["env"]
        }
        launch = launch_of(environment)
        assert isinstance(launch, Node)
        assert (launch.node, launch.nodes) == (pod, pods)
        # The first pod's name below the service: <job>-<index>.<subdomain>.
        assert launch.address is not None
        assert launch.address.host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]


def test_pods_of_a_pytorchjob_are_machines() -> None:
    job = yaml.safe_load((EXAMPLES / "kubeflow-pytorchjob.yaml").read_text())
    replicas = job["spec"]["pytorchReplicaSpecs"]
    pods = sum(one["replicas"] for one in replicas.values())
    count = job["spec"]["nprocPerNode"]
    for kind in ("Master", "Worker"):
        container(replicas[kind]["template"])
        pod = 0 if kind == "Master" else 1
        launch = launch_of(
            {
                "RANK": str(pod), "WORLD_SIZE": str(pods), "MASTER_ADDR": "my-sft-master-0", "MASTER_PORT": "23456",
                "PET_NNODES": str(pods), "PET_NODE_RANK": str(pod), "PET_NPROC_PER_NODE": count,
                "PET_MASTER_ADDR": "my-sft-master-0", "PET_MASTER_PORT": "23456",
            }
        )  # fmt: skip
        assert isinstance(launch, Node)
        assert (launch.node, launch.nodes, launch.local_ranks) == (pod, 2, 8)


@pytest.mark.slow
def test_skypilots_run_section_trains_on_every_machine(tmp_path: Path, shards: Path) -> None:
    task = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    share(shards, tmp_path / "work")
    write_toml(tmp_path, ["nproc_per_node = 1", "max_steps = 3"])
    (tmp_path / "my-sft.toml").write_text((tmp_path / "tiny.toml").read_text())
    script = task["run"].replace("cd /shared", f"cd {tmp_path}")
    port = str(free_port())
    machines = [
        subprocess.Popen(
            ["bash", "-e", "-c", script],
            env={
                **os.environ, "PATH": path(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                "SKYPILOT_NUM_NODES": str(task["num_nodes"]), "SKYPILOT_NODE_RANK": str(node), "MASTER_PORT": port,
                "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.1", "SKYPILOT_NUM_GPUS_PER_NODE": "0",
            },
        )
        for node in range(task["num_nodes"])
    ]  # fmt: skip
    assert [machine.wait(timeout=PATIENCE_S) for machine in machines] == [0, 0]
    assert len(checkpoints(tmp_path / "work")) == 1
