"""Everything that `make bench-export` measures: one table, each figure beside DeepSpeed's own tool in the same run.

    python -m bench.export [--json] [--only NAME]

--json also writes bench/results/export.json and the table of bench/results/export.md. Some five minutes and 12 GB of
disk.
"""

from bench import parts

PARTS = {"exporting": "a ZeRO 3 checkpoint into what is served"}
OURS = ("deepspeed", "numba", "numpy", "safetensors", "torch", "transformers")
PEERS = ()

if __name__ == "__main__":
    parts.command("export", PARTS, about=__doc__, ours=OURS, peers=PEERS)
