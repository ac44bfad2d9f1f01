"""What GPUs can do at most and how much they hold, by name, and what a training step asks of one."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from pipelines.errors import ConfigError
from pipelines.memory import GIB
from pipelines.model_sizes import ModelSizes


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    peak_flops: float
    """Dense bfloat16 operations a second, summed in float32, as its maker states them."""
    memory: int
    """Bytes."""


GPUS = {
    name: Gpu(name, peak * 1e12, int(memory_gb * GIB))
    for name, peak, memory_gb in (
        ("B200", 2250, 179.0),
        ("H200", 989, 140.4),
        ("H100", 989, 79.6),
        ("H800", 989, 79.6),
        ("H20", 148, 95.6),
        ("A100", 312, 80.0),
        ("A100-40GB", 312, 40.0),
        ("A800", 312, 80.0),
        ("L40S", 362, 45.0),
        ("L20", 119, 45.0),
        ("A10", 125, 22.5),
        ("RTX4090", 165, 24.0),
        ("MI300X", 1307, 192.0),
    )
}
"""Peaks as the makers' data sheets state them without sparsity; memory as the driver reports it."""


def gpu(name: str) -> Gpu:
    """A GPU of the table.

    Raises:
        ConfigError: naming those that are in it.
    """
    found = {key.lower(): value for key, value in GPUS.items()}.get(name.lower().replace(" ", ""))
    if found is None:
        raise ConfigError(
            f"--gpu {name}: not in the table ({', '.join(GPUS)}); give --peak-tflops and --gpu-memory-gb instead"
        )
    return found


def visible_gpus() -> int:
    """How many GPUs a run here would see, as the driver's tool lists them; 0 without one."""
    asked = os.environ.get("CUDA_VISIBLE_DEVICES")
    if asked is not None:
        return len([device for device in asked.split(",") if device.strip() not in ("", "-1")])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    answer = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines()) if answer.returncode == 0 else 0


def training_flops(
    sizes: ModelSizes, *, tokens: float, loss_tokens: float, attended: float, trained: float | None = None
) -> float:
    """Operations of forward and backward passes, recomputation not counted.

    A weight takes 2 operations a token going forward, 2 for the gradient of its input and 2 for its own, which a frozen
    one does without (arXiv 2001.08361, section 2.1). The output layer serves targets alone. In attention a causal
    document of n tokens has n^2 / 2 pairs, each multiplied twice.

    Args:
        attended: sum of squared document lengths.
        trained: elements of an adapter, below which nothing is trained; None where everything is.
    """
    head = sizes.vocabulary * sizes.hidden
    body = sizes.multiplied - head
    each = 6.0 if trained is None else 4.0
    weights = each * (body * tokens + head * loss_tokens) + 6.0 * (trained or 0) * tokens
    return weights + 6.0 * sizes.attention_width * attended
