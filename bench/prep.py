"""Everything that `make bench-prep` measures: one table, each figure beside a peer or a limit of the same run.

    python -m bench.prep [--json] [--only NAME]

--json also writes bench/results/prep.json and the table of bench/results/README.md. About ten minutes on two cores,
8 GB of disk below TMPDIR.
"""

import argparse
import importlib
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.table import Figure, show
from bench.written import machine, versions, write_results

log = logging.getLogger(__name__)

PARTS = {
    "packing": "planning, writing and reading packs",
    "order": "ordering and mixing",
    "ftdp": "reading ftdp",
    "tokenize": "tokenizing",
    "against": "packers and readers of others",
    "whole": "the whole stage",
}
"""Files beside this one, in the order of the table; each has `figures(folder)`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="write bench/results")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS), help="parts to measure")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found: list[Figure] = []
    for part in options.only:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="packtrain-bench-") as folder:
            found += measured(part, Path(folder))
        log.info("measured %s in %.0f s", PARTS[part], time.perf_counter() - began)
    show(found, as_json=False)
    if options.json:
        write_results(Path(__file__).parent / "results", found, machine=machine(), versions=versions())


def measured(part: str, folder: Path) -> Iterator[Figure]:
    """The figures of one part; one that fails says so, and the others are still measured."""
    try:
        yield from importlib.import_module(f"bench.{part}").figures(folder)
    except Exception as error:
        log.exception("bench.%s failed", part)
        yield Figure(f"bench.{part}", float("nan"), "", f"failed: {type(error).__name__}: {error}"[:100])


if __name__ == "__main__":
    main()
