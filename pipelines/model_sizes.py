"""How large a model is: every kind of tensor that it has, from its config.json alone.

A closed form for each of the common families of docs/models.md: the shapes that its modules have in Transformers
(`transformers/models/<model_type>/modeling_<model_type>.py`, the constructors of its attention, MLP and decoder layer).
A test builds each on the meta device and compares every shape.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Literal

from pipelines.llama_layouts import MODEL_TYPES, llama_config

Kind = Literal["embedding", "linear", "experts", "router", "vector", "head"]
Answer = bool | tuple[str, bool]
"""Yes or no; or the key of the config that says it, and what its absence means."""


class UnknownModelError(Exception):
    """There is no closed form for this config; the meta device has to be asked."""


@dataclass(frozen=True)
class Weight:
    """A tensor of a model, and the bias beside it."""

    name: str
    """End of its module's name, such as q_proj; or the module and the tensor in it, such as experts.down_proj."""
    shape: tuple[int, ...]
    kind: Kind
    bias: int = 0
    """Elements of the bias."""

    @property
    def elements(self) -> int:
        return prod(self.shape) + self.bias

    @property
    def tensors(self) -> list[int]:
        """Elements of the tensor, and of its bias if there is one."""
        return [prod(self.shape), *([self.bias] if self.bias else [])]


@dataclass(frozen=True)
class Layer:
    """Layers of one kind."""

    weights: tuple[Weight, ...]
    count: int
    """How many there are."""
    query_width: int
    """Heads times their size; of the values' size where that differs."""
    key_width: int
    value_width: int
    norms: int
    """Normalisations of the hidden state."""
    mlp: int
    """Width of the dense part of the MLP; 0 if there is none."""
    routed: int = 0
    """Width of one expert; 0 if there is none."""

    @property
    def elements(self) -> int:
        return sum(weight.elements for weight in self.weights)


@dataclass(frozen=True)
class ModelSizes:
    """A model, tensor by tensor."""

    model_type: str
    source: str
    """Where the sizes are from: `closed form` or `meta device`."""
    vocabulary: int
    hidden: int
    heads: int
    experts_per_token: int
    outside: tuple[Weight, ...]
    """What belongs to no layer: embedding, last norm, output layer."""
    layers: tuple[Layer, ...]
    tied: bool
    """Whether the embedding serves as the output matrix, which is then counted once."""
    gated: bool = True
    """Whether the MLP multiplies two projections."""
    rms_norm: bool = True
    """Whether norms are RMSNorm written out in float32, as against PyTorch's layer_norm."""

    @property
    def parameters(self) -> int:
        """Elements of all tensors, a tied one once."""
        return sum(weight.elements * count for weight, count in self.weights())

    @property
    def depth(self) -> int:
        return sum(layer.count for layer in self.layers)

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: of the experts those that it is sent to, and no embedding that is
        only looked up."""
        total = sum(self._active(weight) * count for weight, count in self.weights())
        return total - sum(weight.elements for weight in self.outside if weight.kind == "embedding" and not self.tied)

    @property
    def attention_width(self) -> int:
        """Heads times size of a head, summed over all layers: what attention's operations are proportional to."""
        return sum(layer.query_width * layer.count for layer in self.layers)

    @property
    def has_experts(self) -> bool:
        return any(layer.routed for layer in self.layers)

    def weights(self) -> list[tuple[Weight, int]]:
        """Every kind of tensor and how often it is there."""
        return [(weight, 1) for weight in self.outside] + [
            (weight, layer.count) for layer in self.layers for weight in layer.weights
        ]

    def _active(self, weight: Weight) -> int:
        if weight.kind != "experts":
            return weight.elements
        return weight.elements // weight.shape[0] * self.experts_per_token


