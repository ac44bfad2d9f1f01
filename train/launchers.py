"""What launchers say in the environment: whether this process is a rank, or starts the ranks of its machine.

The innermost launcher wins: torchrun's and DeepSpeed's variables name one rank, whoever started those. Without them,
every scheduler that says something about machines has to say the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipelines.errors import ConfigError

PORT = 29500
"""Where rank 0 waits if nobody says otherwise, as for torchrun."""
FIRST_PORT, PORTS = 20_000, 10_000
"""Ports of Slurm jobs, below those that systems hand out to outgoing connections."""
FIRST_RESERVED_STEP = 0xFFFFFFF0
"""Step ids from here on are Slurm's names for a batch script or an interactive shell."""

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Address:
    """Where rank 0 waits for the others."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Ranks:
    """This process among the ranks of a run."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    address: Address | None = None
    """None where there is one rank."""

    @classmethod
    def alone(cls) -> "Ranks":
        return cls(rank=0, ranks=1, local_rank=0, local_ranks=1)


@dataclass(frozen=True)
class Node:
    """This process starts the ranks of one machine."""

    node: int = 0
    nodes: int = 1
    address: Address | None = None
    """None where there is one machine."""
    local_ranks: int | None = None
    """Ranks of this machine; None leaves it to train.nproc_per_node."""


