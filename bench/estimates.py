"""What `packtrain plan` says of memory beside every tensor that lives during a real step, on CPU ranks over gloo.

    python -m bench.estimates [--json]

Each case trains a small model for a step and counts during the next: what lasts from step to step by its owner, and
what lives besides. The figures are the estimate, beside what was measured.
"""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.live_tensors import LiveTensors
from bench.small import LLAMA, LR, batch_of, pack_of, pipeline_in
from bench.table import Figure, command
from pipelines.layouts import sizes_of
from pipelines.memory import layout_of, memory
from train.engine import Engine
from train.launch import prepare_environment, process_group
from train.launchers import Ranks, launch_of
from train.model import build_model
from train.sequence_parallel import SequenceParallelAttention, init_sequence_parallel

LENGTHS = (300, 212, 400, 112)
"""Documents of each pack."""
MODEL = {"hidden_size": 128, "intermediate_size": 352, "vocab_size": 1000, "num_key_value_heads": 2}
STATE = ("parameters", "float32 master weights", "optimizer state")
SMALL = 256
"""Bytes in which Adam counts its steps."""
ZERO1, ZERO2, ZERO3 = ({"deepspeed": {"zero_stage": stage}} for stage in (1, 2, 3))
QLORA = {"scratch": {**LLAMA, **MODEL, "intermediate_size": 384}, "lora": {"r": 8}, "quantization": {}}
FULL = {"activation_checkpointing": "full"}
SELECTIVE = {"activation_checkpointing": "selective"}