@dataclass(frozen=True)
class Experts:
    """The routed experts of a family."""

    number: tuple[str, ...]
    """Keys of the config, the first that is there."""
    width: str = "moe_intermediate_size"
    dense: Literal["none", "first", "step"] = "none"
    """Which layers have none: the first `first_k_dense_replace`, or by `decoder_sparse_step` and `mlp_only_layers`."""
    shared: str = ""
    """Key of the number of shared experts, each as wide as a routed one; or of their width, ending in _size."""
    shared_gate: bool = False
    bias: bool = False
    module: str = "mlp"
    router: str = "gate"
    shared_module: str = "shared_experts"
    transposed: bool = False


@dataclass(frozen=True)
class Family:
    """How the models of a type differ from Llama."""

    qkv_bias: Answer = ("attention_bias", False)
    out_bias: Answer = ("attention_bias", False)
    mlp_bias: Answer = False
    norm_bias: bool = False
    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    last_norm: bool = True
    head_norm: Literal["", "head", "all"] = ""
    """Norm of queries and keys: of each head's size, or of all heads together."""
    gated: bool = True
    fused_mlp: bool = False
    """Gate and up projection are one matrix."""
    fused_qkv: str = ""
    """Name of the one matrix that makes queries, keys and values."""
    out: str = "o_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    head_dim: int = 0
    """Size of a head where the config does not say; 0: hidden size over heads."""
    heads_for_keys: bool = False
    """Whether a config without num_key_value_heads means as many as there are heads."""
    tied: bool = False
    head_bias: Answer = False
    latent: bool = False
    """Queries, keys and values come through small latent vectors (MLA)."""
    experts: Experts | None = None
    sinks: bool = False
    rms_norm: bool = True
    extra: Mapping[str, int] = field(default_factory=dict)
    """Vectors more in each layer, by name, of so many elements; 0 is the hidden size, -1 the intermediate size."""


_LAYER_NORM = Family(norm_bias=True, rms_norm=False)
_AROUND = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")
_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
_PLAIN = Family(qkv_bias=False, out_bias=False)
_GEMMA = Family(head_dim=256, tied=True)
_ROUTED_FIRST = Experts(("n_routed_experts",), dense="first", shared="n_shared_experts")
_ROUTED_STEP = Experts(("num_experts", "num_local_experts"), dense="step")
_LOCAL = Experts(("num_local_experts",), "intermediate_size")
_ALL = Experts(("num_experts",), "intermediate_size")

