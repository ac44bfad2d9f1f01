"""What a process does under each launcher, from the variables that the launcher sets."""

import pytest

from pipelines.errors import ConfigError
from train.launchers import Address, Node, Ranks, first_host, launch_of

TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "MASTER_ADDR": "a", "MASTER_PORT": "1234", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
DEEPSPEED = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4", "CROSS_RANK": "1", "CROSS_SIZE": "2",
    "MASTER_ADDR": "a", "MASTER_PORT": "1234",
}  # fmt: skip
BY_HAND = {"NNODES": "2", "NODE_RANK": "1", "NPROC_PER_NODE": "4", "ADDR": "a", "PORT": "1234"}
SRUN = {
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "8", "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1", "SLURM_NODEID": "1", "SLURM_NTASKS": "8", "SLURM_NNODES": "2",
}  # fmt: skip
A_TASK_A_NODE = {
    **SRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}  # fmt: skip
BATCH_SHELL = {
    "SLURM_JOB_ID": "123456", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "8",
    "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu[03-04]",
}  # fmt: skip
PYTORCHJOB = {
    "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "PET_NNODES": "2",
    "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "4", "PET_MASTER_ADDR": "job-master-0", "PET_MASTER_PORT": "23456",
}  # fmt: skip
TRAINJOB = {
    "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "auto", "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400", "JOB_COMPLETION_INDEX": "1",
}  # fmt: skip
SKYPILOT = {
    "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.3\n10.0.0.4",
    "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_TASK_ID": "sky-2026",
}  # fmt: skip
ONE_OF_EIGHT = Ranks(rank=5, ranks=8, local_rank=1, local_ranks=4, address=Address("a", 1234))
IN_STEP_0 = Address("gpu03", 20_000 + 3456)

LAUNCHES = {
    "nothing": ({}, Node()),
    "a count": ({"NPROC_PER_NODE": "4"}, Node(local_ranks=4)),
    "torchrun": (TORCHRUN, ONE_OF_EIGHT),
    "torchrun in a task of srun": ({**A_TASK_A_NODE, **TORCHRUN}, ONE_OF_EIGHT),
    "torchrun in a pod": ({**PYTORCHJOB, **TORCHRUN}, ONE_OF_EIGHT),
    "deepspeed": (DEEPSPEED, ONE_OF_EIGHT),
    "one rank of torchrun": (
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        Ranks(rank=0, ranks=1, local_rank=0, local_ranks=1),
    ),
    "by hand": (BY_HAND, Node(1, 2, Address("a", 1234), 4)),
    "by hand, one machine": ({"NNODES": "1", "NPROC_PER_NODE": "4", "PORT": "80"}, Node(local_ranks=4)),
    "by hand on DLC, whose RANK counts machines": (
        {**BY_HAND, "MASTER_ADDR": "a", "MASTER_PORT": "1234", "RANK": "1", "WORLD_SIZE": "2"},
        Node(1, 2, Address("a", 1234), 4),
    ),
    "srun, a task a GPU": (SRUN, Ranks(5, 8, 1, 4, IN_STEP_0)),
    "srun, other counts": (
        {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "5,3", "SLURM_LOCALID": "0"},
        Ranks(5, 8, 0, 3, IN_STEP_0),
    ),
    "srun, its second step": ({**SRUN, "SLURM_STEP_ID": "1"}, Ranks(5, 8, 1, 4, Address("gpu03", 20_000 + 3557))),
    "srun, told where": (
        {**SRUN, "MASTER_ADDR": "a", "MASTER_PORT": "1234", "SLURM_DISTRIBUTION": "arbitrary"},
        ONE_OF_EIGHT,
    ),
    "srun, a task a node": (A_TASK_A_NODE, Node(1, 2, IN_STEP_0)),
    "srun, a task a node, told how many": ({**A_TASK_A_NODE, "NPROC_PER_NODE": "8"}, Node(1, 2, IN_STEP_0, 8)),
    "srun --pty bash": (
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},
        Node(),
    ),
    "sbatch without srun": (BATCH_SHELL, Node()),
    "salloc's interactive step": ({**SRUN, "SLURM_STEP_ID": "4294967290"}, Node()),
    "PyTorchJob": (PYTORCHJOB, Node(1, 2, Address("job-master-0", 23456), 4)),
    "TrainJob": (TRAINJOB, Node(1, 2, Address("job-node-0-0.job", 29400))),
    "SkyPilot": (SKYPILOT, Node(1, 2, Address("10.0.0.3", 29500), 8)),
    "SkyPilot on one CPU machine": (
        {"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_GPUS_PER_NODE": "0"},
        Node(),
    ),
    "two that agree": ({**SKYPILOT, **BY_HAND}, Node(1, 2, Address("a", 1234), 4)),
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_launcher_says_what_to_do(name: str) -> None:
    environment, expected = LAUNCHES[name]
    assert launch_of(environment) == expected


def without(environment: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != name}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {"RANK": "1", "WORLD_SIZE": "2"},
            "RANK and WORLD_SIZE are set without LOCAL_RANK, so they may count machines",
        ),
        (without(TORCHRUN, "MASTER_ADDR"), "WORLD_SIZE is above 1, but MASTER_ADDR is not set"),
        ({**TORCHRUN, "RANK": "8"}, "RANK is 8, but WORLD_SIZE is 8; they count from 0"),
        ({**BY_HAND, "NNODES": "two"}, "NNODES is 'two'; expected a whole number from 1"),
        (without(BY_HAND, "NODE_RANK"), "NODE_RANK is not set"),
        (without(BY_HAND, "ADDR"), "NNODES is above 1, but MASTER_ADDR is not set"),
        ({**BY_HAND, "MASTER_ADDR": "b"}, "ADDR is 'a' and MASTER_ADDR 'b'; unset one of them"),
        ({**BY_HAND, "NPROC_PER_NODE": "0"}, "NPROC_PER_NODE is '0'; expected a whole number from 1"),
        ({**TRAINJOB, "PET_NNODES": "1:4"}, "PET_NNODES is '1:4'; expected a whole number"),
        (without(TRAINJOB, "PET_MASTER_ADDR"), "PET_MASTER_ADDR is not set"),
        ({**SKYPILOT, "SKYPILOT_NODE_IPS": "10.0.0.3"}, "SKYPILOT_NUM_NODES is 2, but SKYPILOT_NODE_IPS names 1"),
        ({**SRUN, "SLURM_DISTRIBUTION": "arbitrary"}, "SLURM_DISTRIBUTION is arbitrary; set MASTER_ADDR"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "four"}, "SLURM_STEP_TASKS_PER_NODE is 'four', and Slurm writes"),
        (
            {**SRUN, **BY_HAND},
            "NNODES and SLURM_STEP_NUM_TASKS contradict each other: by the first this is machine 1 of 2, counted from "
            "0, by the second rank 5 of 8; unset",
        ),
        ({**SKYPILOT, **BY_HAND, "NODE_RANK": "0"}, "NNODES and SKYPILOT_NUM_NODES contradict each other"),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        launch_of(environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("node7", "node7"), ("node[01-03,7]", "node01"), ("a1,b[2-3]", "a1"), ("rack[2,4]n[10-12]x,b", "rack2n10x")],
)
def test_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
