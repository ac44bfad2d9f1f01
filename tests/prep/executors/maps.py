"""A map for tests of what happens to processes in the middle of their work."""

import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

OBEDIENT = 'prep.source.a.map="python:tests.prep.executors.maps:obedient"'


def obedient(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's messages, after doing what it asks for.

    `note`: add this process's id to that file; `die`: be killed; `stay`: sleep, everywhere if it is true, or on the
    Ray node whose id is in the file that it names; `while`: stay as long as that file is there.
    """
    if "note" in record:
        with Path(record["note"]).open("a") as note:
            note.write(f"{os.getpid()}\n")
    if "stay" in record and (record["stay"] is True or _is_on(record["stay"])):
        time.sleep(600)
    while Path(record.get("while", "")).is_file():
        time.sleep(0.02)
    if "die" in record:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"messages": record["messages"]}


def asking(record: str, **what: object) -> str:
    """A line of JSON lines that asks for something."""
    return json.dumps({**json.loads(record), **what}) + "\n"


def noted(note: Path) -> set[int]:
    """Processes that came to a record with this note."""
    return set(map(int, note.read_text().splitlines())) if note.exists() else set()


def _is_on(node: str) -> bool:
    if "ray" not in sys.modules or not Path(node).exists():
        return False
    import ray

    if ray.get_runtime_context().get_node_id() != Path(node).read_text():
        return False
    Path(node).with_suffix(".works").touch()
    return True
