"""What a step holds in memory for each token, counted to the byte: the table of docs/training.md.

`python -m tests.train.test_activation_memory` prints it.
"""

import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.train.runs import pipeline
from train.activations import _Waiting
from train.attention import PackedAttention, Segments
from train.batches import MicroBatch
from train.chunked_loss import ChunkedHead
from train.layers import arrange_layers
from train.loss import loss_sum
from train.model import build_model

ROOT = Path(__file__).parents[2]
WIDTH, VOCABULARY, DOCUMENT = 64, 2048, 32
SHAPE: dict[str, Any] = {
    "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 224,
    "num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Llama 3's proportions, a 64th of its width."""
STRETCH = 32
FULL: dict[str, Any] = {"activation_checkpointing": "full"}
WAYS: dict[str, tuple[dict[str, Any], float, float]] = {
    "nothing of this": ({"fused_loss": False}, 193.9, 23.59),
    "`fused_loss` (the default)": ({}, 101.1, 23.59),
    '... and `activation_checkpointing = "selective"`': ({"activation_checkpointing": "selective"}, 70.8, 12.56),
    '... or `"full"`': (FULL, 35.2, 1.00),
    '`"full"` and `activation_offload = "cpu"`': ({**FULL, "activation_offload": "cpu"}, 33.2, 0.00),
    "... and `tiled_mlp`": ({**FULL, "activation_offload": "cpu", "tiled_mlp": True}, 13.6, 0.00),
}
"""Settings, and bytes a token over those of a hidden state: with 4 layers, and for each further layer."""


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that are made while it is on, as long as they live."""

    def __init__(self, apart: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in apart}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


class Elsewhere(_Waiting):
    """Its memory is the host's, which is not counted here."""

    def __init__(self, *arguments: Any) -> None:
        with _disable_current_modes():
            super().__init__(*arguments)


def peak_bytes(folder: Path, tokens: int, layers: int, **how: Any) -> int:
    """Most bytes that forward and backward pass held at a time, beside parameters."""
    trained = pipeline(folder, model={"scratch": {**SHAPE, "num_hidden_layers": layers}}, **how)
    attention = PackedAttention("sdpa")
    attention.register()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.tiled_mlp.stretch", lambda _: STRETCH)
        patch.setattr("train.chunked_loss.ROWS_ON_A_CPU", STRETCH)
        patch.setattr("train.activations._Waiting", Elsewhere)
        model: Any = build_model(trained, {"vocab_size": VOCABULARY, "max_token_id": VOCABULARY - 1})
        arrange_layers(model, trained, attention, zero_stage=0)
        assert trained.train is not None
        head = ChunkedHead(model) if trained.train.fused_loss else None
        model.train()
        batch = pack(tokens)
        with attention.over(batch.segments), LiveBytes([*model.parameters(), *model.buffers()]) as live:
            loss_sum(model, batch, keeps_logits=True, head=head).backward()  # type: ignore[no-untyped-call]
    peak: int = live.peak
    return peak


def pack(tokens: int) -> MicroBatch:
    documents = tokens // DOCUMENT
    ids = torch.arange(tokens) % VOCABULARY
    return MicroBatch(
        input_ids=ids[None],
        position_ids=torch.arange(DOCUMENT).repeat(documents)[None],
        predictors=torch.arange(tokens),
        targets=ids,
        segments=Segments.of([DOCUMENT] * documents),
        seed=0,
    )


def bytes_per_token(folder: Path, layers: int, **how: Any) -> float:
    """What one more token costs: parameters and their gradients cost the same whatever the number of tokens."""
    few, many = 1024, 2048
    return (peak_bytes(folder, many, layers, **how) - peak_bytes(folder, few, layers, **how)) / (many - few)


def measured(folder: Path, **how: Any) -> tuple[float, float]:
    """Bytes a token over those of a hidden state: with 4 layers, and for each further layer."""
    four, eight = (bytes_per_token(folder, layers, **how) / (4 * WIDTH) for layers in (4, 8))
    return round(four, 1), round((eight - four) / 4, 2)


@pytest.mark.slow
def test_tokens_cost_the_memory_that_the_documentation_says(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    for name, (how, four, more) in WAYS.items():
        assert f"| {name} | {four:.1f} | {more:.2f} |" in page
        assert measured(tmp_path, **how) == (four, more), name


if __name__ == "__main__":
    for name, (how, _, _) in WAYS.items():
        print("| {} | {:.1f} | {:.2f} |".format(name, *measured(Path(tempfile.mkdtemp()), **how)))
