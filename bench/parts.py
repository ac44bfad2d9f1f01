"""What each `make bench-...` does: measure its parts one after the other, show one table, and write it if asked to."""

import argparse
import importlib
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bench.table import Figure, show
from bench.written import machine, versions, write_results

log = logging.getLogger(__name__)


def command(
    name: str, parts: Mapping[str, str], *, about: str | None, ours: Sequence[str], peers: Sequence[str]
) -> None:
    """Measure parts and print their table; with --json, write it as bench/results/NAME.json and NAME.md.

    Args:
        parts: file beside this one, each with `figures(folder)`, to what it measures, in the order of the table.
        ours, peers: packages whose versions belong to the figures.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="write bench/results")
    parser.add_argument("--only", choices=parts, nargs="+", default=list(parts), help="parts to measure")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found: list[Figure] = []
    for part in options.only:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
            found += measured(part, Path(folder))
        log.info("measured %s in %.0f s", parts[part], time.perf_counter() - began)
    show(found, as_json=False)
    if options.json:
        results = Path(__file__).parent / "results"
        write_results(results, name, found, machine=machine(), versions=versions(ours, peers))


def measured(part: str, folder: Path) -> Iterator[Figure]:
    """The figures of one part; one that fails says so, and the others are still measured."""
    try:
        yield from importlib.import_module(f"bench.{part}").figures(folder)
    except Exception as error:
        log.exception("bench.%s failed", part)
        yield Figure(f"bench.{part}", float("nan"), "", f"failed: {type(error).__name__}: {error}"[:100])
