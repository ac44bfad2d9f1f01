"""Everything that `make bench-train` measures: one table, each figure beside a peer or a limit of the same run.

    python -m bench.train [--json] [--only NAME]

--json also writes bench/results/train.json and the table of bench/results/train.md. Some five minutes on
two cores.
"""

from bench import parts

PARTS = {
    "stepping": "a step beside a bare loop of PyTorch",
    "packed": "packs beside samples one by one and padded",
    "masks": "documents beside a mask over the pack",
    "trainers": "trainers of others",
    "starting": "from the command to the first step",
}
OURS = ("deepspeed", "flash-attn", "numpy", "pyarrow", "torch", "transformers")
PEERS = ("accelerate", "torch", "transformers", "trl")

if __name__ == "__main__":
    parts.command("train", PARTS, about=__doc__, ours=OURS, peers=PEERS)
