"""The tables of a pipeline TOML: one model per table, one documented field per key.

A default is a recommendation; a key without one is a decision the user has to make. Sizes are integers in
tokens, packs, steps or bytes; ratios that decide bytes (weights) are exact decimals, all other reals are floats.
"""

import math
import os
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipelines.toml_text import KeyPath, spell_key, spell_value

_LONGEST = 2**31 - 1  # tokens of a sample are counted in 32 bits
_MOST_TOKENS = 2**30  # token positions inside a shard are 32-bit, and its last pack may pass shard_tokens


def fault(finding: str, *path: str | int) -> PydanticCustomError:
    """A validator's complaint about the key at `path` below its table; the reader adds the key's place and value."""
    return PydanticCustomError("fault", "{finding}", {"finding": finding, "path": path})


def _real(value: object) -> object:
    if isinstance(value, Decimal) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def _exact(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if isinstance(value, Decimal) and not (value.is_finite() and abs(value.adjusted()) <= 30):
        raise ValueError("expected a finite number of usual size")
    return value


def _whole(value: object) -> object:
    # Python takes true and 1.0 for 1, and so would a Literal.
    if isinstance(value, bool | float | Decimal):
        raise PydanticCustomError("kind", "not a whole number")
    return value


def _pair(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _json(value: Any, *, path: KeyPath = ()) -> Any:
    if isinstance(value, dict):
        return {key: _json(child, path=(*path, key)) for key, child in value.items()}
    if isinstance(value, list):
        return [_json(child, path=(*path, index)) for index, child in enumerate(value)]
    if isinstance(value, Decimal):
        value = float(value)
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise fault("expected text, a finite number, true or false", *path)
    return value


def _columns(value: dict[str, Any]) -> dict[str, Any]:
    for key, name in value.items():
        if not isinstance(name, str):
            raise fault("expected text in quotes", key)
    return value


def _local_path(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        value = expand(value)
    if not isinstance(value, str | Path):
        return value
    if str(value).startswith("~"):
        raise ValueError("~ is not expanded here; write ${env:HOME} instead")
    base = Path(info.context["base"] if info.context else "").resolve()
    # The TOML's folder is resolved and the rest is taken as written: a linked data file keeps its own name.
    path = Path(os.path.normpath(base / value))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _pattern(value: str) -> str:
    parts = value.split("/")
    if {"", ".", ".."} & set(parts) or parts[-1] == "**":
        raise ValueError("expected a pattern below the source's directory, such as **/*.jsonl")
    return value


def _file_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
        raise ValueError("expected letters, digits, '.', '_' or '-', starting with a letter or digit, at most 128")
    return value


def _python_map(value: str) -> str:
    if not re.fullmatch(r"python(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)(:[A-Za-z_]\w*)", value, re.ASCII):
        raise ValueError("expected python:module:function")
    return value


def expand(text: str) -> str:
    """A path's text with ${env:NAME} and ${env:NAME:-fallback} replaced; an empty variable counts as unset.

    Raises:
        ValueError: if a variable without a fallback is not set, or the result is no path.
    """

    def value(match: re.Match[str]) -> str:
        name, fallback = match.groups()
        found = os.environ.get(name) or fallback
        if found is None:
            raise ValueError(f"environment variable {name} is not set; set it, or write ${{env:{name}:-fallback}}")
        return found

    if re.sub(_VARIABLE, "", text).count("${"):
        raise ValueError("expected ${env:NAME} or ${env:NAME:-fallback}")
    text = re.sub(_VARIABLE, value, text)
    if not text or "\0" in text:
        raise ValueError("expected a path")
    return text


_VARIABLE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")

Real = Annotated[float, BeforeValidator(_real)]
"""A finite binary float, written in TOML as an integer or a decimal."""
PositiveReal = Annotated[float, Field(gt=0), BeforeValidator(_real)]
NonNegativeReal = Annotated[float, Field(ge=0), BeforeValidator(_real)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_real)]
"""A part of a whole."""
Beta = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_real)]
"""How much of a running mean stays at each step."""
PositiveExact = Annotated[Decimal, Field(gt=0), BeforeValidator(_exact)]
"""A finite exact decimal above 0."""
Verbatim = Annotated[dict[str, Any], AfterValidator(_json)]
"""Keys of another project's JSON, passed on as they are."""
Columns = Annotated[dict[str, Any], AfterValidator(_columns)]
"""Names by names."""
Whole = BeforeValidator(_whole)
"""On a Literal of integers: takes neither true nor 1.0 for 1."""
LocalPath = Annotated[Path, BeforeValidator(_local_path)]
"""A path, relative to the TOML file that names it; ${env:NAME} and ${env:NAME:-fallback} are replaced."""
Name = Annotated[str, AfterValidator(_file_name)]
"""A name that is also a file name."""
MapName = Literal[
    "openai",
    "sharegpt",
    "alpaca",
    "alpaca_zh",
    "oasst1",
    "pretrain",
    "default",
    "none",
    "arxiv",
    "code_alpaca",
    "colors",
    "crime_kg_assitan",
    "crime_kg_assitant",
    "crime_kg_assistant",
    "law_reference",
    "medical",
    "msagent_react",
    "openorca",
    "sql",
    "stack_exchange",
    "tiny_codes",
    "wizardlm",
]
"""Shape of a record, as prep/records.py describes each."""
PythonMap = Annotated[str, AfterValidator(_python_map)]
"""`python:module:function`: a map of the user's own."""
Ranks = dict[str, PositiveInt]
"""Ranks by the end of a module's name."""
Alphas = dict[str, PositiveReal]
"""Scales by the end of a module's name."""


