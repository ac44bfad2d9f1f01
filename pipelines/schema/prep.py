"""[prep]: data into shards."""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from pipelines.schema.values import (
    LONGEST,
    MOST_TOKENS,
    Columns,
    LocalPath,
    MapName,
    Name,
    PositiveExact,
    PythonMap,
    Share,
    Table,
    exact,
    fault,
    pattern,
)


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
    files: list[Annotated[str, AfterValidator(pattern)]] = []
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

    capacity: PositiveInt = Field(le=MOST_TOKENS, examples=[32_768])
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

    shard_tokens: PositiveInt = Field(default=67_108_864, le=MOST_TOKENS)
    """Tokens per shard before the next begins."""


class Eval(Table):
    """[prep.eval]: samples held out of training."""

    fraction: Annotated[Decimal, Field(ge=0, lt=1), BeforeValidator(exact)] = Decimal(0)
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
        return self.max_length or (LONGEST if self.pack.strategy == "concat_split" else self.pack.capacity)

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
