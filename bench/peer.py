"""Peers' scripts, run in the environment that the benchmarks make for them."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

PYTHON = Path(".bench-venv/bin/python")
SCRIPTS = Path(__file__).parent / "peers"
RANKED = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR"}
"""What a rank of ours has in its environment, and a peer would take for its own."""


def measure(script: str, *arguments: object, python: Path = PYTHON, timeout_s: float = 180) -> dict[str, Any] | str:
    """What a script of bench/peers prints, or in a few words why it did not."""
    if not python.exists():
        return "not installed: make .bench-venv/.ready"
    command = [str(python), str(SCRIPTS / script), *map(str, arguments)]
    alone = {name: value for name, value in os.environ.items() if name not in RANKED}
    environment = {**alone, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"took more than {timeout_s:g} s"
    last = (done.stdout.strip() or "nothing").splitlines()[-1]
    if done.returncode == 0 and last.startswith("{"):
        found: dict[str, Any] = json.loads(last)
        return found
    reason = (done.stderr.strip() or last).splitlines()[-1]
    return f"failed: {reason[:80]}"


def installed(python: Path = PYTHON) -> dict[str, str]:
    """Versions of what the peers' environment holds."""
    if not python.exists():
        return {}
    command = [str(python), "-m", "pip", "list", "--format=json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {one["name"].lower(): one["version"] for one in json.loads(done.stdout)}
