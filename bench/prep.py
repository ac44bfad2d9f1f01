"""Everything that `make bench-prep` measures: one table, each figure beside a peer or a limit of the same run.

    python -m bench.prep [--json] [--only NAME]

--json also writes bench/results/prep.json and the table of bench/results/prep.md. About ten minutes on two cores,
8 GB of disk below TMPDIR.
"""

from bench import parts

PARTS = {
    "packing": "planning, writing and reading packs",
    "order": "ordering and mixing",
    "ftdp": "reading ftdp",
    "tokenize": "tokenizing",
    "against": "packers and readers of others",
    "whole": "the whole stage",
}
OURS = ("fastokens", "numba", "numpy", "orjson", "pyarrow", "tokenizers")
PEERS = (
    "ai2-olmo-core",
    "axolotl",
    "datasets",
    "llamafactory",
    "megatron-core",
    "pysimdjson",
    "tiktoken",
    "tokenizers",
    "trl",
)

if __name__ == "__main__":
    parts.command("prep", PARTS, about=__doc__, ours=OURS, peers=PEERS)
