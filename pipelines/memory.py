"""What a training step takes in memory on one rank, part by part, from a model's sizes and the layout alone.

Parameters, gradients, optimizer state and float32 masters are counted, as DeepSpeed 0.19 allocates them. Activations
are the tensors that autograd keeps of Transformers' layers, in bytes a token. `bench.plan` compares both with every
tensor that really lives during a step on a CPU; nothing here was compared with a GPU yet.

Where figures come from: sharding over N ranks is that of ZeRO (arXiv 1910.02054, section 5); activations are counted as
in "Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198, section 4), tensor by tensor for
the modules of Transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import gcd, lcm
from typing import Any, Literal

from pipelines.model_sizes import Layer, ModelSizes, Weight
from pipelines.schema import Lora, Pipeline, Quantization, Train

Precision = Literal["bf16", "fp16", "fp32"]
Checkpointing = Literal["none", "selective", "full"]

GIB = 2**30
LOGITS_AT_ONCE = 2**26
"""Logits of a stretch of the fused loss on a GPU, as train/chunked_loss.py has it; a test compares the two."""
ROWS_ON_A_CPU = 512
"""Targets of a stretch on a CPU, likewise."""
BUCKET_ELEMENTS = 200_000_000
"""Elements that are reduced in one go, as train/engine.py has it; a test compares the two."""
LIVE_ELEMENTS = 1_000_000_000
"""Parameters that ZeRO 3 keeps gathered at most: DeepSpeed's stage3_max_live_parameters."""
PERSISTENT_ELEMENTS = 100_000
"""Tensors that ZeRO 3 never shards: DeepSpeed's stage3_param_persistence_threshold."""
STEPPED_ELEMENTS = 1_000_000_000
"""Elements that ZeRO 3 steps in one go: DeepSpeed's sub_group_size."""
FEWEST_TOKENS_OF_A_TILE = 1024
"""Of train.tiled_mlp, as train/tiled_mlp.py has it; a tile is as many tokens as the model is wide, or these."""
ALLOWANCE = int(1.5 * GIB)
"""For what is not computed: CUDA context, NCCL, cuBLAS and the allocator's gaps."""

STATE_BYTES: Mapping[str, float] = {
    **dict.fromkeys(("adamw", "adam", "adamax", "nadam", "radam", "adadelta", "rprop", "paged_adamw_32bit"), 8),
    **dict.fromkeys(("rmsprop", "adagrad", "asgd", "lion", "muon", "paged_lion_32bit"), 4),
    **dict.fromkeys(("adamw_8bit", "paged_adamw_8bit"), 2 + 8 / 256),  # and float32 scales of blocks of 256
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), 1 + 4 / 256),
    **dict.fromkeys(("sgd", "adafactor"), 0),
}
"""Bytes of optimizer state an element. muon is counted as if all were hidden matrices; adafactor keeps a row and a
column of each matrix, which is next to nothing."""