class Table(BaseModel):
    """Base of all tables: no coercion, no unknown keys, no change after reading."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # A default is read like a key of the file, also inside a table that is left out: its paths begin there too.
        validate_default=True,
        revalidate_instances="always",
    )


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


class Loss(Table):
    """[template.loss]: which tokens of a conversation are trained on."""

    roles: list[str] = ["assistant"]
    """Roles whose content carries loss; a message's own `loss` field overrides."""
    end_of_turn: bool = True
    """Train the end-of-turn token of those roles."""
    turns: Literal["all", "last"] = "all"
    """Which of those turns are trained."""
    tool_calls: bool = True
    """Train the tool calls of those roles' messages."""
    reasoning: bool = True
    """Train the reasoning_content of those roles' messages."""
    on_empty: Literal["error", "drop", "keep"] = "error"
    """A record without any token to train: stop, drop and count it, or keep it (a stream that is cut needs it)."""


class Template(Table):
    """[template]: conversations to text. One object renders training text, prompts and the exported template."""

    name: str = "tokenizer"
    """`tokenizer` for its own chat template, `custom` for `file`, `none` for plain text, or e.g. `internlm2_chat`."""
    file: LocalPath | None = None
    """With name = "custom": a Jinja file; its {% generation %} blocks say what carries loss."""
    system: str = ""
    """System text of a conversation that has none."""
    bos: Literal["auto", "always", "never"] = "auto"
    """BOS at the beginning: auto as the named template has it, and in plain text if the tokenizer adds one itself."""
    eos: Literal["auto", "always", "never"] = "auto"
    """EOS at the end: auto as the named template has it, and in plain text if the tokenizer has one."""
    special_text: Literal["escape", "error", "allow"] = "escape"
    """Special-token text in data: plain text all the same, an error, or the special token it spells."""
    loss: Loss = Loss()

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        if (self.file is None) == (self.name == "custom"):
            raise fault('goes together with name = "custom"; set both or none of them', "file" if self.file else "name")
        for key, value in (("bos", self.bos), ("eos", self.eos)):
            if value != "auto" and self.name in ("tokenizer", "custom"):
                raise fault("has no effect here, since the chat template itself writes BOS and EOS; remove it", key)
        if self.system and self.name == "none":
            raise fault("has no place in plain text; remove it, or name a template", "system")
        return self


