"""Ranks that share a sequence against each document alone: how far logits, loss and gradients are apart."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from tests.train.ranks import run_on_ranks
from tests.train.sequence_parallel.architectures import VOCABULARY

LENGTHS = [9, 1, 13, 7, 11]
"""Tokens of the documents of a pack: 41, which no number of ranks divides, with borders in all places."""
TOLERANCE = 1e-5
"""float32 keeps 7 digits, and the two sum in another order."""


@dataclass(frozen=True)
class Case:
    model_type: str
    keys: dict[str, Any]
    size: int
    """Ranks that share a sequence."""


@dataclass(frozen=True)
class Difference:
    """Relative differences, the largest of any document and parameter."""

    model_type: str
    size: int
    logits: float
    loss: float
    gradients: float

    @property
    def largest(self) -> float:
        return max(self.logits, self.loss, self.gradients)


def differences(cases: Sequence[Case], ranks: int, folder: Path) -> list[Difference]:
    """Compare every case on one group of gloo ranks."""
    found = folder / "differences.json"
    assert run_on_ranks(ranks, _compare_all, list(cases), found, timeout_s=600) == [0] * ranks
    return [Difference(**each) for each in json.loads(found.read_text())]


def _compare_all(cases: Sequence[Case], found: Path) -> None:
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    dist.init_process_group("gloo")
    results = [asdict(_compare(case)) for case in cases]
    if dist.get_rank() == 0:
        found.write_text(json.dumps(results))
    dist.destroy_process_group()


def _compare(case: Case) -> Difference:
    from train.sequence_parallel import SequenceParallelAttention, init_sequence_parallel

    parallel = init_sequence_parallel(case.size)
    attention = SequenceParallelAttention(parallel, "sdpa")
    attention.register()
    model = _model(case)
    _audit(model, attention)
    logits, loss = _shared(model, attention, _pack(parallel.data.rank))
    gradients = {}
    for name, parameter in model.named_parameters():
        gradients[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        dist.all_reduce(gradients[name])
        gradients[name] /= dist.get_world_size()
    if dist.get_rank():
        return Difference(case.model_type, case.size, 0, 0, 0)
    right_logits, right_loss, right_gradients = _alone(model, [_pack(at) for at in range(parallel.data.size)])
    # A gradient that is zero but for rounding, as that of a bias of all keys, is measured against the others.
    floor = max(float(gradient.norm()) for gradient in right_gradients.values()) / 1000
    return Difference(
        case.model_type,
        case.size,
        logits=float((logits - right_logits[0]).abs().max() / right_logits[0].abs().max()),
        loss=float((loss - right_loss).abs() / right_loss.abs()),
        gradients=max(
            float((gradients[name] - right).norm()) / max(float(right.norm()), floor)
            for name, right in right_gradients.items()
        ),
    )


def _model(case: Case) -> Any:
    """The same weights on every rank; none of them is a value that hides a fault, such as a bias of 0."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(case.model_type, **case.keys)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="packtrain")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model.eval()  # so that nothing is random: dropout, and the noise of some routers


def _audit(model: Any, attention: Any) -> None:
    """What the trainer does before its first step, with the parts of its engine that takes."""
    from train.audit import audit

    engine: Any = SimpleNamespace(
        model=model, attention=attention, parallel=attention.parallel, device=torch.device("cpu"), precision="fp32"
    )
    pack: Any = SimpleNamespace(tokens=np.arange(VOCABULARY))
    audit(engine, pack)
    model.eval()


def _pack(seed: int) -> tuple[Tensor, Tensor]:
    """Tokens and shifted labels, int64[1, tokens] each; a prompt, and the end of each document, has no label."""
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCABULARY, (1, sum(LENGTHS)), generator=random)
    labels = F.pad(tokens, (0, 1), value=-100)[:, 1:].clone()
    labels[0, torch.tensor(LENGTHS).cumsum(0) - 1] = -100
    labels[0, :6] = -100
    return tokens, labels


def _shared(model: Any, attention: Any, pack: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits of this rank's pack and the loss of all, computed by the ranks that share it; leaves gradients."""
    from train.sequence_parallel import (
        Segments,
        gather_for_sequence_parallel,
        pad_for_sequence_parallel,
        reduce_sequence_parallel_loss,
        split_for_sequence_parallel,
    )

    parallel = attention.parallel
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    tokens, positions, labels = (
        split_for_sequence_parallel(pad_for_sequence_parallel(whole, parallel, value=value), parallel)
        for whole, value in ((pack[0], 0), (positions, 0), (pack[1], -100))
    )
    with attention.over(Segments.of(LENGTHS)):
        logits = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        loss = F.cross_entropy(logits[0], labels[0], reduction="sum")
        loss = reduce_sequence_parallel_loss(loss, int((labels >= 0).sum()))
        loss.backward()  # type: ignore[no-untyped-call]
    whole = gather_for_sequence_parallel(logits.detach(), parallel, dim=1)
    return whole[:, : sum(LENGTHS)], loss.detach()


def _alone(model: Any, packs: Sequence[tuple[Tensor, Tensor]]) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
    """Logits of each pack, the loss of all and its gradients: every document by itself, as Transformers attends."""
    model.zero_grad()
    model.set_attn_implementation("eager")
    logits = [
        torch.cat(
            [model(input_ids=document, use_cache=False).logits for document in torch.split(tokens, LENGTHS, 1)], dim=1
        )
        for tokens, _ in packs
    ]
    labels = torch.cat([labels[0] for _, labels in packs])
    loss = F.cross_entropy(torch.cat(logits, dim=1)[0], labels)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return [each.detach() for each in logits], loss.detach(), gradients
