"""Everything that `make bench-checks` measures: what looking for damage takes of each stage.

    python -m bench.checks [--json] [--only NAME]

--json also writes bench/results/checks.json and the table of bench/results/checks.md. Some three minutes, 5 GB of disk
below TMPDIR.
"""

from bench import parts

PARTS = {"checking": "digests in every stage"}
OURS = ("numpy", "pyarrow", "safetensors", "torch", "transformers")
PEERS = ()

if __name__ == "__main__":
    parts.command("checks", PARTS, about=__doc__, ours=OURS, peers=PEERS)