class Source(Table):
    """[[prep.source]]: files of one kind, with their share in the mix.

    Sources with `weight` share the mix; `repeat`, `samples` and `tokens` contribute exactly that on top; with none
    of them a source counts as repeat = 1.
    """

    name: Name = Field(examples=["chat"])
    """Unique; part of every sample's identity, so renaming a source reorders it."""
    path: LocalPath = Field(examples=["data/chat.jsonl"])
    """A file or a directory."""
    format: Literal["auto", "jsonl", "json", "text", "csv", "tsv", "parquet", "arrow", "hf_disk", "ftdp"] = "auto"
    """auto goes by the file's ending: .jsonl .json .txt .csv .tsv (also .gz, .zst), .parquet .arrow .bin (ftdp);
    hf_disk is a folder that `save_to_disk` of the datasets library wrote."""
    files: list[Annotated[str, AfterValidator(_pattern)]] = []
    """Patterns below a directory, such as `**/*.jsonl`; empty takes every file whose ending is known."""
    map: MapName | PythonMap = "openai"
    """Shape of a record; `none` for data that is already tokenized, `python:module:function` for one of your own."""
    columns: Columns = {}
    """Keys of a record under other names: `{ messages = "dialog" }` gives the map as `messages` what the file calls
    `dialog`."""
    split: Name | None = None
    """With hf_disk: which split of a saved DatasetDict."""
    template: str | None = None
    """Name of a template for this source instead of template.name."""
    system: str | None = None
    """Default system text for this source instead of template.system."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Pins the source's data: the digest over its files in order, which manifest.json of prep has for every source."""
    weight: PositiveExact | None = None
    """Share of the mix in prep.mix.unit, relative to the other weights."""
    repeat: PositiveExact | None = None
    """Passes over the source; 2.5 is two passes and half of a third."""
    samples: PositiveInt | None = None
    """Exactly so many samples."""
    tokens: PositiveInt | None = None
    """So many tokens, to within one sample."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        given = [key for key in ("weight", "repeat", "samples", "tokens") if getattr(self, key) is not None]
        if len(given) > 1:
            raise fault(f"{given[0]} is given as well; keep one of weight, repeat, samples and tokens", given[1])
        return self

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        if self.split is not None and self.format != "hf_disk":
            raise fault('is for format = "hf_disk"; remove it', "split")
        if (self.format == "ftdp") != (self.map == "none") and self.format != "auto":
            raise fault(
                'is for data that is already tokenized, format = "ftdp"; name the shape of the records'
                if self.map == "none"
                else 'has no effect on data that is already tokenized; set map = "none"',
                "map",
            )
        if self.map == "none":
            for key in ("columns", "template", "system"):
                if getattr(self, key):
                    raise fault('has no effect with map = "none", where nothing is rendered; remove it', key)
        if self.template == "custom":
            raise fault('name a template, or "tokenizer"; a Jinja file is given once, in [template]', "template")
        return self


class Order(Table):
    """[prep.order]: which files, in which order, and how samples are shuffled."""

    file: LocalPath = Path("data_order.txt")
    """The lock file of the data: one relative path per line."""
    mode: Literal["locked", "write", "scan"] = "locked"
    """locked: the file must exist and match; write: create it if missing; scan: code point order without a file."""
    follow_symlinks: bool = False
    """Walk linked folders as well; links to files are always read."""
    shuffle: Literal["hash", "none", "xtuner"] = "hash"
    """Samples inside a source: by a keyed hash of their identity, as in the files, or file by file as in XTuner."""
    interleave: Literal["fractional", "concat"] = "fractional"
    """Sources spread evenly through the order, or one after another."""


class Mix(Table):
    """[prep.mix]: how much of each weighted source."""

    unit: Literal["tokens", "samples"] = "tokens"
    """What prep.source.weight means."""
    total: NonNegativeInt = 0
    """Size of the weighted part in `unit`; 0: as much as the scarcest source allows without repeating."""
    max_repeat: PositiveExact = Decimal(4)
    """Passes over a source that its weight, samples or tokens may come to; its repeat says them itself."""
    on_shortage: Literal["error", "rescale"] = "error"
    """If the total asks for more passes than that: refuse it, or lower it to what they give."""


class PackTable(Table):
    """[prep.pack]: samples into packs."""

    capacity: PositiveInt = Field(le=_MOST_TOKENS, examples=[32_768])
    """Tokens per pack, and so the longest context the trainer sees."""
    strategy: Literal["in_order", "best_fit", "concat_split", "none"] = "in_order"
    """in_order puts each sample in turn where it fits best, so packs are as mixed as the samples, and where that would
    waste more than 1/64 packs runs of 16,384 samples by length; best_fit plans by length, which fills better still but
    gathers equally long samples; concat_split cuts the stream every `capacity` tokens; none is one sample a pack."""
    scope: Literal["source", "file", "window", "global"] = "source"
    """Which samples may share a pack. With source or file, adding one leaves the packs of the others unchanged."""
    window: PositiveInt = 65_536
    """With scope = "window": consecutive samples that are packed together, so the data keeps its order beyond them."""
    drop_last: bool = False
    """With concat_split: leave out the last pack of each scope when it is not full."""
    cross_sample_attention: bool = False
    """With concat_split: a pack is one document, its samples attend to each other, as with InternEvo's
    pack_sample_into_one."""
    attention_window: PositiveInt | None = None
    """With concat_split: attention and positions begin anew after so many tokens of a sample, or of a pack that is one
    document, as with InternEvo's seq_len below its packed_length."""

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        if self.scope == "window" and self.strategy not in ("in_order", "best_fit"):
            raise fault(f'is for strategy = "in_order" or "best_fit"; use "global" with "{self.strategy}"', "scope")
        if self.scope != "window" and "window" in self.model_fields_set:
            raise fault(f'has no effect with scope = "{self.scope}"; set scope = "window" or remove it', "window")
        if self.attention_window is not None and self.attention_window >= self.capacity:
            raise fault(
                f"has no effect, since a pack takes {self.capacity} tokens; lower or remove it", "attention_window"
            )
        for key in ("drop_last", "cross_sample_attention", "attention_window"):
            if getattr(self, key) and self.strategy != "concat_split":
                raise fault(f'is for strategy = "concat_split", not "{self.strategy}"; remove it', key)
        return self