FAMILIES: Mapping[str, Family] = {
    "apertus": Family(
        gated=False, head_norm="head", norms=("attention_layernorm", "feedforward_layernorm"),
        extra={"alpha_p": 1, "alpha_n": 1},
    ),
    "arcee": Family(gated=False, mlp_bias=("mlp_bias", False)),
    "bitnet": Family(extra={"attn_sub_norm": 0, "ffn_sub_norm": -1}),
    "cohere": Family(norms=("input_layernorm",), tied=True, rms_norm=False),
    "cohere2": Family(norms=("input_layernorm",), tied=True, rms_norm=False, head_dim=128),
    "cwm": replace(_PLAIN, mlp_bias=("mlp_bias", False), head_dim=128),
    "deepseek_v2": Family(latent=True, mlp_bias=("mlp_bias", False), experts=_ROUTED_FIRST),
    "deepseek_v3": Family(latent=True, experts=_ROUTED_FIRST),
    "dots1": Family(head_norm="head", experts=_ROUTED_FIRST),
    "ernie4_5": Family(
        qkv_bias=("use_bias", False), out_bias=("use_bias", False), mlp_bias=("use_bias", False), tied=True,
        head_dim=128,
    ),
    "exaone4": replace(_PLAIN, norms=_AFTER, head_norm="head"),
    "flex_olmo": Family(norms=_AFTER, head_norm="all", experts=_ALL),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=_AROUND),
    "gemma3_text": replace(_GEMMA, norms=_AROUND, head_norm="head"),
    "glm": Family(qkv_bias=("attention_bias", True), out_bias=False, fused_mlp=True, head_dim=128),
    "glm4": Family(
        qkv_bias=("attention_bias", True), out_bias=False, fused_mlp=True, head_dim=128,
        norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    "glm4_moe": Family(out_bias=False, experts=_ROUTED_FIRST),
    "gpt_neox": replace(
        _LAYER_NORM, qkv_bias=("attention_bias", True), out_bias=("attention_bias", True), mlp_bias=True, gated=False,
        fused_qkv="query_key_value", out="dense", up="dense_h_to_4h", down="dense_4h_to_h", heads_for_keys=True,
    ),
    "gpt_oss": Family(
        qkv_bias=("attention_bias", True), out_bias=("attention_bias", True), sinks=True, head_dim=64,
        experts=Experts(_LOCAL.number, _LOCAL.width, bias=True, router="router", transposed=True),
    ),
    "granite": Family(mlp_bias=("mlp_bias", False)),
    "granitemoe": Family(experts=replace(_LOCAL, module="block_sparse_moe", router="router")),
    "helium": Family(mlp_bias=("mlp_bias", False), out_bias=False, head_dim=128),
    "hunyuan_v1_dense": Family(head_norm="head"),
    "jais2": replace(
        _LAYER_NORM, qkv_bias=("attention_bias", True), out_bias=("attention_bias", True), mlp_bias=("mlp_bias", True),
        gated=False,
    ),
    "llama": Family(mlp_bias=("mlp_bias", False), heads_for_keys=True),
    "minicpm3": Family(latent=True, tied=True, mlp_bias=("mlp_bias", False)),
    "minimax_m2": replace(_PLAIN, head_norm="all", experts=_LOCAL),
    "ministral": _PLAIN,
    "ministral3": replace(_PLAIN, head_dim=128),
    "mistral": _PLAIN,
    "mixtral": replace(_PLAIN, experts=_LOCAL),
    "nanochat": Family(gated=False, norms=(), last_norm=False, up="fc1", down="fc2"),
    "nemotron": replace(_LAYER_NORM, mlp_bias=("mlp_bias", False), gated=False, heads_for_keys=True),
    "olmo": Family(norms=(), last_norm=False, rms_norm=False, heads_for_keys=True),
    "olmo2": Family(norms=_AFTER, head_norm="all", heads_for_keys=True),
    "olmo3": Family(norms=_AFTER, head_norm="all", heads_for_keys=True),
    "olmoe": Family(head_norm="all", experts=_ALL, heads_for_keys=True),
    "phi": replace(
        _LAYER_NORM, qkv_bias=True, out_bias=True, mlp_bias=True, norms=("input_layernorm",), gated=False, out="dense",
        up="fc1", down="fc2", head_bias=True, heads_for_keys=True,
    ),
    "phi3": replace(_PLAIN, fused_qkv="qkv_proj", fused_mlp=True, heads_for_keys=True),
    "phimoe": replace(
        _LAYER_NORM, experts=replace(_LOCAL, router="router"), head_bias=("lm_head_bias", False)
    ),
    "qwen2": Family(qkv_bias=True, out_bias=False),
    "qwen2_moe": Family(
        qkv_bias=("qkv_bias", True), out_bias=False,
        experts=replace(
            _ROUTED_STEP, shared="shared_expert_intermediate_size", shared_gate=True, shared_module="shared_expert"
        ),
    ),
    "qwen3": Family(head_norm="head", head_dim=128),
    "qwen3_moe": Family(head_norm="head", experts=_ROUTED_STEP),
    "seed_oss": Family(
        qkv_bias=("attention_bias", True), out_bias=("attention_out_bias", False), mlp_bias=("mlp_bias", False),
        head_dim=128,
    ),
    "smollm3": Family(mlp_bias=("mlp_bias", False), tied=True),
    "stablelm": replace(_LAYER_NORM, qkv_bias=("use_qkv_bias", False), out_bias=False),
    "starcoder2": replace(
        _LAYER_NORM, qkv_bias=("use_bias", True), out_bias=("use_bias", True), mlp_bias=("use_bias", True), gated=False,
        up="c_fc", down="c_proj", tied=True,
    ),
    "vaultgemma": replace(_GEMMA, norms=("input_layernorm", "pre_feedforward_layernorm")),
    "youtu": Family(latent=True, tied=True),
}  # fmt: skip
"""Model types with a closed form; gpt2 and opt have one of their own below."""


