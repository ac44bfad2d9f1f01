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


PEAK_FLOPS: dict[str, float | None] = {
    "MIG": None,  # a part of a GPU has its name
    "GB300": 2500e12,
    "GB200": 2500e12,
    "B300": 2250e12,
    "B200": 2250e12,
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800 PCIe": 756e12,
    "H800": 989e12,
    "H20": 148e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L20": 119.5e12,
    "L4": 121e12,
    "A40": 149.7e12,
    "A30": 165e12,
    "A10": 125e12,
    "RTX A6000": 154.8e12,
    "RTX 6000 Ada": 364.2e12,
    "RTX 5090 Laptop": None,
    "RTX 5090 D": None,
    "RTX 5090": 209.5e12,
    "RTX 4090 Laptop": None,
    "RTX 4090 D": None,
    "RTX 4090": 165.2e12,
    "RTX 3090 Ti": None,
    "RTX 3090": 71e12,
    "MI355X": 2500e12,
    "MI325X": 1307.4e12,
    "MI300X": 1307.4e12,
}
"""bfloat16 operations a second, added up in float32 and without sparsity, as makers state them, by words of a device's
name; the first that is found counts."""

MEMORY_GB = {
    "B200": 179.0,
    "H200": 140.4,
    "H100": 79.6,
    "H800": 79.6,
    "H20": 95.6,
    "A100": 80.0,
    "A800": 80.0,
    "L40S": 45.0,
    "L20": 45.0,
    "A10": 22.5,
    "RTX 4090": 24.0,
    "MI300X": 192.0,
}
"""What the driver reports, in units of 2^30 bytes, of those that can be asked for by name."""


def gpu(name: str) -> Gpu:
    """A GPU of the table.

    Raises:
        ConfigError: naming those that are in it.
    """
    by_name = {known.lower().replace(" ", ""): known for known in MEMORY_GB}
    found = by_name.get(name.lower().replace(" ", "").replace("-", ""))
    peak = None if found is None else PEAK_FLOPS[found]
    if found is None or peak is None:
        raise ConfigError(
            f"--gpu {name}: not in the table ({', '.join(MEMORY_GB)}); give --peak-tflops and --gpu-memory-gb instead"
        )
    return Gpu(found, peak, int(MEMORY_GB[found] * GIB))


def peak_of(name: str) -> float | None:
    """Operations a second of a device by its name, such as `NVIDIA H100 80GB HBM3`; None where it is not known."""
    words = f" {name.replace('-', ' ')} "
    return next((flops for part, flops in PEAK_FLOPS.items() if f" {part} " in words), None)


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
