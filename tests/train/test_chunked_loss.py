"""The loss in stretches of targets: that of all logits, without all logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.shards import ShardReader
from tests.train.conftest import SETTINGS
from tests.train.ranks import run_on_ranks
from tests.train.reference import Trained
from tests.train.runs import LLAMA, pipeline, share, write_prep
from tests.train.test_run import assert_trained_as_alone
from train.attention import PackedAttention
from train.batches import empty, micro_batch
from train.chunked_loss import ChunkedHead, chunked_cross_entropy
from train.loss import loss_sum
from train.model import build_model
from train.run import run

CPU = torch.device("cpu")
WIDTH, VOCABULARY = 16, 96
FINISHES: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda logits: logits,
    "scaled": lambda logits: logits * 0.3,
    "capped": lambda logits: torch.tanh(logits / 5) * 5,
}
SMALL: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}


class Sizes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the shape of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, Tensor):
                self.shapes.add(tuple(tensor.shape))
        return made


def inputs(targets: int, dtype: torch.dtype, *, bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(targets)
    hidden = torch.randn(targets, WIDTH, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype).requires_grad_()
    added = torch.randn(VOCABULARY, generator=generator).to(dtype).requires_grad_() if bias else None
    return hidden, weight, added, torch.randint(0, VOCABULARY, (targets,), generator=generator)


@pytest.mark.parametrize("finish", FINISHES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("targets", [0, 1, 7, 8, 21])
def test_loss_and_gradients_are_those_of_all_logits(targets: int, bias: bool, finish: str) -> None:
    hidden, weight, added, wanted = inputs(targets, torch.float32, bias=bias)
    trained = [tensor for tensor in (hidden, weight, added) if tensor is not None]
    whole = F.cross_entropy(FINISHES[finish](F.linear(hidden, weight, added)), wanted, reduction="sum")
    found = chunked_cross_entropy(hidden, weight, added, wanted, finish=FINISHES[finish], chunk=8)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    expected = torch.autograd.grad(whole * 0.7, trained)
    gradients = torch.autograd.grad(found * 0.7, trained)
    for gradient, right in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_rounds_once(dtype: torch.dtype) -> None:
    hidden, weight, _, wanted = inputs(21, dtype, bias=False)
    whole = F.cross_entropy(F.linear(hidden, weight).float(), wanted, reduction="sum")
    found = chunked_cross_entropy(hidden, weight, None, wanted, chunk=8)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=0)
    step = torch.finfo(dtype).eps  # logits' gradients are rounded before they are summed, either way
    for gradient, right in zip(
        torch.autograd.grad(found, [hidden, weight]), torch.autograd.grad(whole, [hidden, weight]), strict=True
    ):
        assert gradient.dtype == dtype
        torch.testing.assert_close(gradient, right, rtol=2 * step, atol=2 * step)


def test_frozen_weight_gets_no_gradient() -> None:
    hidden, weight, _, wanted = inputs(9, torch.float32, bias=False)
    loss = chunked_cross_entropy(hidden, weight.detach(), None, wanted, chunk=4)
    (gradient,) = torch.autograd.grad(loss, [hidden])
    (right,) = torch.autograd.grad(F.cross_entropy(hidden @ weight.T, wanted, reduction="sum"), [hidden])
    torch.testing.assert_close(gradient, right, rtol=1e-5, atol=1e-5)


def test_logits_of_all_targets_are_never_made() -> None:
    hidden, weight, _, wanted = inputs(40, torch.float32, bias=False)
    with Sizes() as made:
        chunked_cross_entropy(hidden, weight, None, wanted, finish=FINISHES["capped"], chunk=8).backward()  # type: ignore[no-untyped-call]
    assert (8, VOCABULARY) in made.shapes
    assert not [
        shape for shape in made.shapes if shape[-1:] == (VOCABULARY,) and shape[:-1] not in ((), (8,), (WIDTH,))
    ]


@pytest.mark.parametrize(
    ("model_type", "own"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 8, "layer_types": ["full_attention"]}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 4.0}),
        ("phi", {}),  # its output layer has a bias
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 4}),
        ("gpt_neox", {}),
        ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 1}),
        ("qwen3", {"head_dim": 8}),
        ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    ],
    ids=str,
)
def test_models_finish_their_logits_as_ever(model_type: str, own: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SMALL, **own})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tokens = torch.arange(12)[None]
    rows, targets = torch.tensor([2, 3, 9]), torch.tensor([5, 7, 11])
    whole = F.cross_entropy(model(input_ids=tokens, use_cache=False).logits[0, rows], targets, reduction="sum")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad(whole, parameters, allow_unused=True)
    head = ChunkedHead(model)
    found = head.loss_sum(lambda: model(input_ids=tokens, use_cache=False), targets, rows)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
    for gradient, right in zip(torch.autograd.grad(found, parameters, allow_unused=True), expected, strict=True):
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-5)
    assert model(input_ids=tokens, use_cache=False).logits.shape == (1, 12, 48)  # where no loss is asked for


def test_model_that_prepares_the_input_of_its_output_layer_is_refused() -> None:
    config = AutoConfig.for_model("minicpm3", **{**SMALL, "dim_model_base": 16})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with pytest.raises(ValueError, match="it changes what its output layer is given"):
        ChunkedHead(model)
    assert "forward" not in vars(model.lm_head)


def test_micro_batch_has_the_loss_and_gradients_of_chosen_logits(tmp_path: Path) -> None:
    write_prep(tmp_path / "prep")
    attention = PackedAttention("sdpa")
    attention.register()
    for batch in (micro_batch(ShardReader(tmp_path / "prep")[0], CPU), empty(CPU)):
        found = []
        for fused in (False, True):
            model = build_model(pipeline(tmp_path), {"vocab_size": 48, "max_token_id": 47})
            head = ChunkedHead(model) if fused else None
            with attention.over(batch.segments):
                loss = loss_sum(model, batch, keeps_logits=True, head=head)
                found.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", [{"fused_loss": False}, {"fused_loss": True}], ids=str)
def test_run_trains_as_documents_alone(how: dict[str, Any], tmp_path: Path, shards: Path, alone: Trained) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **SETTINGS, **how))
    assert_trained_as_alone(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_stretches_change_no_number_under_zero(
    stage: int, tied: bool, tmp_path: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.train.runs import state

    whole, parts = share(shards, tmp_path / "whole"), share(shards, tmp_path / "parts")
    how = {**SETTINGS, "model": {"scratch": {**LLAMA, "tie_word_embeddings": tied}}, "deepspeed": {"zero_stage": stage}}
    assert run_on_ranks(2, run, pipeline(whole, **how, fused_loss=False)) == [0, 0]
    assert run_on_ranks(2, run_in_small_stretches, pipeline(parts, **how)) == [0, 0]
    for name, values in state(whole).items():
        torch.testing.assert_close(torch.from_numpy(state(parts)[name]), torch.from_numpy(values), rtol=2e-4, atol=2e-6)


def run_in_small_stretches(pipeline: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.chunked_loss.ROWS_ON_A_CPU", 5)
        run(pipeline)
