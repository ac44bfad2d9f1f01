"""`packtrain env`: what this machine has, what is missing, for one pipeline or at all, and the command that adds it."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from pipelines.schema import Pipeline

_REQUIREMENT = re.compile(r'([\w.-]+)([^;]*)(?:;.*extra == "(\w+)")?')
_LEAST = re.compile(r">=([\d.]+)")
_FOR_WORK = ("dev", "docs")
"""Extras for working on packtrain itself."""
_SHOWN = {
    "base": "",
    "train": "to train and export",
    "fast": "to tokenize byte-level BPE faster",
    "ray": "to tokenize on a Ray cluster",
    "gpu": "for a GPU, none of them required",
}
"""Extras that are listed whether they are installed or not; the others are those of a single key."""


def describe() -> dict[str, Any]:
    """Versions of the packages, cores, memory and GPUs of this machine, without importing any of the packages."""
    return {
        "packtrain": version("packtrain"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(),
        "packages": {extra: {name: _version(name) for name in names} for extra, names in _required().items()},
    }


def needs(pipeline: Pipeline, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the stages of a pipeline want of this machine, what it has, and what adds it.

    Args:
        found: what `describe` found.
    Returns:
        Of each: name, stage, reason, required (else it makes the stage faster), have (null where it is missing),
        least (null for any version), met, and the command that adds it.
    """
    least = {name: bound for names in _required().values() for name, bound in names.items()}
    wanted = [*_prep(pipeline, found), *_train(pipeline, found)]
    if pipeline.train is None:
        wanted += [(name, "export", "to export", True, "'packtrain[train]'") for name in _required().get("train", {})]
    rows: dict[str, dict[str, Any]] = {}
    for name, stage, reason, required, package in wanted:
        if name in rows:
            continue
        tool = package.startswith("apt-get ")
        have = shutil.which(name) if tool else _version(name)
        bound = None if tool else least.get(name)
        rows[name] = {
            "name": name,
            "stage": stage,
            "reason": reason,
            "required": required,
            "have": have,
            "least": bound,
            "met": have is not None and (bound is None or _number(have) >= _number(bound)),
            "install": package if tool else f"pip install {package}",
        }
    return list(rows.values())


def lacking(found: Mapping[str, Any]) -> list[str]:
    """What a pipeline requires and is not here, or too old."""
    return [one["name"] for one in found.get("needs", ()) if one["required"] and not one["met"]]


def lines(found: Mapping[str, Any]) -> list[str]:
    """The description for a person, with what to install where something is missing."""
    text = [
        f"packtrain {found['packtrain']}, Python {found['python']}, {found['platform']}",
        f"{found['cores']} cores, {found['memory_gb']} GB of memory, "
        + (", ".join(found["gpus"]) if found["gpus"] else "no NVIDIA GPU"),
    ]
    packages = found["packages"]
    for extra, names in packages.items():
        if extra in _SHOWN or any(names.values()):
            text.append(f"{extra:6}" + ", ".join(f"{name} {have or 'missing'}" for name, have in names.items()))
    if "needs" in found:
        return [*text, *_need_lines(found)]
    for extra, purpose in _SHOWN.items():
        if purpose and missing(found, extra) and (extra != "gpu" or found["gpus"]):
            text.append(f"{purpose}: pip install 'packtrain[{extra}]'")
    return text


def missing(found: Mapping[str, Any], extra: str) -> list[str]:
    """Packages of an extra that are not installed."""
    return [name for name, have in found["packages"].get(extra, {}).items() if have is None]


_Wanted = tuple[str, str, str, bool, str]
"""Name, stage, reason, whether it is required, and what installs it."""


def _prep(pipeline: Pipeline, found: Mapping[str, Any]) -> Iterator[_Wanted]:
    for name in found["packages"]["base"]:
        yield name, "prep", "always", True, "packtrain"
    if pipeline.prep.executor == "ray":
        yield "ray", "prep", 'prep.executor = "ray"', True, "'packtrain[ray]'"
    for table, source in (("model", pipeline.model.source), ("tokenizer", pipeline.tokenizer.source)):
        if source in ("modelscope", "openmind"):
            name = "modelscope" if source == "modelscope" else "openmind_hub"
            yield name, "prep", f'{table}.source = "{source}"', True, f"'packtrain[{source}]'"
    yield "fastokens", "prep", "byte-level BPE, faster", False, "'packtrain[fast]'"


def _train(pipeline: Pipeline, found: Mapping[str, Any]) -> Iterator[_Wanted]:
    table = pipeline.train
    if table is None:
        return
    for name in found["packages"].get("train", {}):
        yield name, "train", "to train and export", True, "'packtrain[train]'"
    if pipeline.model.quantization is not None:
        yield "bitsandbytes", "train", "[model.quantization]", True, "bitsandbytes"
    if "8bit" in table.optimizer.type or "paged" in table.optimizer.type:
        yield "bitsandbytes", "train", f'train.optimizer.type = "{table.optimizer.type}"', True, "bitsandbytes"
    for tracker in table.log.trackers:
        yield tracker, "train", "train.log.trackers", True, f"'packtrain[{tracker}]'"
    if table.compile:
        yield os.environ.get("CXX", "g++"), "train", "train.compile", True, "apt-get install g++"
    if pipeline.model.attn_implementation == "flash_attention_2":
        yield "flash-attn", "train", 'model.attn_implementation = "flash_attention_2"', True, "flash-attn"
    elif found["gpus"]:
        yield "flash-attn", "train", "attention on a GPU", False, "flash-attn"


def _need_lines(found: Mapping[str, Any]) -> Iterator[str]:
    unmet = [one for one in found["needs"] if not one["met"]]
    for one in unmet:
        state = f"{one['have']}, needs {one['least']}" if one["have"] else "missing"
        purpose = f"{one['stage']}: {one['reason']}" if one["required"] else f"{one['reason']}; not required"
        yield f"{one['name']} {state} ({purpose}): {one['install']}"
    stages = sorted({one["stage"] for one in unmet if one["required"]})
    yield (
        f"this machine lacks something for {' and '.join(stages)}" if stages else "nothing is missing for this pipeline"
    )


def _required() -> dict[str, dict[str, str | None]]:
    """Packages by extra, each with its least version, as the installed distribution asks for them."""
    found: dict[str, dict[str, str | None]] = {"base": {}}
    for line in requires("packtrain") or []:
        match = _REQUIREMENT.match(line)
        assert match, line
        name, bounds, extra = match[1], match[2], match[3] or "base"
        if extra not in _FOR_WORK:
            least = _LEAST.search(bounds)
            found.setdefault(extra, {})[name] = least[1] if least else None
    return found


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _number(text: str) -> tuple[int, ...]:
    """The numbers that a version begins with: 2.13.0+cpu is 2, 13, 0."""
    return tuple(int(part) for part in re.findall(r"\d+", re.match(r"[\d.]*", text)[0]))  # type: ignore[index]


def _gpus() -> list[str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    return [line.strip() for line in answer.stdout.splitlines()] if answer.returncode == 0 else []
