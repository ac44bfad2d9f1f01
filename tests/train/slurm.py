#!/usr/bin/env python3
"""Stands for srun and scontrol: runs the tasks that sbatch's variables ask for, all on this machine.

As `srun [OPTIONS] COMMAND ...` it sets what Slurm sets for a step, passes signals on to the tasks, and ends with the
highest exit code. As `scontrol ...` it writes its arguments to scontrol.log in the working directory.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path


def main() -> int:
    name, arguments = Path(sys.argv[0]).name, sys.argv[1:]
    if name == "scontrol":
        Path("scontrol.log").write_text(" ".join(arguments))
        return 0
    while arguments[0].startswith("--"):
        arguments.pop(0)
    nodes, per_node = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS_PER_NODE"])
    tasks = [
        subprocess.Popen(arguments, env={**os.environ, **variables(task, nodes, per_node)}, start_new_session=True)
        for task in range(nodes * per_node)
    ]

    def pass_on(number: int, _: object) -> None:
        for task in tasks:
            os.killpg(task.pid, number)

    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    codes = [task.wait() for task in tasks]
    return max(code if code >= 0 else 128 - code for code in codes)


def variables(task: int, nodes: int, per_node: int) -> dict[str, str]:
    node, local = divmod(task, per_node)
    return {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": str(nodes * per_node),
        "SLURM_STEP_NUM_NODES": str(nodes),
        # Not as Slurm would write it, but all nodes are this machine.
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": f"{per_node}(x{nodes})" if nodes > 1 else str(per_node),
        "SLURM_PROCID": str(task),
        "SLURM_LOCALID": str(local),
        "SLURM_NODEID": str(node),
    }


if __name__ == "__main__":
    sys.exit(main())