@dataclass(frozen=True)
class Layout:
    """How a run is spread over ranks and over time: everything about it that memory depends on."""

    ranks: int
    capacity: int
    """Tokens of a pack."""
    sequence_parallel_size: int = 1
    zero_stage: int = 0
    offload_optimizer: bool = False
    offload_param: bool = False
    precision: Precision = "bf16"
    checkpointing: Checkpointing = "none"
    activation_offload: bool = False
    tiled_mlp: bool = False
    fused_loss: bool = True
    overlap_comm: bool = True
    state_bytes: float = 8
    """Of the optimizer, for each trained element."""
    lora: Lora | None = None
    quantization: Quantization | None = None
    on_gpu: bool = True
    """Whether kernels and allowances are those of a GPU."""
    zero: Mapping[str, Any] = field(default_factory=dict)
    """Keys of zero_optimization that train.deepspeed.extra sets."""

    @property
    def effective_stage(self) -> int:
        """ZeRO 0 and 1 in half precision run as ZeRO 2."""
        return self.zero_stage if self.precision == "fp32" else max(2, self.zero_stage)

    @property
    def tokens(self) -> int:
        """Of a pack, on one rank."""
        return -(-self.capacity // self.sequence_parallel_size)

    @property
    def element_bytes(self) -> int:
        return 4 if self.precision == "fp32" else 2

    @property
    def shards(self) -> int:
        """Ranks that share the training state."""
        return self.ranks if self.effective_stage else 1


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank at the peak of a step."""

    parts: Mapping[str, int]
    """By what holds them, at the moment of the peak."""
    peak: str
    """When that is: `loss`, `backward pass` or `optimizer step`."""
    host: int
    """Bytes in the machine's own memory, for what is offloaded, of this rank."""
    parameters: int
    """Of the whole model, with the adapter."""
    trained: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def layout_of(pipeline: Pipeline, ranks: int, *, on_gpu: bool = True) -> Layout:
    """The layout of a pipeline's training on so many ranks; precision "auto" is bf16 on a GPU and fp32 on a CPU."""
    train = pipeline.train
    assert train is not None
    deepspeed, precision = train.deepspeed, train.precision
    zero = deepspeed.extra.get("zero_optimization")
    return Layout(
        ranks=ranks,
        capacity=pipeline.prep.pack.capacity,
        sequence_parallel_size=train.parallel.sequence_parallel_size,
        zero_stage=deepspeed.zero_stage,
        offload_optimizer=deepspeed.offload_optimizer != "none",
        offload_param=deepspeed.offload_param != "none",
        precision=precision if precision != "auto" else "bf16" if on_gpu else "fp32",
        checkpointing=train.activation_checkpointing,
        activation_offload=train.activation_offload != "none",
        tiled_mlp=train.tiled_mlp,
        fused_loss=train.fused_loss,
        overlap_comm=deepspeed.overlap_comm,
        state_bytes=state_bytes(train),
        lora=pipeline.model.lora,
        quantization=pipeline.model.quantization,
        on_gpu=on_gpu,
        zero=zero if isinstance(zero, dict) else {},
    )


def state_bytes(train: Train) -> float:
    """Bytes of optimizer state an element; those of AdamW for an optimizer of the user's own."""
    options = train.optimizer.options
    extra = 4.0 * sum(bool(options.get(key)) for key in ("momentum", "centered", "amsgrad"))
    return STATE_BYTES.get(train.optimizer.type, 8) + extra


def memory(sizes: ModelSizes, layout: Layout) -> Memory:
    """What one rank holds at the peak of a step with several micro-batches, every token of a pack a target."""
    weights = _Weights.of(sizes, layout)
    gpu, host = _state(weights, layout)
    activations = _Activations(sizes, layout)
    loss, kept_of_loss = _loss(sizes, layout, trained=weights.head_is_trained)
    phases = {
        "loss": {"activations": activations.stored, "logits and loss": loss},
        "backward pass": {
            "activations": activations.stored,
            "recomputed layer": activations.of_one_layer,
            "gradients of activations": activations.working,
            "attention workspace": activations.attention_workspace,
            "logits and loss": kept_of_loss,
            "communication buckets": _buckets(weights, layout),
        },
        "optimizer step": {"optimizer step workspace": _step_workspace(weights, layout)},
    }
    peak = max(phases, key=lambda name: sum(phases[name].values()))
    parts = {**gpu, **phases[peak], "CUDA context and allowance": ALLOWANCE if layout.on_gpu else 0}
    return Memory(
        parts={name: int(size) for name, size in parts.items() if size},
        peak=peak,
        host=int(host + activations.host),
        parameters=weights.elements,
        trained=weights.trained,
    )


def adapter_elements(weight: Weight, lora: Lora) -> int:
    """Elements that LoRA adds beside one matrix: r x (inputs + outputs), as in arXiv 2106.09685."""
    targets = lora.target_modules
    if weight.kind == "linear":
        chosen = targets == "all-linear" or _ends(weight.name, targets)
    else:
        chosen = weight.kind in ("embedding", "head") and targets != "all-linear" and _ends(weight.name, targets)
    if not chosen:
        return 0
    rank = next((rank for end, rank in lora.rank_pattern.items() if _ends(weight.name, [end])), lora.r)
    outputs = weight.shape[0] if lora.use_dora else 0
    return rank * sum(weight.shape) + outputs


def _ends(name: str, ends: Any) -> bool:
    return any(name == end or name.endswith(f".{end}") or end.endswith(f".{name}") for end in ends)


@dataclass(frozen=True)
class _Weights:
    """How many elements are kept how."""

    elements: int
    trained: int
    frozen_bytes: int
    """Of what is not trained, whole."""
    small_bytes: int
    """Of all tensors that ZeRO 3 does not shard."""
    largest_bytes: int
    """Of the largest tensor that ZeRO 3 gathers."""
    largest: int
    """Elements of the largest trained tensor."""
    head_is_trained: bool
    scale_bytes: int
    """Of 4-bit weights' scales, which no ZeRO stage shards."""

    @classmethod
    def of(cls, sizes: ModelSizes, layout: Layout) -> "_Weights":
        lora, size = layout.lora, layout.element_bytes
        threshold = int(layout.zero.get("stage3_param_persistence_threshold", PERSISTENT_ELEMENTS))
        elements = trained = frozen = small = largest_bytes = largest = scales = 0
        head = lora is None
        for weight, count in sizes.weights():
            kept = [(part, size) for part in weight.tensors]
            added, is_trained = 0, lora is None
            if lora is not None:
                added = adapter_elements(weight, lora)
                if _ends(weight.name, lora.modules_to_save):  # PEFT keeps the original beside the trained copy
                    added, head = added + weight.elements, head or weight.kind == "head"
                if layout.quantization is not None and weight.kind == "linear":
                    scales += count * int(weight.tensors[0] * _scale_bytes(layout.quantization))
                    kept[0] = (-(-weight.tensors[0] // 2) // size, size)  # in elements of the trained format
            elements += count * (weight.elements + added)
            trained += count * (weight.elements * is_trained + added)
            frozen += 0 if is_trained else count * sum(part * width for part, width in kept)
            for part, width in kept:
                small += count * part * width * (part <= threshold)
                largest_bytes = max(largest_bytes, part * width)
            largest = max(largest, max(weight.tensors) if is_trained else added)
        if lora is not None:
            small += trained * size  # an adapter's matrices are small, mostly
        return cls(elements, trained, frozen, small, largest_bytes, largest, head, scales)


def _scale_bytes(table: Quantization) -> float:
    """Bytes a weight for the scales of blocks of 64, as QLoRA has it (arXiv 2305.14314, section 3)."""
    return 1 / 64 + 4 / (64 * 256) if table.bnb_4bit_use_double_quant else 4 / 64


def _state(weights: _Weights, layout: Layout) -> tuple[dict[str, float], float]:
    """Bytes that last from step to step, by part, on the GPU; and in the machine's memory."""
    stage, size, ranks = layout.effective_stage, layout.element_bytes, layout.shards
    trained = weights.trained
    whole = weights.frozen_bytes + size * trained
    share = 4.0 * trained / ranks
    # With float32 the parameters are the masters, except that ZeRO 1 and 2 clone what they step.
    masters = 0.0 if stage == 0 or (stage == 3 and layout.precision == "fp32") else share
    state = layout.state_bytes * trained / ranks
    gradients = 4.0 * trained if stage <= 1 else share
    parts: dict[str, float] = {"parameters": whole + weights.scale_bytes}
    host = 0.0
    if stage == 3:
        sharded = whole - weights.small_bytes
        live = size * int(layout.zero.get("stage3_max_live_parameters", LIVE_ELEMENTS))
        parts["parameters"] = weights.scale_bytes + whole / ranks
        parts["gathered parameters"] = weights.small_bytes + min(sharded, max(live, weights.largest_bytes))
        if layout.offload_param:
            host += whole / ranks
            parts["parameters"] = weights.scale_bytes
    if layout.offload_optimizer:
        host += masters + state + gradients + size * trained / ranks
        masters = state = gradients = 0.0
    parts |= {"gradients": gradients, "float32 master weights": masters, "optimizer state": state}
    if stage == 3:
        parts["communication buckets"] = _bucket(weights, layout)
    return parts, host


def _bucket(weights: _Weights, layout: Layout) -> float:
    elements = min(int(layout.zero.get("reduce_bucket_size", BUCKET_ELEMENTS)), weights.elements)
    return float(layout.element_bytes * elements)


def _buckets(weights: _Weights, layout: Layout) -> float:
    """Gradients on their way to becoming shares, while the backward pass goes on."""
    stage = layout.effective_stage
    if stage == 0:
        return 0.0
    waiting = float(layout.element_bytes * weights.largest)  # one that is ready, and copied into a bucket
    # ZeRO 1 and 2 make their buckets anew for each backward pass, ZeRO 3 keeps its only one.
    lasting = _bucket(weights, layout)
    return waiting + lasting * (1 if stage == 3 else 1 + layout.overlap_comm)


def _step_workspace(weights: _Weights, layout: Layout) -> float:
    """The gradient's share once more, flat; or the largest of its tensors in float64, for the norm."""
    stage = layout.effective_stage
    if layout.offload_optimizer or stage == 0:
        return 0.0
    share = weights.trained / layout.shards
    if stage == 3:
        flat = 4 * min(share, int(layout.zero.get("sub_group_size", STEPPED_ELEMENTS)))
        return max(flat, 8 * weights.largest / layout.shards)
    return max(4 * share * (layout.precision == "fp32"), 8 * min(weights.largest, share))


def _loss(sizes: ModelSizes, layout: Layout, *, trained: bool) -> tuple[float, float]:
    """Bytes at the peak of the loss, and what of them the backward pass begins with."""
    size, tokens = layout.element_bytes, layout.tokens
    hidden, matrix = tokens * sizes.hidden, sizes.vocabulary * sizes.hidden
    logits = tokens * sizes.vocabulary
    if layout.fused_loss:
        rows = max(1, LOGITS_AT_ONCE // sizes.vocabulary) if layout.on_gpu else ROWS_ON_A_CPU
        at_once = sizes.vocabulary * min(tokens, rows)
        kept = float(size * hidden + 4 * matrix * trained)
        # Logits, then in float32 their log-probabilities, and the gradients of both.
        return kept + (size + 12) * at_once + 2 * size * hidden, kept
    return float((size + 12) * logits + 2 * size * hidden), float(size * hidden + size * matrix * trained)


class _Activations:
    """Bytes that autograd keeps between the forward and the backward pass."""

    def __init__(self, sizes: ModelSizes, layout: Layout) -> None:
        self._sizes, self._layout, self._size = sizes, layout, layout.element_bytes
        self._tile = max(FEWEST_TOKENS_OF_A_TILE, sizes.hidden)
        self._tiled = layout.tiled_mlp and layout.tokens > self._tile
        tokens, size = layout.tokens, self._size
        inputs = float(tokens * size * sizes.hidden)
        whole = {layer: tokens * self._of(layer) for layer in sizes.layers}
        dear = {layer: tokens * self._dear(layer) for layer in sizes.layers}
        self.host = 0.0
        """Offloaded, in the machine's memory."""
        self.stored: float
        """Of the whole model, until the backward pass comes to it."""
        self.of_one_layer = 0.0
        """Computed again when it does."""
        if layout.checkpointing == "none":
            self.stored = sum(kept * layer.count for layer, kept in whole.items())
        elif layout.checkpointing == "selective":
            self.stored = sum((inputs + kept) * layer.count for layer, kept in dear.items())
            self.of_one_layer = max(kept - tokens * self._shared(layer) for layer, kept in whole.items())
        else:
            self.stored = inputs * sizes.depth
            self.of_one_layer = max(whole.values())
        if layout.activation_offload:  # two are on the device: one in use, one on its way
            self.host, self.stored = self.stored, min(self.stored, 2 * inputs)
        self.stored += tokens * (self._norm(sizes.hidden) - size * sizes.hidden)  # the last norm
        self.working = self._working()

    @property
    def attention_workspace(self) -> float:
        """What the kernel's backward pass takes, and exchanging parts of a sequence."""
        sizes, layout = self._sizes, self._layout
        queries = max(layer.query_width for layer in sizes.layers)
        widths = max(_attention_width(sizes, layer, layout) for layer in sizes.layers)
        exchanged = 2 * widths if layout.sequence_parallel_size > 1 else 0
        summed = 4 * queries if layout.on_gpu else 0  # flash attention sums the queries' gradient in float32
        return float(layout.tokens * (summed + self._size * (widths + exchanged)))

    def _working(self) -> float:
        """Gradients of what a layer kept, and with tiles also what one of them computes again."""
        sizes, layout = self._sizes, self._layout
        dense = max(layer.mlp for layer in sizes.layers)
        routed = max(sizes.experts_per_token * layer.routed for layer in sizes.layers)
        hidden = 2.0 * layout.tokens * sizes.hidden
        if self._tiled:
            # What one tile computes again, and gradients of the MLP's weights: of a tile, and in float32 of all.
            of_weights = 0.0 if layout.lora is not None else max(_mlp_elements(layer) for layer in sizes.layers)
            tile = self._tile * (2 + self._tensors) * (dense + routed)
            return self._size * (hidden + tile) + (4 + self._size) * of_weights
        return self._size * (hidden + 2.0 * layout.tokens * (dense + routed))

    @property
    def _tensors(self) -> int:
        # Gated: both projections, the activation and the product. Else the projection and the activation.
        return 4 if self._sizes.gated else 2

    def _of(self, layer: Layer) -> float:
        """Bytes a token that a layer keeps."""
        sizes, size = self._sizes, self._size
        kept = float(size * (_attention_width(sizes, layer, self._layout) + self._attention_extra(layer)))
        kept += 4 * sizes.heads  # the log of the softmax's sum
        kept += layer.norms * self._norm(sizes.hidden)
        kept += sum(self._norm(1) * self._normed(weight, layer) for weight in layer.weights)
        if not self._tiled:
            kept += size * self._tensors * layer.mlp
            if layer.routed:  # each expert's input, and its output before it is weighed
                kept += size * sizes.experts_per_token * (self._tensors * layer.routed + 2 * sizes.hidden)
        if self._layout.lora is not None:
            kept += size * sum(self._rank(weight) for weight in layer.weights)
        return kept

    def _dear(self, layer: Layer) -> float:
        """Bytes a token of results of matrix products and attention, which "selective" keeps."""
        sizes = self._sizes
        results = layer.query_width + layer.key_width + layer.value_width + _output(layer, sizes) + 2 * sizes.hidden
        projections = self._tensors // 2
        if not self._tiled:
            results += projections * layer.mlp
            results += sizes.experts_per_token * (projections * layer.routed + sizes.hidden * bool(layer.routed))
        return float(self._size * results + 4 * sizes.heads)

    def _shared(self, layer: Layer) -> float:
        """Bytes a token that "selective" keeps and that a whole layer would keep as well."""
        widths = layer.value_width + _output(layer, self._sizes)
        if not self._tiled:
            widths += self._tensors // 2 * (layer.mlp + self._sizes.experts_per_token * layer.routed)
        return float(self._size * widths + 4 * self._sizes.heads)

    def _norm(self, width: int) -> float:
        """Bytes a token of a norm's input, of what it multiplies with its weight, and of its result."""
        size, frozen = self._size, self._layout.lora is not None
        if not self._sizes.rms_norm:
            return float(2 * size * width)
        whole = 4 + size + size if size < 4 else 3 * size
        return float(width * (whole - size * frozen))

    def _normed(self, weight: Weight, layer: Layer) -> int:
        """Elements a token of queries or keys that a norm of their own passes."""
        return {"q_norm": layer.query_width, "k_norm": layer.key_width}.get(weight.name, 0)

    def _attention_extra(self, layer: Layer) -> int:
        # Without a packed kernel the outputs of the documents are put together in a second tensor; where ranks share
        # a sequence they are sent back in one.
        return layer.query_width if not self._layout.on_gpu or self._layout.sequence_parallel_size > 1 else 0

    def _rank(self, weight: Weight) -> int:
        lora = self._layout.lora
        return lora.r if lora is not None and adapter_elements(weight, lora) else 0


def _mlp_elements(layer: Layer) -> int:
    names = ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "fc1", "fc2", "c_fc", "c_proj")
    return sum(weight.elements for weight in layer.weights if weight.name.rpartition(".")[2] in names)


def mlp_share(sizes: ModelSizes) -> float:
    """Of all parameters, those of the layers' MLPs."""
    return sum(_mlp_elements(layer) * layer.count for layer in sizes.layers) / max(1, sizes.parameters)


def _attention_width(sizes: ModelSizes, layer: Layer, layout: Layout) -> int:
    """Elements a token of a rank of queries, keys, values and the result that attention keeps.

    Of sp ranks, U = gcd(heads, sp) exchange tokens for heads, which takes at least one key and value head a rank; the
    R = sp / U rows gather the keys and values of each other.
    """
    together = gcd(sizes.heads, layout.sequence_parallel_size)
    rows = layout.sequence_parallel_size // together
    of_a_head = max(1, layer.query_width // sizes.heads)
    key_heads = max(1, layer.key_width // of_a_head)
    repeats = rows * lcm(key_heads, together) // key_heads
    return layer.query_width + (layer.key_width + layer.value_width) * repeats + _output(layer, sizes)


def _output(layer: Layer, sizes: ModelSizes) -> int:
    # As wide as a head's value, for each query head.
    of_keys = max(1, layer.key_width * sizes.heads // max(1, layer.query_width))
    return sizes.heads * (layer.value_width // of_keys)
