"""How layers are run changes what is in memory and when, never the loss and the gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._python_dispatch import TorchDispatchMode

from pipelines.errors import ConfigError, MachineError
from pipelines.shards import ShardReader
from tests.train.runs import LLAMA, VOCABULARY, pipeline, write_prep
from tests.train.sequence_parallel.architectures import ARCHITECTURES, config_keys
from train.attention import PackedAttention
from train.batches import MicroBatch, micro_batch
from train.compiled import layer_compiler
from train.layers import arrange_layers
from train.loss import loss_sum
from train.model import build_model
from train.tiled_mlp import check_rows, tile_mlps

CPU = torch.device("cpu")
PREP = {"vocab_size": VOCABULARY, "max_token_id": VOCABULARY - 1}
LORA = {"r": 4, "lora_dropout": 0.2, "target_modules": ["q_proj", "down_proj"]}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"scratch": LLAMA},
    "lora": {"scratch": LLAMA, "lora": LORA},
    "dropout": {"scratch": {**config_keys("gpt2", ARCHITECTURES["gpt2"].keys), "attn_pdrop": 0.1, "resid_pdrop": 0.1}},
    **{
        name: {"scratch": config_keys(name, ARCHITECTURES[name].keys)}
        for name in ("gemma2", "mixtral", "deepseek_v3", "granitemoe")
    },
}
"""A plain one; an adapter; dropout everywhere; norms after the MLP and caps; experts; MLA; another name of the MLP."""
BITWISE: list[dict[str, Any]] = [
    {"activation_checkpointing": "full"},
    {"activation_checkpointing": "selective"},
    {"activation_checkpointing": "full", "activation_offload": "cpu"},
]
TILED: list[dict[str, Any]] = [
    {"tiled_mlp": True},
    {"tiled_mlp": True, "activation_checkpointing": "selective"},
    {"tiled_mlp": True, "activation_checkpointing": "full", "activation_offload": "cpu"},
]


STRETCH = 9
"""Tokens of a stretch in these tests; the packs have about 40."""


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> MicroBatch:
    folder = tmp_path_factory.mktemp("packs") / "prep"
    write_prep(folder)
    return micro_batch(ShardReader(folder)[0], CPU)


class Trainee:
    """A model whose layers run as `how` says."""

    def __init__(self, folder: Path, model: dict[str, Any], **how: Any) -> None:
        self.pipeline = pipeline(folder, model=model, **how)
        self.attention = PackedAttention("sdpa")
        self.attention.register()
        self.model = build_model(self.pipeline, PREP)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("train.tiled_mlp.stretch", lambda _: STRETCH)
            self.tiled = arrange_layers(self.model, self.pipeline, self.attention, zero_stage=0)
        self.model.train()

    def gradients(self, batch: MicroBatch, mode: Any = None) -> dict[str, Tensor]:
        """The loss of a micro-batch, and the gradient of everything that is trained."""
        torch.manual_seed(0)
        self.model.zero_grad(set_to_none=True)
        with self.attention.over(batch.segments):
            loss = loss_sum(self.model, batch, keeps_logits=True)
            loss.backward()  # type: ignore[no-untyped-call]
        trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        return {"loss": loss.detach(), **{name: weight.grad for name, weight in trained.items()}}


@pytest.mark.parametrize("name", MODELS)
def test_layers_that_compute_again_have_the_same_gradients_bit_for_bit(
    name: str, tmp_path: Path, batch: MicroBatch
) -> None:
    expected = Trainee(tmp_path, MODELS[name]).gradients(batch)
    for how in BITWISE:
        found = Trainee(tmp_path, MODELS[name], **how).gradients(batch)
        assert found.keys() == expected.keys()
        assert [key for key in found if not torch.equal(found[key], expected[key])] == [], how


@pytest.mark.parametrize("name", MODELS)
def test_stretches_of_an_mlp_have_the_gradients_of_the_whole(name: str, tmp_path: Path, batch: MicroBatch) -> None:
    whole = Trainee(tmp_path, MODELS[name])
    if name == "dropout":
        draw_in_stretches(whole.model)
    expected = whole.gradients(batch)
    for how in TILED:
        found = Trainee(tmp_path, MODELS[name], **how).gradients(batch)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6 * value.abs().max().item(), msg=key)


def draw_in_stretches(model: Any) -> None:
    """Let the MLPs draw their random numbers stretch by stretch, with autograd keeping everything."""
    for layer in model.transformer.h:
        honest = layer.mlp.forward
        layer.mlp.forward = lambda hidden, honest=honest: torch.cat([honest(p) for p in hidden.split(STRETCH, 1)], 1)


@pytest.mark.parametrize(
    ("name", "how"),
    [("gemma2", {"tiled_mlp": True}), ("lora", {"activation_checkpointing": "full", "activation_offload": "cpu"})],
    ids=str,
)
def test_compiled_layers_serve_packs_of_every_length(
    name: str, how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch._dynamo.reset()
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        # What inductor does before it writes code, so without its minute of start-up.
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr("train.compiled.BACKEND", backend)
    model = {**MODELS[name], "lora": {**LORA, "lora_dropout": 0.0}} if name == "lora" else MODELS[name]
    write_prep(tmp_path / "packs")
    packs = ShardReader(tmp_path / "packs")
    batches = [micro_batch(packs[at], CPU) for at in range(4)]
    plain = Trainee(tmp_path, model, **how)
    expected = [plain.gradients(batch) for batch in batches]
    compiled = Trainee(tmp_path, model, compile=True, **how)
    made = []
    for batch, right in zip(batches, expected, strict=True):
        found = compiled.gradients(batch)
        for key, value in right.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6 * value.abs().max().item(), msg=key)
        made.append(len(graphs))
    assert len({packs[at].tokens.size for at in range(4)}) > 2
    assert 0 < made[0] == made[-1], made


def test_selective_keeps_what_is_dear_and_full_does_not(tmp_path: Path, batch: MicroBatch) -> None:
    products = {}
    for keep in ("none", "selective", "full"):
        with Products() as found:
            Trainee(tmp_path, MODELS["llama"], activation_checkpointing=keep).gradients(batch)
        products[keep] = found.made
    layers, documents = 2, len(batch.segments.lengths)
    assert products["selective"] == products["none"]
    # Of a layer's 7 products the result of the last is needed by no gradient.
    assert products["full"] == (products["none"][0] + layers * 6, products["none"][1] + layers * documents)


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts matrix products and attended documents."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made = (0, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product, attention = self.made
        name = func.name()
        self.made = product + (name == "aten::mm"), attention + ("dot_product" in name and "backward" not in name)
        return func(*args, **(kwargs or {}))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("jetmoe", {"activation_checkpointing": "full"}, r"activation_checkpointing.*: .* of jetmoe models .*to \"none\""),
    ("opt", {"tiled_mlp": True}, r"tiled_mlp.*: opt models: their OPTDecoderLayer has no module that is an MLP"),
    ("gpt_oss", {"tiled_mlp": True}, r"tiled_mlp.*: gpt_oss models: in their GptOssMLP the output is something else"),
]


@pytest.mark.parametrize(("name", "how", "message"), REFUSED)
def test_model_that_cannot_be_run_so_is_refused_by_name(
    name: str, how: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def refuse() -> None:
        trainee = Trainee(tmp_path, {"scratch": config_keys(name, ARCHITECTURES[name].keys)}, **how)
        check_rows(trainee.model, trainee.tiled, trainee.pipeline)

    with pytest.raises(ConfigError, match=message) as refusal:
        refuse()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("mix", [lambda hidden: hidden.mean(1, keepdim=True), lambda hidden: hidden.roll(1, 1)])
def test_mlp_whose_rows_see_each_other_is_refused(mix: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    trainee = Trainee(tmp_path, MODELS["llama"])
    mlp = trainee.model.model.layers[1].mlp
    honest = mlp.forward
    mlp.forward = lambda hidden: honest(hidden - mix(hidden))
    with pytest.raises(
        ConfigError, match=r"llama models: in their LlamaMLP tokens depend on each other \(by .* output"
    ):
        check_rows(trainee.model, tile_mlps(trainee.model, trainee.pipeline), trainee.pipeline)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"activation_offload": "cpu"}, 'needs activation_checkpointing = "full"'),
        ({"compile": True, "activation_checkpointing": "selective"}, "the compiler chooses itself what to keep"),
    ],
    ids=str,
)
def test_ways_that_do_not_go_together_are_an_error(how: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=message):
        pipeline(tmp_path, **how)


def test_compiling_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MachineError, match=r"train.compile needs a C\+\+ compiler.*apt-get install g\+\+"):
        Trainee(tmp_path, MODELS["llama"], compile=True)


def test_four_bits_are_not_compiled(tmp_path: Path) -> None:
    quantized = {"scratch": LLAMA, "lora": LORA, "quantization": {"load_in_4bit": True}}
    with pytest.raises(ConfigError, match=r"train.compile.*: layers of 4-bit weights are not compiled"):
        layer_compiler(pipeline(tmp_path, model=quantized, compile=True), PackedAttention("sdpa"))
