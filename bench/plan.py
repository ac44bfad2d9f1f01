"""Everything that `make bench-plan` measures: what `packtrain plan` says beside what happens.

    python -m bench.plan [--json]

--json also writes bench/results/plan.json and the table of bench/results/plan.md. Some five minutes on two cores.
"""

from bench import parts

PARTS = {"estimates": "memory of a step, by estimate and really"}
OURS = ("deepspeed", "peft", "torch", "transformers")

if __name__ == "__main__":
    parts.command("plan", PARTS, about=__doc__, ours=OURS, peers=())