class Output(Table):
    """[prep.output]: the shards."""

    shard_tokens: PositiveInt = Field(default=67_108_864, le=_MOST_TOKENS)
    """Tokens per shard before the next begins."""


class Eval(Table):
    """[prep.eval]: samples held out of training."""

    fraction: Annotated[Decimal, Field(ge=0, lt=1), BeforeValidator(_exact)] = Decimal(0)
    """Share of every source's records that is held out, by a hash of each one's identity: a record stays on its side
    whatever else comes or goes."""


class Prep(Table):
    """[prep]: raw or tokenized data into packed shards."""

    source: list[Source] = Field(min_length=1)
    pack: PackTable
    max_length: PositiveInt | None = None
    """Longest sample in tokens; by default the pack's capacity, and without a limit with concat_split."""
    min_length: NonNegativeInt = 0
    """Shorter samples are dropped and counted."""
    max_samples: NonNegativeInt = 0
    """Of every source the first so many samples of its hash order, whatever is added behind them; 0: all."""
    overlength: Literal["error", "truncate_right", "truncate_left", "split", "drop"] = "error"
    """What happens to a record above max_length; every count is reported."""
    on_bad_record: Literal["error", "skip"] = "error"
    """Stop at a faulty record, or write it to rejects.jsonl with its place and reason and go on."""
    max_bad_fraction: Share = 0.01
    """With on_bad_record = "skip": stop when more than this share of the records is faulty."""
    workers: NonNegativeInt = 0
    """Processes; 0 is one a core. Never changes a byte of output."""
    executor: Literal["local", "ray", "slurm"] = "local"
    """Where records are tokenized: processes of this machine, tasks of a Ray cluster, or the tasks of a Slurm array.
    Never changes a byte of output."""
    fast_tokenizer: Literal["auto", "off"] = "auto"
    """auto: a faster library where it is installed and gives exactly the tokens of this data that tokenizers gives.
    Never changes a byte of the shards."""
    max_record_bytes: PositiveInt = 16_777_216
    """Longest input line accepted, in bytes."""
    order: Order = Order()
    mix: Mix = Mix()
    eval: Eval = Eval()
    output: Output = Output()

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [source.name for source in self.source]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise fault("another source has this name; give it one of its own", "source", index, "name")
        return self

    @property
    def longest_sample(self) -> int:
        """Tokens of the longest sample taken as it is."""
        return self.max_length or (_LONGEST if self.pack.strategy == "concat_split" else self.pack.capacity)

    @model_validator(mode="after")
    def _mix_has_effect(self) -> Self:
        if self.mix.total and all(source.weight is None for source in self.source):
            raise fault("is shared by the sources with a weight, and none has one; remove it", "mix", "total")
        if self.mix.on_shortage == "rescale" and not self.mix.total:
            raise fault("has no effect without prep.mix.total; set that, or remove it", "mix", "on_shortage")
        return self

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        capacity, longest = self.pack.capacity, self.longest_sample
        if longest > capacity and self.pack.strategy != "concat_split":
            raise fault(f"a sample must fit a pack, and prep.pack.capacity is {capacity}; lower one", "max_length")
        if self.min_length > longest:
            raise fault(f"every sample would be dropped, since the longest has {longest} tokens", "min_length")
        return self