def launch_of(environment: Environment) -> Ranks | Node:
    """What this process is to do.

    Raises:
        ConfigError: if a variable is missing or no number, or two of them say different things, by name.
    """
    if {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= environment.keys():
        return _rank(environment)
    told = {
        name: found
        for name, read in (
            ("NNODES", _by_hand),
            ("PET_NNODES", _kubeflow),
            ("SKYPILOT_NUM_NODES", _skypilot),
            ("SLURM_STEP_NUM_TASKS", _slurm),
        )
        if (found := read(environment))
    }
    if not told:
        if {"RANK", "WORLD_SIZE"} <= environment.keys():
            raise ConfigError(
                "RANK and WORLD_SIZE are set without LOCAL_RANK, so they may count machines or ranks; set LOCAL_RANK "
                'as well for ranks, or NNODES="$WORLD_SIZE" NODE_RANK="$RANK" for machines'
            )
        return Node(local_ranks=_local_ranks(environment))
    (first, launch), *others = told.items()
    for name, other in others:
        if _place(other) != _place(launch):
            raise ConfigError(
                f"{first} and {name} contradict each other: by the first this is {_place(launch)}, by the second "
                f"{_place(other)}; unset those that are wrong"
            )
    if isinstance(launch, Node) and launch.local_ranks is None:
        return replace(launch, local_ranks=_local_ranks(environment))
    return launch


def _place(launch: Ranks | Node) -> str:
    if isinstance(launch, Ranks):
        return f"rank {launch.rank} of {launch.ranks}"
    return f"machine {launch.node} of {launch.nodes}, counted from 0"


def _rank(environment: Environment) -> Ranks:
    # torchrun, DeepSpeed, or a script of the user's that sets the same. DeepSpeed says LOCAL_SIZE.
    ranks = _number(environment, "WORLD_SIZE", least=1)
    local = "LOCAL_WORLD_SIZE" if "LOCAL_WORLD_SIZE" in environment else "LOCAL_SIZE"
    return Ranks(
        rank=_below(environment, "RANK", "WORLD_SIZE", ranks),
        ranks=ranks,
        local_rank=_number(environment, "LOCAL_RANK"),
        local_ranks=_number(environment, local, ranks, least=1),
        address=_address(environment, "WORLD_SIZE") if ranks > 1 else None,
    )


def _by_hand(environment: Environment) -> Node | None:
    # The names that XTuner reads, which Alibaba Cloud's DLC is used with.
    if "NNODES" not in environment:
        return None
    nodes = _number(environment, "NNODES", least=1)
    if nodes == 1:
        return Node()
    address = _address(_with_xtuners_names(environment), "NNODES")
    return Node(_below(environment, "NODE_RANK", "NNODES", nodes), nodes, address)


def _kubeflow(environment: Environment) -> Node | None:
    # torchrun's options as variables. Beside them Kubeflow's PyTorchJob sets RANK and WORLD_SIZE, which count pods.
    if "PET_NNODES" not in environment:
        return None
    nodes = _number(environment, "PET_NNODES", least=1)
    local = environment.get("PET_NPROC_PER_NODE", "auto")
    count = None if local in ("auto", "gpu", "cpu") else _number(environment, "PET_NPROC_PER_NODE", least=1)
    if nodes == 1:
        return Node(local_ranks=count)
    address = Address(_text(environment, "PET_MASTER_ADDR"), _number(environment, "PET_MASTER_PORT", PORT, least=1))
    return Node(_below(environment, "PET_NODE_RANK", "PET_NNODES", nodes), nodes, address, count)


def _skypilot(environment: Environment) -> Node | None:
    if "SKYPILOT_NUM_NODES" not in environment:
        return None
    nodes = _number(environment, "SKYPILOT_NUM_NODES", least=1)
    count = _number(environment, "SKYPILOT_NUM_GPUS_PER_NODE", 0) or None
    if nodes == 1:
        return Node(local_ranks=count)
    hosts = environment.get("SKYPILOT_NODE_IPS", "").split()
    if len(hosts) != nodes:
        raise ConfigError(f"SKYPILOT_NUM_NODES is {nodes}, but SKYPILOT_NODE_IPS names {len(hosts)} machines")
    node = _below(environment, "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES", nodes)
    return Node(node, nodes, Address(hosts[0], _number(environment, "MASTER_PORT", PORT, least=1)), count)


def _slurm(environment: Environment) -> Ranks | Node | None:
    # A shell inside an allocation has most of the variables, too; only srun's tasks have a step.
    if _number(environment, "SLURM_STEP_ID", FIRST_RESERVED_STEP) >= FIRST_RESERVED_STEP:
        return None
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS", least=1)
    nodes = _number(environment, "SLURM_STEP_NUM_NODES", least=1)
    if tasks == 1:
        return None
    task = _below(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", tasks)
    address = _slurm_address(environment)
    if tasks == nodes:
        return Node(task, nodes, address)
    counts = _tasks_per_node(_text(environment, "SLURM_STEP_TASKS_PER_NODE"))
    return Ranks(
        rank=task,
        ranks=tasks,
        local_rank=_number(environment, "SLURM_LOCALID"),
        local_ranks=counts[_below(environment, "SLURM_NODEID", "SLURM_STEP_NUM_NODES", len(counts))],
        address=address,
    )


def _slurm_address(environment: Environment) -> Address:
    # The same on every task without asking anybody: task 0 is on the list's first machine, but for one distribution.
    if "MASTER_ADDR" in environment:
        host = _text(environment, "MASTER_ADDR")
    elif environment.get("SLURM_DISTRIBUTION") == "arbitrary":
        raise ConfigError("SLURM_DISTRIBUTION is arbitrary; set MASTER_ADDR to the host of task 0")
    else:
        host = first_host(_text(environment, "SLURM_STEP_NODELIST"))
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
    # Jobs and steps that share a machine are near each other in number, and get different ports.
    return Address(host, _number(environment, "MASTER_PORT", FIRST_PORT + (job + 101 * step) % PORTS, least=1))


def first_host(nodes: str) -> str:
    """The first of a list of hosts as Slurm writes it: `node[07-09,12],login1` begins with node07."""
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", nodes).split(",")[0]


def _tasks_per_node(text: str) -> list[int]:
    # `4(x2),3` is 4, 4 and 3.
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise ConfigError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}, and Slurm writes it like 4(x2),3")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _local_ranks(environment: Environment) -> int | None:
    return _number(environment, "NPROC_PER_NODE", least=1) if "NPROC_PER_NODE" in environment else None


def _address(environment: Environment, because: str) -> Address:
    if not environment.get("MASTER_ADDR"):
        raise ConfigError(f"{because} is above 1, but MASTER_ADDR is not set; set it to the host of rank 0")
    return Address(environment["MASTER_ADDR"], _number(environment, "MASTER_PORT", PORT, least=1))


def _with_xtuners_names(environment: Environment) -> Environment:
    # ADDR and PORT are what it calls MASTER_ADDR and MASTER_PORT. Elsewhere, PORT may be anything's.
    named = dict(environment)
    for short, name in (("ADDR", "MASTER_ADDR"), ("PORT", "MASTER_PORT")):
        if short in environment and named.setdefault(name, environment[short]) != environment[short]:
            raise ConfigError(f"{short} is {environment[short]!r} and {name} {named[name]!r}; unset one of them")
    return named


def _below(environment: Environment, name: str, limit: str, count: int) -> int:
    number = _number(environment, name)
    if number >= count:
        raise ConfigError(f"{name} is {number}, but {limit} is {count}; they count from 0")
    return number


def _number(environment: Environment, name: str, otherwise: int | None = None, *, least: int = 0) -> int:
    if name not in environment and otherwise is not None:
        return otherwise
    text = _text(environment, name)
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"{name} is {text!r}; expected a whole number from {least}")
    return int(text)


def _text(environment: Environment, name: str) -> str:
    if not environment.get(name):
        raise ConfigError(f"{name} is not set, but variables that go with it are")
    return environment[name]
