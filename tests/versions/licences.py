"""The licences of all that packtrain stands on, as installed; `make licences` writes docs/licences.md."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageMetadata, PackageNotFoundError, distribution

import tomli
from packaging.requirements import Requirement

from tests.versions.pins import CONSTRAINTS, ROOT, normal, pins

PAGE = ROOT / "docs" / "licences.md"
GROUPS: Mapping[str, str] = {
    "base": "to run prep",
    "train": "to train and export",
    "dev": "to work on packtrain",
    "docs": "to build this site",
}
ALLOWED = {
    *("0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC"),
    *("MIT", "MPL-2.0", "PSF-2.0", "Zlib"),
}
"""Licences under which a package may be used and passed on beside Apache-2.0, with changes and for money. Some say
BSD without the number of its clauses."""

_SPELT = {
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "apache software license 2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd license": "BSD",
    "bsd": "BSD",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}
"""How packages without an SPDX expression spell their licence."""
_IN_A_FILE: Mapping[str, str] = {"fastokens": "Apache-2.0"}
"""Packages whose metadata names no licence, and what the licence file in them is."""


@dataclass(frozen=True)
class Row:
    """One package."""

    name: str
    version: str
    licence: str
    """An SPDX expression; empty where the package says nothing that is understood."""
    group: str
    asked_by: str
    """The package that needs it, or the group itself."""

    def line(self) -> str:
        why = GROUPS[self.group] if self.asked_by == self.group else f"{GROUPS[self.group]}, for {self.asked_by}"
        return f"| {self.name} | {self.version} | {self.licence} | {why} |"


def rows() -> list[Row]:
    """Every package that a group needs, in the first group that needs it; sorted by name.

    Raises:
        PackageNotFoundError: naming one that is not installed here.
    """
    found: dict[str, Row] = {}
    for group in GROUPS:
        for wanted, asked_by in needed(group):
            name = normal(wanted)
            if name not in found:
                package = distribution(wanted)
                version = package.version.partition("+")[0]
                found[name] = Row(name, version, licence(package.metadata), group, asked_by)
    return [found[name] for name in sorted(found)]


def needed(group: str) -> Iterator[tuple[str, str]]:
    """Names of the packages that a group of pyproject.toml needs here, each with the one that asks for it."""
    project = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["dependencies"] if group == "base" else project["optional-dependencies"][group]
    open_ = [(Requirement(line), "", group) for line in lines]
    seen: set[tuple[str, str]] = set()
    while open_:
        wanted, extra, asked_by = open_.pop(0)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        yield wanted.name, asked_by
        below = [one for one in ("", *wanted.extras) if (normal(wanted.name), one) not in seen]
        seen |= {(normal(wanted.name), one) for one in below}
        requires = distribution(wanted.name).requires or ()
        open_ += [(Requirement(line), one, normal(wanted.name)) for one in below for line in requires]


def licence(metadata: PackageMetadata) -> str:
    """A package's licence as an SPDX expression, or nothing."""
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classified: list[str] = [
        one.rpartition(" :: ")[2] for one in metadata.get_all("Classifier", []) if one.startswith("License")
    ]
    written: list[str] = [metadata["License"]] if "License" in metadata else []
    for said in (*written, *classified):
        if said in ALLOWED or re.fullmatch(r"[\w.-]+( (AND|OR) [\w.-]+)+", said):
            return said
        if spelt := _SPELT.get(said.lower()):
            return spelt
    return _IN_A_FILE.get(normal(str(metadata["Name"])), "")


def forbidden(expression: str) -> set[str]:
    """What of an SPDX expression is not allowed here; the whole where it says nothing."""
    plain = re.sub(r" WITH [\w.-]+", "", expression)
    return {part for part in re.split(r"[ ()]+|\bAND\b|\bOR\b", plain) if part} - ALLOWED if plain else {"unknown"}


def page(found: list[Row]) -> str:
    """docs/licences.md."""
    pinned = pins()
    apart = sorted(pinned.keys() - {row.name for row in found})
    return "\n".join(
        [
            "# Licences",
            "",
            "packtrain is under the Apache License 2.0. `make licences` writes this page from what the installed",
            f"packages say of themselves: those of `{CONSTRAINTS.name}`, on Linux. A test fails where one has a",
            "licence that is neither permissive nor the weak MPL, or names none.",
            "",
            "The wheel of packtrain holds none of them. The CUDA builds of torch bring NVIDIA's libraries under",
            "NVIDIA's terms, and the extras `gpu`, `wandb`, `swanlab`, `mlflow`, `trackio`, `tensorboard`,",
            "`modelscope` and `openmind` are installed where you ask for them, under their own.",
            "",
            "| package | version | licence | why it is here |",
            "|---|---|---|---|",
            *(row.line() for row in found),
            "",
            f"Pinned for other Pythons or platforms, or to build the above: {', '.join(apart)}.",
            "",
        ]
    )


if __name__ == "__main__":
    try:
        PAGE.write_text(page(rows()), encoding="utf-8")
    except PackageNotFoundError as error:
        sys.exit(f"{error} is not installed here; run `make licences`, which installs it")
