"""Flipped bits, cut ends, swapped blocks and edits of finished artefacts: found before anything is used of them."""

import random
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.artifacts import MANIFEST, Manifest
from pipelines.errors import PacktrainError
from pipelines.provenance import verify
from tests.faults.case import Case
from tests.faults.table import Tally

Damage = Callable[[bytearray, random.Random], None]


def _flip(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def _truncate(content: bytearray, draw: random.Random) -> None:
    del content[draw.randrange(len(content)) :]


def _swap(content: bytearray, draw: random.Random) -> None:
    size = max(1, min(4096, len(content) // 3))
    one, other = sorted(draw.randrange(len(content) - size + 1) for _ in range(2))
    content[one : one + size], content[other : other + size] = content[other : other + size], content[one : one + size]


def _edit(content: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(content))
    content[at : at + 8] = draw.randbytes(min(8, len(content) - at))


def _extend(content: bytearray, draw: random.Random) -> None:
    content += draw.randbytes(draw.randint(1, 64))


DAMAGES: dict[str, Damage] = {
    "a flipped bit": _flip,
    "a truncation": _truncate,
    "two blocks swapped": _swap,
    "an edit": _edit,
    "bytes at the end": _extend,
}


def damage(case: Case, points: int, seed: int) -> list[Tally]:
    """Damage files of a finished run, one at a time, and look whether the check that every reader makes finds it."""
    checkpoint = max((case.home / "train" / "checkpoints").iterdir())
    folders = {"prep": case.home / "prep", "checkpoint": checkpoint, "export": case.home / "export"}
    tallies, draw = [], random.Random(seed)
    for kind, folder in folders.items():
        began = time.perf_counter()
        verify(folder)
        seconds = time.perf_counter() - began
        for number, (name, change) in enumerate(DAMAGES.items()):
            tally = Tally(f"{name} in {kind}", note=f"check {1000 * seconds:.0f} ms")
            for _ in range(points // len(DAMAGES) + (number < points % len(DAMAGES))):
                tally.add(one_of(folder, change, draw))
            tallies.append(tally)
    return tallies


def one_of(folder: Path, change: Damage, draw: random.Random) -> str | None:
    manifest = Manifest.read(folder)
    assert manifest is not None
    # Files are drawn evenly, however large: the manifest is as likely as the weights.
    path = folder / draw.choice([MANIFEST, *(record.path for record in manifest.files if record.size)])
    content = path.read_bytes()
    damaged = bytearray(content)
    change(damaged, draw)
    if damaged == content:
        return None
    path.write_bytes(damaged)
    try:
        found = Manifest.read(folder)
        if found is not None:
            found.verify(folder)
        if path.name == MANIFEST and found == manifest:
            return None  # white space of the manifest: it says what it said
        return f"{path}: not noticed"
    except PacktrainError:
        return None
    except Exception as error:
        return f"{path}: {type(error).__name__}: {error}"
    finally:
        path.write_bytes(content)
