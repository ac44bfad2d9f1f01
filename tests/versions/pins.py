"""The pinned packages: constraints.txt has every version, hashes*.txt the files that are the same for every machine.

`make pins` writes the hashes anew when constraints.txt changed. A wheel for any Python and platform is one file, and so
is a source archive; a compiled wheel is another on each machine, and torch comes from the index that a machine
has chosen for it, so these are held to their version alone.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "constraints.txt"
HASHED: Mapping[str, str] = {"hashes.txt": ".[train,dev]", "hashes-docs.txt": ".[docs]"}
"""Files of hashes, and what is installed after each; none has a package of one before it."""
APART = ROOT / "tests" / "export" / "transformers-4.56.txt"
"""The older Transformers that tests load exports with."""

_PIN = re.compile(r"([\w.-]+)==([\w.+!]+)(?: *\\)?$")
_SAME_EVERYWHERE = re.compile(r"-(py2\.)?py3-none-any\.whl$|\.(tar\.gz|zip)$")


def pins(path: Path = CONSTRAINTS) -> dict[str, str]:
    """Versions by name, of a file of pins with or without hashes.

    Raises:
        ValueError: for a line that is neither a pin nor a hash nor a comment.
    """
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith(("#", "--hash=sha256:")):
            continue
        match = _PIN.match(text)
        if match is None:
            raise ValueError(f"{path}:{number}: expected name==version; pin the package")
        found[normal(match[1])] = match[2]
    return found


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def write() -> None:
    """Ask pip which files it would install, and write down the hashes of those that every machine would get."""
    before: set[str] = set()
    for name, wanted in HASHED.items():
        files = dict(_same_everywhere(_would_install(wanted)))
        lines = [f"{pin} --hash=sha256:{digest}" for pin, digest in sorted(files.items()) if pin not in before]
        text = f"# Installed before {wanted}; written by `make pins`, which says why not every package is here.\n"
        (ROOT / name).write_text(text + "".join(f"{line}\n" for line in lines), encoding="utf-8")
        before |= files.keys()


def _would_install(wanted: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    command += ["--report", "-", "--constraint", str(CONSTRAINTS), "--editable", wanted]
    answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    installed: list[dict[str, Any]] = json.loads(answer.stdout)["install"]
    return installed


def _same_everywhere(installed: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for one in installed:
        archive = one["download_info"].get("archive_info")
        if archive and _SAME_EVERYWHERE.search(one["download_info"]["url"]):
            yield f"{normal(one['metadata']['name'])}=={one['metadata']['version']}", archive["hashes"]["sha256"]


if __name__ == "__main__":
    write()