def model_sizes(config: Mapping[str, Any]) -> ModelSizes:
    """The tensors of the causal language model that a config.json describes.

    Raises:
        UnknownModelError: if there is no closed form for it, or a size that it needs is not in the config.
    """
    model_type = config.get("model_type")
    try:
        if model_type in MODEL_TYPES:
            return replace(_by_family({**llama_config(config), "model_type": "llama"}), model_type=str(model_type))
        if model_type == "gpt2":
            return _gpt2(config)
        if model_type == "opt":
            return _opt(config)
        if model_type in FAMILIES:
            return _by_family(config)
    except (KeyError, TypeError, ValueError) as error:
        raise UnknownModelError(f"config.json of a {model_type} model: {error}") from error
    raise UnknownModelError(f"no closed form for {model_type} models")


def _by_family(config: Mapping[str, Any]) -> ModelSizes:
    model_type = config["model_type"]
    family = FAMILIES[model_type]
    _refuse_variants(config, model_type)
    hidden, vocabulary, depth = (int(config[key]) for key in ("hidden_size", "vocab_size", "num_hidden_layers"))
    tied = bool(config.get("tie_word_embeddings", family.tied))
    outside = [Weight("embed_tokens", (vocabulary, hidden), "embedding")]
    if family.last_norm:
        outside.append(_norm("norm", hidden, family))
    if not tied:
        bias = vocabulary if _is(config, family.head_bias) else 0
        outside.append(Weight("lm_head", (vocabulary, hidden), "head", bias))
    elif _is(config, family.head_bias):
        outside.append(Weight("lm_head.bias", (vocabulary,), "vector"))
    routed = sum(_is_routed(config, family.experts, layer) for layer in range(depth))
    layers = [_layer(config, family, experts=experts) for experts in (False, True)]
    counted = [replace(layer, count=count) for layer, count in zip(layers, (depth - routed, routed), strict=True)]
    return ModelSizes(
        model_type=model_type,
        source="closed form",
        vocabulary=vocabulary,
        hidden=hidden,
        heads=config["num_attention_heads"],
        experts_per_token=int(config.get("num_experts_per_tok") or 0),
        outside=tuple(outside),
        layers=tuple(layer for layer in counted if layer.count),
        tied=tied,
        gated=family.gated,
        rms_norm=family.rms_norm,
    )


def _refuse_variants(config: Mapping[str, Any], model_type: str) -> None:
    # Rarely used options that add or share tensors.
    for key in ("use_qk_norm", "qk_layernorm", "add_cross_attention"):
        if config.get(key):
            raise ValueError(f"{key} is not part of the closed form")
    if model_type == "granitemoe" and config.get("shared_intermediate_size"):
        raise ValueError("shared_intermediate_size is not part of the closed form")


def _is(config: Mapping[str, Any], answer: Answer) -> bool:
    return bool(config.get(*answer)) if isinstance(answer, tuple) else answer


def _norm(name: str, size: int, family: Family) -> Weight:
    return Weight(name, (size,), "vector", size if family.norm_bias else 0)


def _is_routed(config: Mapping[str, Any], experts: Experts | None, layer: int) -> bool:
    if experts is None:
        return False
    if experts.dense == "first":
        return bool(layer >= int(config["first_k_dense_replace"]))
    if experts.dense == "step":
        step, dense = int(config.get("decoder_sparse_step", 1)), config.get("mlp_only_layers") or []
        return layer not in dense and (layer + 1) % step == 0
    return True


def _layer(config: Mapping[str, Any], family: Family, *, experts: bool) -> Layer:
    hidden, width = int(config["hidden_size"]), int(config.get("intermediate_size") or 0)
    attention, widths = (_latent if family.latent else _grouped)(config, family)
    weights = [*attention, *(_norm(name, hidden, family) for name in family.norms)]
    for name, size in family.extra.items():
        weights.append(Weight(name, ({0: hidden, -1: width}.get(size, size),), "vector"))
    routed = 0
    if experts and family.experts is not None:
        found, width, routed = _experts(config, family, family.experts)
        weights += found
    else:
        weights += _mlp(hidden, width, family, bias=_is(config, family.mlp_bias))
    return Layer(tuple(weights), 0, *widths, norms=len(family.norms), mlp=width, routed=routed)