class Optimizer(Table):
    """[train.optimizer]: how gradients change the weights."""

    type: (
        Literal[
            "adamw",
            "adam",
            "adamax",
            "nadam",
            "radam",
            "sgd",
            "rmsprop",
            "adagrad",
            "adadelta",
            "asgd",
            "rprop",
            "adafactor",
            "adamw_8bit",
            "paged_adamw_32bit",
        ]
        | PythonMap
    ) = "adamw"
    """An optimizer of PyTorch by name, of bitsandbytes (adamw_8bit, paged_adamw_32bit), or `python:module:Class`. One
    that does not go by element is refused where ZeRO would cut its matrices."""
    options: Verbatim = {}
    """Further settings of that optimizer, such as `{ momentum = 0.9 }` of sgd; those not given are its own."""
    lr: PositiveReal = Field(examples=[Decimal("2e-5")])
    """Peak learning rate."""
    betas: Annotated[tuple[Beta, Beta], BeforeValidator(_pair)] = (0.9, 0.95)
    """How much of the running means of gradient and squared gradient stays at each step, in the Adam family."""
    eps: PositiveReal = 1e-8
    """Added to the root of the squared gradients' mean, in the Adam family; others have a default of their own."""
    weight_decay: NonNegativeReal = 0.0
    """Share of a decayed parameter taken off at each step, times the learning rate."""
    no_decay: list[str] = ["bias", "norm"]
    """Parameters whose name contains one of these are not decayed."""


