"""`make audit`: known advisories of every pinned package, from PyPI by pip-audit, or from a file without a network.

The file is the Open Source Vulnerabilities project's export for PyPI, a zip of JSON files, or a folder of them. What
could not be looked up is never taken for clean.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli
from packaging.version import InvalidVersion, Version

from pipelines.errors import CheckError, MachineError
from tests.versions.pins import APART, CONSTRAINTS, ROOT, normal, pins

ACCEPTED = ROOT / "tests" / "versions" / "accepted.toml"
TOOL = ROOT / ".venv" / "audit" / "bin" / "pip-audit"


@dataclass(frozen=True, order=True)
class Advisory:
    """One that is known of a pinned version."""

    package: str
    version: str
    ids: tuple[str, ...]
    """Its own id first, then those that others gave it."""
    fixed: tuple[str, ...]
    """Versions that have it no more, where they are known."""

    def __str__(self) -> str:
        remedy = f"pin {' or '.join(self.fixed)}" if self.fixed else "no version is without it"
        return f"{self.package} {self.version}: {', '.join(self.ids)}; {remedy}"


def online(pinned: Mapping[str, str], tool: Path = TOOL) -> list[Advisory]:
    """What PyPI knows.

    Raises:
        MachineError: if pip-audit or its answer is not to be had, or if some package could not be looked up.
    """
    with tempfile.TemporaryDirectory() as folder:
        asked = Path(folder) / "pins.txt"
        asked.write_text("".join(f"{name}=={version}\n" for name, version in pinned.items()))
        how = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        command = [str(tool), "--requirement", str(asked), *how]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        rows = json.loads(answer.stdout)["dependencies"]
    except ValueError as error:
        said = (answer.stderr.strip().splitlines() or ["nothing"])[-1]
        raise MachineError(f"pip-audit exits {answer.returncode} and says: {said}; {_REMEDY}") from error
    unknown = [row["name"] for row in rows if "skip_reason" in row]
    if unknown or len(rows) < len(pinned):
        raise MachineError(
            f"{len(unknown) or len(pinned) - len(rows)} of {len(pinned)} packages could not be looked up "
            f"({', '.join(unknown[:3])}): the index that answers here has no advisories; {_REMEDY}"
        )
    return [
        Advisory(normal(row["name"]), row["version"], (one["id"], *one["aliases"]), tuple(one["fix_versions"]))
        for row in rows
        for one in row["vulns"]
    ]


def offline(pinned: Mapping[str, str], records: Iterator[Mapping[str, Any]]) -> list[Advisory]:
    """What records of the OSV format say of the pins. Withdrawn ones say nothing."""
    found = []
    for record in records:
        if "withdrawn" in record:
            continue
        for affected in record.get("affected", ()):
            package = affected.get("package", {})
            name = normal(package.get("name", ""))
            if package.get("ecosystem") == "PyPI" and name in pinned and _is_affected(pinned[name], affected):
                ids = (record["id"], *record.get("aliases", ()))
                found.append(Advisory(name, pinned[name], ids, _fixed(pinned[name], affected)))
    return found


def records_of(path: Path) -> Iterator[Mapping[str, Any]]:
    """The OSV records of a zip or a folder.

    Raises:
        MachineError: if it is neither, or holds none.
    """
    count = 0
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*.json")):
                count += 1
                yield json.loads(file.read_bytes())
        else:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if name.endswith(".json"):
                        count += 1
                        yield json.loads(archive.read(name))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise MachineError(f"{path}: {error}; expected a zip or a folder of OSV's JSON files for PyPI") from error
    if not count:
        raise MachineError(f"{path}: no JSON file is in it; expected a zip or a folder of OSV's files for PyPI")


def judged(found: Sequence[Advisory], accepted: Mapping[str, Mapping[str, str]]) -> tuple[list[Advisory], list[str]]:
    """The advisories that nobody accepted for that package, and the accepted ids that are not known any more."""
    ours = {id_ for one in found for id_ in one.ids if accepted.get(id_, {}).get("package") == one.package}
    return [one for one in sorted(set(found)) if ours.isdisjoint(one.ids)], sorted(accepted.keys() - ours)


def main() -> int:
    """Parse, look up, print; 0 where nothing is known, 4 where something is, 5 where it could not be looked up."""
    parser = argparse.ArgumentParser(prog="make audit", description=__doc__)
    parser.add_argument("--offline", type=Path, metavar="FILE", help="OSV's export for PyPI instead of the network")
    given = parser.parse_args()
    accepted = tomli.loads(ACCEPTED.read_text(encoding="utf-8"))
    sets = {CONSTRAINTS.name: pins(), APART.name: pins(APART)}
    found: list[Advisory] = []
    try:
        for pinned in sets.values():
            found += offline(pinned, records_of(given.offline)) if given.offline else online(pinned)
    except MachineError as error:
        print(error, file=sys.stderr)
        return MachineError.exit_code
    wrong, unused = judged(found, accepted)
    for one in wrong:
        print(one)
    for id_ in unused:
        print(f"{ACCEPTED.name}: {id_} is not known of what is pinned; remove it")
    count = sum(map(len, sets.values()))
    print(f"{count} pins in {', '.join(sets)}: {len(wrong)} advisories, {len(accepted) - len(unused)} accepted")
    return CheckError.exit_code if wrong or unused else 0


_REMEDY = (
    "run it where pip-audit reaches PyPI itself, or fetch OSV's export for PyPI (all.zip) elsewhere and "
    "`make audit ADVISORIES=all.zip`"
)


def _is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    here = Version(version)
    if any(_version(one) == here for one in affected.get("versions", ())):
        return True
    ranges = [one for one in affected.get("ranges", ()) if one.get("type") == "ECOSYSTEM"]
    return any(_is_in(here, one.get("events", ())) for one in ranges)


def _is_in(here: Version, events: Sequence[Mapping[str, str]]) -> bool:
    """Whether the last event up to a version opens a range; `last_affected` still has it."""
    inside = False
    known = [(_version(value), kind) for event in events for kind, value in event.items()]
    for at, kind in sorted(((at, kind) for at, kind in known if at is not None), key=lambda one: one[0]):
        if kind == "introduced" and here >= at:
            inside = True
        elif (kind in ("fixed", "limit") and here >= at) or (kind == "last_affected" and here > at):
            inside = False
    return inside


def _fixed(version: str, affected: Mapping[str, Any]) -> tuple[str, ...]:
    """Later versions that a range says are fixed."""
    values = [
        event["fixed"]
        for one in affected.get("ranges", ())
        if one.get("type") == "ECOSYSTEM"
        for event in one.get("events", ())
        if "fixed" in event
    ]
    later = [(at, value) for value in values if (at := _version(value)) is not None and at > Version(version)]
    return tuple(value for _, value in sorted(later, key=lambda one: one[0]))


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


if __name__ == "__main__":
    sys.exit(main())