def _grouped(config: Mapping[str, Any], family: Family) -> tuple[list[Weight], tuple[int, int, int]]:
    """Projections of attention whose key and value heads may be fewer than its heads."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    of_keys = config.get("num_key_value_heads")
    if of_keys is None and not (family.heads_for_keys or "num_key_value_heads" in config):
        raise KeyError("num_key_value_heads is missing")
    size = int(config["head_dim"] or 0) if "head_dim" in config else family.head_dim
    size = size or hidden // heads
    queries, keys = heads * size, int(of_keys or heads) * size
    biased, out_bias = _is(config, family.qkv_bias), _is(config, family.out_bias)
    if family.fused_qkv:
        rows = queries + 2 * keys
        weights = [Weight(family.fused_qkv, (rows, hidden), "linear", rows if biased else 0)]
    else:
        sides = (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
        weights = [Weight(name, (rows, hidden), "linear", rows if biased else 0) for name, rows in sides]
    weights.append(Weight(family.out, (hidden, queries), "linear", hidden if out_bias else 0))
    if family.head_norm:
        sizes = (size, size) if family.head_norm == "head" else (queries, keys)
        weights += [Weight(name, (rows,), "vector") for name, rows in zip(("q_norm", "k_norm"), sizes, strict=True)]
    if family.sinks:
        weights.append(Weight("sinks", (heads,), "vector"))
    return weights, (queries, keys, keys)


def _latent(config: Mapping[str, Any], family: Family) -> tuple[list[Weight], tuple[int, int, int]]:
    """Projections of multi-head latent attention, as DeepSeek-V2 introduced it (arXiv 2405.04434, section 2.1)."""
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    rotary, plain, value = (int(config[key]) for key in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    small, queries = int(config["kv_lora_rank"]), heads * (rotary + plain)
    biased = _is(config, family.qkv_bias)
    if rank := config["q_lora_rank"]:
        weights = [
            Weight("q_a_proj", (rank, hidden), "linear", rank if biased else 0),
            Weight("q_a_layernorm", (rank,), "vector"),
            Weight("q_b_proj", (queries, rank), "linear"),
        ]
    else:
        weights = [Weight("q_proj", (queries, hidden), "linear")]
    weights += [
        Weight("kv_a_proj_with_mqa", (small + rotary, hidden), "linear", small + rotary if biased else 0),
        Weight("kv_a_layernorm", (small,), "vector"),
        Weight("kv_b_proj", (heads * (plain + value), small), "linear"),
        Weight("o_proj", (hidden, heads * value), "linear", hidden if _is(config, family.out_bias) else 0),
    ]
    return weights, (queries, queries, heads * value)


def _mlp(hidden: int, width: int, family: Family, *, bias: bool, prefix: str = "") -> list[Weight]:
    sides = ("gate_proj", family.up) if family.gated else (family.up,)
    if family.fused_mlp:
        up = [Weight(f"{prefix}gate_up_proj", (2 * width, hidden), "linear", 2 * width if bias else 0)]
    else:
        up = [Weight(prefix + name, (width, hidden), "linear", width if bias else 0) for name in sides]
    return [*up, Weight(prefix + family.down, (hidden, width), "linear", hidden if bias else 0)]


def _experts(config: Mapping[str, Any], family: Family, experts: Experts) -> tuple[list[Weight], int, int]:
    """Router, routed and shared experts of a layer; the width of the shared ones, and of one routed."""
    hidden, width = int(config["hidden_size"]), int(config[experts.width])
    number = next(int(config[key]) for key in experts.number if config.get(key))
    shapes = ((number, 2 * width, hidden), (number, hidden, width))
    if experts.transposed:
        shapes = ((number, hidden, 2 * width), (number, width, hidden))
    biases = (number * 2 * width, number * hidden) if experts.bias else (0, 0)
    weights = [
        Weight(experts.router, (number, hidden), "router", number if experts.bias else 0),
        Weight("experts.gate_up_proj", shapes[0], "experts", biases[0]),
        Weight("experts.down_proj", shapes[1], "experts", biases[1]),
    ]
    shared = 0
    if experts.shared:
        given = int(config[experts.shared] or 0)
        shared = given if experts.shared.endswith("_size") else given * width
    if shared:
        weights += _mlp(hidden, shared, family, bias=_is(config, family.mlp_bias))
    if experts.shared_gate:
        weights.append(Weight("shared_expert_gate", (1, hidden), "linear"))
    return weights, shared, width


def _gpt2(config: Mapping[str, Any]) -> ModelSizes:
    hidden, depth, vocabulary = (int(config[key]) for key in ("n_embd", "n_layer", "vocab_size"))
    if config.get("add_cross_attention"):
        raise ValueError("add_cross_attention is not part of the closed form")
    width = int(config.get("n_inner") or 4 * hidden)
    layer = Layer(
        (
            Weight("ln_1", (hidden,), "vector", hidden),
            Weight("attn.c_attn", (hidden, 3 * hidden), "linear", 3 * hidden),
            Weight("attn.c_proj", (hidden, hidden), "linear", hidden),
            Weight("ln_2", (hidden,), "vector", hidden),
            Weight("c_fc", (hidden, width), "linear", width),
            Weight("mlp.c_proj", (width, hidden), "linear", hidden),
        ),
        depth, hidden, hidden, hidden, norms=2, mlp=width,
    )  # fmt: skip
    embeddings = [
        Weight("wte", (vocabulary, hidden), "embedding"),
        Weight("wpe", (int(config["n_positions"]), hidden), "vector"),
    ]
    return _old(config, "gpt2", embeddings, layer, heads=int(config["n_head"]))


def _opt(config: Mapping[str, Any]) -> ModelSizes:
    hidden, depth, vocabulary = (int(config[key]) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    plain = {"word_embed_proj_dim": hidden, "enable_bias": True, "layer_norm_elementwise_affine": True}
    if any(config.get(key, value) != value for key, value in {**plain, "do_layer_norm_before": True}.items()):
        raise ValueError("other than the usual layout")
    width = int(config["ffn_dim"])
    names = ("q_proj", "k_proj", "v_proj", "out_proj")
    layer = Layer(
        (
            *(Weight(name, (hidden, hidden), "linear", hidden) for name in names),
            Weight("self_attn_layer_norm", (hidden,), "vector", hidden),
            Weight("fc1", (width, hidden), "linear", width),
            Weight("fc2", (hidden, width), "linear", hidden),
            Weight("final_layer_norm", (hidden,), "vector", hidden),
        ),
        depth, hidden, hidden, hidden, norms=2, mlp=width,
    )  # fmt: skip
    embeddings = [
        Weight("embed_tokens", (vocabulary, hidden), "embedding"),
        Weight("embed_positions", (int(config["max_position_embeddings"]) + 2, hidden), "vector"),
    ]
    return _old(config, "opt", embeddings, layer, heads=int(config["num_attention_heads"]))


def _old(
    config: Mapping[str, Any], model_type: str, embeddings: list[Weight], layer: Layer, *, heads: int
) -> ModelSizes:
    vocabulary, hidden = embeddings[0].shape
    tied = bool(config.get("tie_word_embeddings", True))
    head = [] if tied else [Weight("lm_head", (vocabulary, hidden), "head")]
    return ModelSizes(
        model_type=model_type,
        source="closed form",
        vocabulary=vocabulary,
        hidden=hidden,
        heads=heads,
        experts_per_token=0,
        outside=(*embeddings, Weight("ln_f", (hidden,), "vector", hidden), *head),
        layers=(layer,),
        tied=tied,
        gated=False,
        rms_norm=False,
    )
