# mypy: ignore-errors
"""ftdp lines read by JSON libraries, ids and labels: megabytes a second of one way, as JSON.

python json_reading.py lists|numpy|pysimdjson FILE.bin MEGABYTES
"""

import json
import sys
import time
from pathlib import Path

import numpy as np


def with_lists(lines):
    """As the trainers do that these files are for."""
    for line in lines:
        tokens = json.loads(line)["tokens"]
        [abs(token) for token in tokens], [token if token > 0 else -100 for token in tokens]


def with_numpy(lines):
    for line in lines:
        labelled(np.array(json.loads(line)["tokens"], np.int64))


def with_pysimdjson(lines):
    import simdjson

    parser = simdjson.Parser()
    for line in lines:
        labelled(np.frombuffer(parser.parse(line)["tokens"].as_buffer(of_type="i"), np.int64))


def labelled(tokens):
    return np.abs(tokens), np.where(tokens > 0, tokens, -100)


def main():
    lines = []
    with Path(sys.argv[2]).open("rb") as file:
        while file.tell() < int(sys.argv[3]) * 1_000_000 and (line := file.readline()):
            lines.append(line)
    read = {"lists": with_lists, "numpy": with_numpy, "pysimdjson": with_pysimdjson}[sys.argv[1]]
    read(lines[:100])
    took = []
    for _ in range(3):
        began = time.process_time()
        read(lines)
        took.append(time.process_time() - began)
    print(json.dumps({"megabytes_a_second": sum(map(len, lines)) / 1e6 / min(took)}))


if __name__ == "__main__":
    main()
