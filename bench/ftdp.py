"""Reading ftdp: lines of text to tokens, beside JSON libraries and the bytes' own limit.

python -m bench.ftdp [--json]
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from bench.packing import computing, sft_lengths
from bench.peer import measure
from bench.table import Figure, command
from prep.formats import ftdp

VOCABULARY = 92_544
"""InternLM2's, whose trainers read these files."""

READERS = (
    ("lists", "json.loads, lists of ids and labels", ">= 15 x"),
    ("numpy", "json.loads, arrays", ""),
    ("pysimdjson", "pysimdjson, arrays", ""),
)


def main() -> None:
    command(figures, __doc__)


def figures(folder: Path, *, megabytes: int = 200) -> Iterator[Figure]:
    """All figures of this file.

    Args:
        folder: empty.
        megabytes: of the file read.
    """
    for name, separator in (("as json.dumps writes it", ", "), ("without spaces", ",")):
        path = folder / f"{len(separator)}.bin"
        write(path, megabytes=megabytes, separator=separator)
        content = path.read_bytes()
        ours = len(content) / 1e6 / computing(partial(_read, path))
        limit = len(content) / 1e6 / computing(partial(bytes.count, content, b","))
        what = f"read ftdp {name}"
        yield Figure(what, ours, "MB/s", "bytes.count of the commas", limit, ">= 900")
        for way, library, target in READERS:
            peer = measure("json_reading.py", way, path, 20)
            if isinstance(peer, str):
                yield Figure(what, ours, "MB/s", f"{library}, {peer}", target=target)
            else:
                yield Figure(what, ours, "MB/s", library, peer["megabytes_a_second"], target)
        path.unlink()


def write(path: Path, *, megabytes: int, separator: str = ", ", vocabulary: int = VOCABULARY) -> int:
    """An ftdp file with samples of the lengths that fine-tuning has, a third of each without loss; how many it has."""
    random = np.random.default_rng(0)
    lengths = sft_lengths(megabytes * 1_000_000 // 7 // 300)
    rows: list[tuple[int, int]] = []
    with path.open("wb") as file:
        for length in lengths.tolist():
            ids = random.integers(5, vocabulary, length)
            ids[: length // 3] *= -1
            rows.append((file.tell(), length))
            file.write(json.dumps({"tokens": ids.tolist()}, separators=(separator, ": ")).encode() + b"\n")
            if file.tell() >= megabytes * 1_000_000:
                break
    with path.with_name(f"{path.name}.meta").open("wb") as file:
        np.save(file, np.array(rows))
    return len(rows)


def _read(path: Path) -> None:
    for begin, end in ftdp.chunks(path):
        assert ftdp.all_samples(path, begin, end, vocab_size=VOCABULARY) is not None


if __name__ == "__main__":
    main()
