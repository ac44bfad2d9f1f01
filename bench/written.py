"""What was measured, on which machine and with which versions, in files that can be compared."""

import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from bench.peer import installed
from bench.table import Figure, rows


def machine() -> dict[str, str | int]:
    """The processor, its cores and the memory."""
    facts = Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":", 1)[1].strip() for line in facts if line.startswith("model name")}
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": ", ".join(sorted(names)) or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9),
    }


def versions(ours: Sequence[str], peers: Sequence[str]) -> dict[str, dict[str, str]]:
    """Of Python and these packages of ours, and of these of the peers; one that is not there is not named."""
    present = {one.metadata["name"].lower(): one.version for one in importlib.metadata.distributions()}
    theirs = installed()
    return {
        "ours": {"python": platform.python_version(), **{name: present[name] for name in ours if name in present}},
        "peers": {name: theirs[name] for name in peers if name in theirs},
    }


def write_results(
    folder: Path,
    name: str,
    figures: Sequence[Figure],
    *,
    machine: Mapping[str, str | int],
    versions: Mapping[str, Mapping[str, str]],
) -> None:
    """Write NAME.json and its table, NAME.md, without a date: the same figures give the same bytes."""
    folder.mkdir(exist_ok=True)
    measured = [
        {
            **asdict(one),
            "value": one.value if math.isfinite(one.value) else None,
            "ratio": one.ratio,
            "met": one.met,
        }
        for one in figures
    ]
    content = {"machine": dict(machine), "versions": versions, "figures": measured}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(_page(name, figures, machine, versions), encoding="utf-8")


def _page(
    name: str,
    figures: Sequence[Figure],
    machine: Mapping[str, str | int],
    versions: Mapping[str, Mapping[str, str]],
) -> str:
    header, *body = rows(figures)
    right = {"value", "other", "ratio"}
    lines = [
        f"# What `make bench-{name} JSON=1` measured",
        "",
        f"Generated with {name}.json, by the same command. Each figure stands beside a peer or a limit of that run.",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB. "
        + " ".join(
            f"{whose.capitalize()}: {', '.join(f'{name} {version}' for name, version in which.items()) or 'none'}."
            for whose, which in versions.items()
        ),
        "",
        "| " + " | ".join(header) + " |",
        "|" + "|".join("--:" if name in right else "---" for name in header) + "|",
        *("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in row) + " |" for row in body),
        "",
    ]
    return "\n".join(lines)
