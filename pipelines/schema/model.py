"""The shared tables: [run], [model] and [tokenizer]."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from pipelines.schema.values import (
    Alphas,
    Beta,
    DownloadArguments,
    LocalPath,
    Name,
    PositiveReal,
    Ranks,
    Revision,
    SpecialTexts,
    Table,
    Verbatim,
    Where,
    fault,
)

COMMIT = r"[0-9a-f]{40}"
"""A commit hash, which says what a revision holds for good."""


class Run(Table):
    """[run]: what this run is called and where its files go."""

    name: Name = Field(examples=["my-run"])
    """Directory of this run below work_dir."""
    work_dir: LocalPath = Path("work")
    """Everything a run writes is below it."""
    seed: NonNegativeInt = 1024
    """The root of every seed; train.shuffle_seed alone can be another."""
    offline: bool = False
    """Never open a network connection: a hub's repository has to be in the local cache, where `packtrain fetch` puts
    it."""


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
    """[model.quantization]: with [model.lora], keep the model below the adapter in 4 bits while training (QLoRA).
    export.merge_base says what an export merges into."""

    load_in_4bit: bool = True
    """Four bits for every weight of a linear layer but the output; what bitsandbytes has otherwise is not offered."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """Which 16 numbers there are: spaced for normally distributed weights, or a small float."""
    bnb_4bit_use_double_quant: bool = True
    """Quantize the scales of the blocks as well."""
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What weights are unpacked to; auto is train.precision."""


class Origin(Table):
    """Where files come from: a directory here, or a repository of a hub."""

    source: Literal["local", "huggingface", "modelscope", "openmind"] = "local"
    """What name_or_path names: a directory here, or a repository of Hugging Face, ModelScope or openMind."""
    name_or_path: Where | None = None
    """A directory, or a repository such as `org/name`."""
    revision: Revision | None = None
    """Commit, tag or branch of the repository; by default its main branch. The commit it stands for is recorded."""
    source_args: DownloadArguments = {}
    """More arguments of the hub's download, such as `{ endpoint = "https://...", cache_dir = "/data/hub" }`. Secrets
    by name: `token_env = "HUB_TOKEN"` gives the argument `token` what that environment variable holds."""

    @model_validator(mode="after")
    def _a_directory_has_no_revision(self) -> Self:
        if self.source == "local":
            for key in ("revision", "source_args"):
                if getattr(self, key):
                    raise fault('belongs to a hub\'s repository; set source = "huggingface", or remove it', key)
        elif self.name_or_path is None:
            raise fault("without a repository; set name_or_path, or remove it", "source")
        return self


class Model(Origin):
    """[model]: what is trained. Either name_or_path or the [model.scratch] table."""

    name_or_path: Where | None = None
    """A Hugging Face model directory, or with `source` a repository such as `org/name`."""
    trust_remote_code: bool = False
    """Run the code that the model comes with; a repository has to be pinned by a commit as its revision. Without, no
    code of it runs, and Transformers has to know the model itself."""
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

    @model_validator(mode="after")
    def _code_is_pinned(self) -> Self:
        if self.trust_remote_code and self.scratch is not None:
            raise fault("a [model.scratch] model comes with no code; remove it", "trust_remote_code")
        if self.trust_remote_code and self.lora is not None:
            raise fault("an adapter on a model with its own code is not supported; train it whole", "trust_remote_code")
        if self.trust_remote_code and self.source != "local" and not re.fullmatch(COMMIT, self.revision or ""):
            raise fault(
                "the code that runs has to be one that was looked at; set model.revision to its commit, 40 hexadecimal "
                "digits",
                "trust_remote_code",
            )
        return self


class Tokenizer(Origin):
    """[tokenizer]: text to token ids. No code of a tokenizer ever runs."""

    name_or_path: Where | None = None
    """A directory with tokenizer.json or tokenizer.model, or with `source` a repository; by default the model's."""
    add_special_tokens: SpecialTexts = []
    """New special tokens, given the ids behind the others in this order. A template may use them, and text that spells
    one stays text. The model's embedding gets a row for each, the mean of its rows."""
    pad_vocab_multiple: PositiveInt = 1
    """The embedding's rows are made a multiple of this, with rows that no token has."""

    @model_validator(mode="after")
    def _of_a_repository_of_its_own(self) -> Self:
        if self.name_or_path is None and self.revision is not None:
            raise fault("the model's own tokenizer is of model.revision; set tokenizer.name_or_path too", "revision")
        return self
