"""The shared tables: [run], [model] and [tokenizer]."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from pipelines.schema.values import Alphas, Beta, LocalPath, Name, PositiveReal, Ranks, Table, Verbatim


class Run(Table):
    """[run]: what this run is called and where its files go."""

    name: Name = Field(examples=["my-run"])
    """Directory of this run below work_dir."""
    work_dir: LocalPath = Path("work")
    """Everything a run writes is below it."""
    seed: NonNegativeInt = 1024
    """The only seed; every stage derives its own from it."""


class Lora(Table):
    """[model.lora]: train low-rank additions to the model's matrices and leave the matrices as they are. Without the
    table every parameter is trained."""

    r: PositiveInt = 64
    """Rank of the additions."""
    lora_alpha: PositiveReal = 16.0
    """The addition is scaled by lora_alpha / r, or by lora_alpha / sqrt(r) with use_rslora."""
    lora_dropout: Beta = 0.0
    """Share of the inputs of the additions that is dropped while training."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases of the model are trained as well."""
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """What PEFT calls a language model."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Modules that get an addition, by the end of their names; all-linear is every linear layer but the output."""
    modules_to_save: list[str] = []
    """Modules that are trained whole, such as `embed_tokens` and `lm_head` where tokens were added."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), which keeps large ranks stable."""
    use_dora: bool = False
    """Train the lengths of the rows of each matrix as well (DoRA)."""
    rank_pattern: Ranks = {}
    """Another rank for some modules, by the end of their names."""
    alpha_pattern: Alphas = {}
    """Another lora_alpha for some modules, by the end of their names."""


class Quantization(Table):
    """[model.quantization]: with [model.lora], keep the model below the adapter in 4 bits while training (QLoRA). An
    export merges into the model as it was."""

    load_in_4bit: bool = True
    """Four bits for every weight of a linear layer but the output; what bitsandbytes has otherwise is not offered."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Which 16 numbers there are: spaced for normally distributed weights, or a small float."""
    bnb_4bit_use_double_quant: bool = True
    """Quantize the scales of the blocks as well."""
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What weights are unpacked to; auto is train.precision."""


class Model(Table):
    """[model]: what is trained. Either name_or_path or the [model.scratch] table."""

    name_or_path: LocalPath | None = None
    """A Hugging Face model directory."""
    scratch: Verbatim | None = None
    """Keys of a config.json (model_type and sizes): a randomly initialised model."""
    weights_format: Literal["safetensors", "safetensors_or_bin"] = "safetensors"
    """Files that weights are read from. Of .bin files (pickles) only tensors are taken; no code in them ever runs."""
    torch_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the exported weights: auto is the checkpoint's own, or float32 for a scratch model."""
    attn_implementation: Literal["auto", "flash_attention_2", "varlen", "sdpa"] = "auto"
    """Varlen attention: auto takes flash-attn where installed, else PyTorch's kernel on CUDA, else SDPA by document."""

    max_position_embeddings: PositiveInt | None = None
    """Longest document in tokens, where the model was made for shorter ones; rotary positions are scaled linearly by
    the factor rounded up, unless rope_scaling says otherwise. The exported model has them."""
    rope_scaling: Verbatim | None = None
    """How rotary positions are scaled, such as `{ rope_type = "yarn", factor = 2.0 }`, instead of as the model has
    it."""
    lora: Lora | None = None
    """Train an adapter instead of every parameter."""
    quantization: Quantization | None = None
    """Keep the model below the adapter in 4 bits."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.name_or_path is None) == (self.scratch is None):
            raise ValueError("expected either name_or_path or the table [model.scratch]")
        return self


class Tokenizer(Table):
    """[tokenizer]: text to token ids."""

    name_or_path: LocalPath | None = None
    """A directory with tokenizer.json or tokenizer.model; by default the model's."""