class Scheduler(Table):
    """[train.scheduler]: linear warm-up into one of the usual shapes."""

    type: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape after the warm-up: from the peak to min_lr, constant at the peak, or constant with a line to min_lr at the
    end (wsd)."""
    warmup_ratio: Share = 0.03
    """Share of all steps spent warming up; not together with warmup_steps."""
    warmup_steps: NonNegativeInt | None = None
    """Steps spent warming up."""
    warmup_start_factor: Share = 1e-5
    """Learning rate of the first step over the peak."""
    min_lr: NonNegativeReal = 0.0
    """Learning rate of the last step."""
    decay_ratio: Annotated[float, Field(gt=0, le=1), BeforeValidator(_real)] = 0.1
    """With type = "wsd": share of the steps after the warm-up in which the rate falls."""
    interval: Literal["step", "epoch"] = "step"
    """epoch: after the warm-up the rate changes only where an epoch begins."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps is not None and "warmup_ratio" in self.model_fields_set:
            raise fault("warmup_ratio is given as well; keep one", "warmup_steps")
        return self

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        if self.type != "wsd" and self.decay_ratio != Scheduler.model_fields["decay_ratio"].default:
            raise fault(f'is for type = "wsd", not "{self.type}"; remove it', "decay_ratio")
        if self.type == "constant":
            for key in ("min_lr", "interval"):
                if getattr(self, key) != Scheduler.model_fields[key].default:
                    raise fault('has no effect with type = "constant"; remove it', key)
        return self


class Deepspeed(Table):
    """[train.deepspeed]: how DeepSpeed shards the training state."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], Whole] = 0
    """What is sharded over ranks: 1 optimizer state, 2 gradients as well, 3 parameters as well. In half precision 2 is
    the least."""
    preset: (
        Literal[
            "deepspeed_zero1",
            "deepspeed_zero2",
            "deepspeed_zero2_offload",
            "deepspeed_zero3",
            "deepspeed_zero3_offload",
        ]
        | None
    ) = None
    """zero_stage and both offloads by XTuner's name for them; a key that stands beside it wins."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where optimizer state and float32 weights are kept and stepped; cpu needs a zero_stage above 0. Never changes the
    loss."""
    offload_param: Literal["none", "cpu"] = "none"
    """Where parameters wait until they are needed; cpu needs zero_stage = 3. Never changes the loss."""
    overlap_comm: bool = True
    """Reduce gradients while the backward pass goes on, for one more bucket of memory."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer as they come, so that memory does not fragment."""
    extra: Verbatim = {}
    """Any other DeepSpeed key, verbatim; keys that this file owns are refused."""

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_gaps(cls, table: Any) -> Any:
        preset = table.get("preset") if isinstance(table, dict) else None
        return {**_PRESETS.get(preset, {}), **table} if isinstance(preset, str) else table

    @model_validator(mode="after")
    def _offload_is_possible(self) -> Self:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise fault("needs a zero_stage of 1, 2 or 3", "offload_optimizer")
        if self.offload_param != "none" and self.zero_stage != 3:
            raise fault("needs zero_stage = 3", "offload_param")
        return self

    @model_validator(mode="after")
    def _extra_overrides_nothing(self) -> Self:
        for key, ours in _OWNED_BY_US.items():
            if key in self.extra:
                raise fault(f"this file sets it by {ours}; remove it here", "extra", key)
        zero = self.extra.get("zero_optimization")
        if isinstance(zero, dict) and "stage" in zero:
            path = ("extra", "zero_optimization", "stage")
            raise fault("this file sets it by train.deepspeed.zero_stage; remove it here", *path)
        return self


_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "deepspeed_zero1": {"zero_stage": 1},
    "deepspeed_zero2": {"zero_stage": 2},
    "deepspeed_zero2_offload": {"zero_stage": 2, "offload_optimizer": "cpu"},
    "deepspeed_zero3": {"zero_stage": 3},
    "deepspeed_zero3_offload": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
}

_OWNED_BY_US: Mapping[str, str] = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.global_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "[train.optimizer]",
    "scheduler": "[train.scheduler]",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "sequence_parallel_size": "train.parallel.sequence_parallel_size",
}


class Parallel(Table):
    """[train.parallel]: how one pack is shared out."""

    sequence_parallel_size: PositiveInt = 1
    """Ranks that share each pack, every one of them with a part of its tokens; has to divide the number of ranks.
    Never changes the loss, except that dropout draws other elements."""


