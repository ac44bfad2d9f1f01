"""A map for tests that lose a node of a Ray cluster."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def stays_on_the_victim(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record; on the node whose id is in the record's file, only a note that it is at work there, for ever."""
    victim = Path(record["victim"])
    if "ray" in sys.modules and victim.exists():
        import ray

        if ray.get_runtime_context().get_node_id() == victim.read_text():
            victim.with_suffix(".works").touch()
            time.sleep(600)
    return {"messages": record["messages"]}