@dataclasses.dataclass(frozen=True)
class Case:
    """One layout."""

    ranks: int
    train: dict[str, Any]
    times: int = 1
    """How often LENGTHS come in a pack."""
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Keys of [model], beside the small one."""


CASES = {
    "ZeRO 0, fp32": Case(1, {"precision": "fp32"}),
    "ZeRO 0, fp32, full": Case(1, {"precision": "fp32", **FULL}),
    "ZeRO 2, bf16": Case(1, {"precision": "bf16", **ZERO2}),
    "ZeRO 2, bf16, selective": Case(1, {"precision": "bf16", **ZERO2, **SELECTIVE}),
    "ZeRO 2, bf16, full": Case(1, {"precision": "bf16", **ZERO2, **FULL}),
    "ZeRO 2, bf16, 4 times as long": Case(1, {"precision": "bf16", **ZERO2}, times=4),
    "ZeRO 2, bf16, 4 times as long, tiled MLP": Case(1, {"precision": "bf16", **ZERO2, "tiled_mlp": True}, times=4),
    "ZeRO 2, bf16, whole logits": Case(1, {"precision": "bf16", **ZERO2, "fused_loss": False}),
    "ZeRO 2, bf16, LoRA": Case(1, {"precision": "bf16", **ZERO2}, model={"lora": {"r": 8}}),
    "ZeRO 2, bf16, LoRA, full": Case(1, {"precision": "bf16", **ZERO2, **FULL}, model={"lora": {"r": 8}}),
    "ZeRO 2, bf16, 2 ranks": Case(2, {"precision": "bf16", **ZERO2}),
    "ZeRO 2, bf16, 2 ranks, full": Case(2, {"precision": "bf16", **ZERO2, **FULL}),
    "ZeRO 2, bf16, 2 ranks to a pack": Case(
        2, {"precision": "bf16", **ZERO2, "parallel": {"sequence_parallel_size": 2}}
    ),
    "ZeRO 3, bf16, 2 ranks": Case(2, {"precision": "bf16", **ZERO3}),
    "ZeRO 3, bf16, 2 ranks, full": Case(2, {"precision": "bf16", **ZERO3, **FULL}),
    "ZeRO 3, fp32, 2 ranks": Case(2, {"precision": "fp32", **ZERO3}),
    "ZeRO 0, fp32, 2 ranks": Case(2, {"precision": "fp32"}),
    "ZeRO 1, fp32": Case(1, {"precision": "fp32", **ZERO1}),
    "ZeRO 1, fp32, 2 ranks": Case(2, {"precision": "fp32", **ZERO1}),
    "ZeRO 2, fp32, 2 ranks": Case(2, {"precision": "fp32", **ZERO2}),
    "ZeRO 2, bf16, full, 8 times as long": Case(1, {"precision": "bf16", **ZERO2, **FULL}, times=8),
    "ZeRO 2, bf16, QLoRA": Case(1, {"precision": "bf16", **ZERO2}, model=QLORA),
    "ZeRO 2, bf16, QLoRA, full": Case(1, {"precision": "bf16", **ZERO2, **FULL}, model=QLORA),
    "ZeRO 2, bf16, QLoRA, 2 ranks": Case(2, {"precision": "bf16", **ZERO2}, model=QLORA),
    "ZeRO 3, bf16": Case(1, {"precision": "bf16", **ZERO3}),
    "ZeRO 3, bf16, LoRA, 2 ranks": Case(2, {"precision": "bf16", **ZERO3}, model={"lora": {"r": 8}}),
    "ZeRO 3, bf16, 2 ranks, selective": Case(2, {"precision": "bf16", **ZERO3, **SELECTIVE}),
    "ZeRO 3, bf16, 2 ranks to a pack, full, 8 times as long": Case(
        2, {"precision": "bf16", **ZERO3, **FULL, "parallel": {"sequence_parallel_size": 2}}, times=8
    ),
}


def figures(folder: Path) -> Iterator[Figure]:
    """The peak of every case, and how many of the parts that last are not exact."""
    parts, wrong = 0, 0
    measured = {ranks: measure(ranks, folder) for ranks in sorted({case.ranks for case in CASES.values()})}
    for name, case in CASES.items():
        said, found = estimate(case, folder), measured[case.ranks][name]
        parts += len(STATE)
        wrong += sum(abs(said.get(part, 0) - found.get(part, 0)) > SMALL for part in STATE)
        yield Figure(name, said["total"] / 2**20, "MB", "measured", found["total"] / 2**20)
    yield Figure("parameters, masters and optimizer states that differ", wrong, f"of {parts}", target="<= 0")


def estimate(case: Case, folder: Path) -> dict[str, int]:
    """Bytes by part, and in all, as `packtrain plan` has them."""
    pipeline = pipeline_of(case, folder)
    found = memory(sizes_of(pipeline), layout_of(pipeline, case.ranks, on_gpu=False))
    return {**found.parts, "total": found.total}


def measure(ranks: int, folder: Path) -> dict[str, dict[str, int]]:
    """The same, of rank 0, from real steps: of every case with so many ranks."""
    result = folder / "measured.json"
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.estimates", "--rank-of", str(ranks), str(folder)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(ranks)
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError(f"ranks ended with {codes}")
    found: dict[str, dict[str, int]] = json.loads(result.read_bytes())
    return found


def pipeline_of(case: Case, folder: Path) -> Any:
    """The case as a pipeline."""
    pipeline = pipeline_in(folder, **{"global_batch_size": 2 * case.ranks, **case.train})
    table = {"scratch": {**LLAMA, **MODEL}, **case.model}
    pack = pipeline.prep.pack.model_copy(update={"capacity": case.times * sum(LENGTHS)})
    return pipeline.model_copy(
        update={
            "model": type(pipeline.model).model_validate(table),
            "prep": pipeline.prep.model_copy(update={"pack": pack}),
        }
    )


def rank(ranks: int, folder: Path) -> None:
    """Take the steps of every case with so many ranks as one of them, and write down what lived."""
    launched = launch_of(os.environ)
    me = launched if isinstance(launched, Ranks) else Ranks.alone()
    prepare_environment(me)
    torch.set_num_threads(1)
    with process_group(me):
        found = {name: _step(case, folder) for name, case in CASES.items() if case.ranks == ranks}
        if dist.get_rank() == 0:
            (folder / "measured.json").write_text(json.dumps(found))


def _step(case: Case, folder: Path) -> dict[str, int]:
    """Step twice, and say what lived during the second."""
    pipeline = pipeline_of(case, folder)
    parallel = init_sequence_parallel(pipeline.train.parallel.sequence_parallel_size)
    attention = SequenceParallelAttention(parallel, "sdpa")
    attention.register()
    vocabulary = MODEL["vocab_size"]
    model = build_model(pipeline, {"vocab_size": vocabulary, "max_token_id": vocabulary - 1})
    engine = Engine(model, pipeline.train, pipeline, attention)
    del model
    packs = [pack_of(case.times * LENGTHS, seed=seed) for seed in range(engine.accumulation)]
    packs = [dataclasses.replace(pack, tokens=pack.tokens % vocabulary) for pack in packs]
    batch = batch_of(packs, part=parallel.rank, parts=parallel.size)
    engine.step(batch, LR)
    lasting = _lasting(engine)
    with LiveTensors() as live:
        engine.step(batch, LR)
    lasting["total"] = sum(lasting.values()) + live.peak
    return lasting


def _lasting(engine: Engine) -> dict[str, int]:
    """Bytes that a rank holds between two steps, by owner."""
    zero, stage = engine.deepspeed.optimizer, engine.zero_stage
    parameters: list[Any] = list(engine.model.parameters())
    optimizer = engine.optimizer
    stepped = (
        zero.fp32_partitioned_groups_flat
        if stage == 3
        else [tensor for group in optimizer.param_groups for tensor in group["params"]]
    )
    state = [value for tensor in stepped for value in optimizer.state[tensor].values() if torch.is_tensor(value)]
    found = {
        "parameters": _bytes(parameter.ds_tensor if stage == 3 else parameter for parameter in parameters),
        "optimizer state": _bytes(state),
    }
    if stage in (1, 2) or (stage == 3 and engine.precision != "fp32"):
        found["float32 master weights"] = _bytes(stepped)
    if stage == 3:
        found["gathered parameters"] = _bytes(parameters)
        found["gradients"] = _bytes([zero.grad_partitions_flat_buffer])
        buffers = [bucket.buffer for bucket in zero.ipg_buckets.values()]
        found["communication buckets"] = _bytes(buffer for buffer in buffers if torch.is_tensor(buffer))
    return found


def _bytes(tensors: Iterable[Any]) -> int:
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank-of"]:
        rank(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        command(figures, __doc__)