class CheckpointTable(Table):
    """[train.checkpoint]: when the training state is saved."""

    save_steps: NonNegativeInt = 500
    """Optimizer steps between checkpoints; 0 saves only the last."""
    save_total_limit: Annotated[Literal[-1] | PositiveInt, Whole] = 2
    """Newest checkpoints kept; -1 keeps all."""


class TrainLog(Table):
    """[train.log]: what is shown while training."""

    steps: PositiveInt = 10
    """Optimizer steps between lines on the terminal; metrics.jsonl has every step."""
    trackers: list[Literal["tensorboard"]] = []
    """Where the numbers of metrics.jsonl are drawn as well: tensorboard, from train/tensorboard."""


class TrainEval(Table):
    """[train.eval]: what is measured between steps."""

    steps: PositiveInt = 500
    """Optimizer steps between evaluations on the samples that prep.eval.fraction holds out; one more follows the last
    step. Never changes the training."""


class Train(Table):
    """[train]: packed shards into checkpoints."""

    global_batch_size: PositiveInt = Field(examples=[64])
    """Packs per optimizer step, on any number of ranks: the only batch size there is."""
    optimizer: Optimizer
    max_epochs: PositiveInt = 1
    """Passes over the packs."""
    max_steps: NonNegativeInt = 0
    """Optimizer steps; 0: from max_epochs."""
    shuffle: Literal["hash", "none", "xtuner"] = "hash"
    """Order of the packs in each epoch; xtuner: as its samplers draw it, the epoch rounded up to whole steps."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass; auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU."""
    nproc_per_node: Literal["auto"] | PositiveInt = "auto"
    """Ranks to start on this machine when no launcher did; auto: one a GPU, or one on a CPU."""
    activation_checkpointing: Literal["none", "full"] = "none"
    """Recompute the layers' activations in the backward pass."""
    fused_loss: bool = True
    """Compute the loss a stretch of targets after the other, so that the logits of a whole pack are never in memory.
    Never changes the loss."""
    max_grad_norm: NonNegativeReal = 1.0
    """Gradients are scaled down to this norm; 0 turns it off."""
    on_nonfinite: Literal["skip_step", "stop"] = "skip_step"
    """When a loss or gradient is no number: leave the weights as they are, count the step and go on (a few times in a
    row at most), or stop. The steps in which fp16 looks for its loss scale are always skipped."""
    error_if_nonfinite: bool = False
    """true is on_nonfinite = "stop" under the name that PyTorch gives it."""
    resume: Literal["auto", "none"] = "auto"
    """auto continues from the newest complete checkpoint of this very run."""
    scheduler: Scheduler = Scheduler()
    parallel: Parallel = Parallel()
    deepspeed: Deepspeed = Deepspeed()
    checkpoint: CheckpointTable = CheckpointTable()
    eval: TrainEval | None = None
    log: TrainLog = TrainLog()


class HfExport(Table):
    """[export.hf]: a directory that plain Transformers loads."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the weights; auto is model.torch_dtype."""
    layout: Literal["auto", "original"] = "auto"
    """Names and fusion of the tensors: auto is as Transformers has them, Llama's for InternLM, InternLM2 and Baichuan;
    original is as those came, for engines that know them."""
    max_shard_size: PositiveInt = 5_000_000_000
    """Bytes per safetensors file."""
    merge_lora: bool = True
    """Add an adapter to the model it was trained on; false is refused, since `adapter` among the targets says so."""


class TurbomindExport(Table):
    """[export.turbomind]: the weight folder that LMDeploy 0.6 to 0.7.3 serves."""

    tp: Annotated[Literal[1, 2, 4, 8], Whole] = 1
    """Tensor-parallel size, frozen into the files."""
    weight_type: Literal["bfloat16", "float16"] = "bfloat16"
    """Number format of the weights."""
    model_name: str | None = None
    """Name under which it is served; by default run.name."""
    chat_template: str = "base"
    """LMDeploy's name of a built-in chat template."""


