"""`packtrain env`: what this machine has, what is missing, and the command that adds it."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = {
    "base": ["numba", "numpy", "pyarrow", "pydantic", "sentencepiece", "tokenizers", "tomli"],
    "train": ["torch", "transformers", "deepspeed", "peft"],
    "fast": ["fastokens"],
    "ray": ["ray"],
    "gpu": ["flash-attn", "bitsandbytes", "liger-kernel"],
}
"""What each extra of the distribution adds; all but train are for speed or size."""


def describe() -> dict[str, Any]:
    """Versions of the packages, cores, memory and GPUs of this machine, without importing any of the packages."""
    return {
        "packtrain": version("packtrain"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "packages": {extra: {name: _version(name) for name in names} for extra, names in PACKAGES.items()},
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The description for a person, with what to install where something is missing."""
    text = [
        f"packtrain {found['packtrain']}, Python {found['python']}, {found['platform']}",
        f"{found['cores']} cores, {found['memory_gb']} GB of memory, "
        + (", ".join(found["gpus"]) if found["gpus"] else "no NVIDIA GPU"),
    ]
    for extra, packages in found["packages"].items():
        text.append(f"{extra:6}" + ", ".join(f"{name} {have or 'missing'}" for name, have in packages.items()))
    if missing(found, "train"):
        text.append("to train and export: pip install 'packtrain[train]'")
    if missing(found, "fast"):
        text.append("to tokenize byte-level BPE faster: pip install 'packtrain[fast]'")
    if missing(found, "ray"):
        text.append("to tokenize on a Ray cluster: pip install 'packtrain[ray]'")
    if found["gpus"] and missing(found, "gpu"):
        text.append("for this GPU, none of them required: pip install 'packtrain[gpu]'")
    return text


def missing(found: dict[str, Any], extra: str) -> list[str]:
    """Packages of an extra that are not installed."""
    return [name for name, have in found["packages"][extra].items() if have is None]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