class ExportVerify(Table):
    """[export.verify]: what is compared after writing."""

    max_abs_diff: NonNegativeReal = 0.0
    """Largest difference accepted between the logits of the export and of the checkpoint's weights, both in the
    exported format. The weights themselves are always compared bit for bit."""
    greedy_tokens: NonNegativeInt = 16
    """Length of the greedy continuations whose tokens and logits are compared; 0 turns it off."""


class ExportEval(Table):
    """[export.eval]: conversations whose last assistant message the exported model must reproduce."""

    file: LocalPath = Field(examples=["data/held-out.jsonl"])
    """JSON lines of OpenAI messages; the last message is the expected answer."""
    max_new_tokens: PositiveInt = 64
    """Tokens generated at most for an answer."""
    min_accuracy: Share = 0.0
    """Share of exact answers below which the export fails its check."""


class Export(Table):
    """[export]: a checkpoint into the weights that others load."""

    checkpoint: Literal["latest"] | NonNegativeInt = "latest"
    """Newest complete checkpoint, or a step."""
    targets: list[Literal["hf", "turbomind", "adapter"]] = Field(default=["hf"], min_length=1)
    """A Hugging Face directory, TurboMind weights, a PEFT directory of the adapter alone (adapter), or several."""
    hf: HfExport = HfExport()
    turbomind: TurbomindExport = TurbomindExport()
    verify: ExportVerify = ExportVerify()
    eval: ExportEval | None = None


class Pipeline(Table):
    """One TOML file. A stage reads its own table and the shared ones above it, nothing else."""

    schema_version: Annotated[Literal[1], Whole] = Field(examples=[1])
    """Version of these keys."""
    extends: list[LocalPath] = []
    """Other files that this one completes, merged in order with this file last: tables merge, the rest replaces."""
    run: Run
    model: Model
    tokenizer: Tokenizer = Tokenizer()
    template: Template = Template()
    prep: Prep
    train: Train | None = None
    """Without it the pipeline ends after prep."""
    export: Export = Export()

    _places: Mapping[KeyPath, object] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        if context:
            self._places = context.get("places", {})

    def cite(self, key: str) -> str:
        """`file:line:column: key = value` of a key such as `prep.source.0.path`, to begin a message about it.

        A key that the file leaves to its default is cited at its table, with the default.
        """
        value: Any = self
        path: KeyPath = ()
        for part in key.split("."):
            step = int(part) if isinstance(value, list | tuple) else part
            value = getattr(value, part) if isinstance(value, BaseModel) else value[step]
            path = (*path, step)
        text = spell_key(path)
        if not isinstance(value[0] if isinstance(value, list) and value else value, BaseModel | dict | None):
            text += f" = {spell_value(value)}"
        while path and path not in self._places:
            path = path[:-1]
        return f"{self._places[path]}: {text}" if path in self._places else text

    @property
    def home(self) -> Path:
        """Where this run writes: work_dir/name."""
        return self.run.work_dir / self.run.name

    @property
    def tokenizer_dir(self) -> Path:
        """The directory tokenization reads."""
        where = self.tokenizer.name_or_path or self.model.name_or_path
        assert where is not None  # _tokenizer_is_somewhere
        return where

    @model_validator(mode="after")
    def _tokenizer_is_somewhere(self) -> Self:
        if self.tokenizer.name_or_path is None and self.model.name_or_path is None:
            raise fault("missing; a [model.scratch] model has no tokenizer of its own", "tokenizer", "name_or_path")
        return self

    @model_validator(mode="after")
    def _xtuner_keeps_every_sample(self) -> Self:
        if self.prep.order.shuffle == "xtuner" and self.template.loss.on_empty == "drop":
            raise fault(
                'prep.order.shuffle = "xtuner" gives the packs of XTuner, which leaves no record out; set "keep"',
                "template", "loss", "on_empty",
            )  # fmt: skip
        return self
