"""What a batch of InternEvo or XTuner comes to here: their arithmetic, line by line, and the keys that give the same.

Their config files are Python. They are read as syntax and never run (`pipelines/migrate/python_config.py`); what is no
number there is left out.

InternEvo (its docs/usage and `internlm/initialize/launch.py`): GPUs / (tensor x pipeline) ranks each take micro_num
micro-batches a step, of micro_bsz sequences of seq_len tokens packed into one.

XTuner 0.1 (`xtuner/configs`): GPUs / sequence_parallel_size groups each take accumulative_counts batches of batch_size
packs of max_length tokens. Its configs multiply accumulative_counts by sequence_parallel_size themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.errors import ConfigError
from pipelines.migrate import python_config
from pipelines.migrate.config_tree import Node

Where = Literal["internevo", "xtuner"]
_NAMES: Mapping[Where, Mapping[str, tuple[str, ...]]] = {
    "internevo": {
        "micro_num": ("data.micro_num",),
        "micro_bsz": ("data.micro_bsz",),
        "seq_len": ("data.seq_len", "SEQ_LEN"),
        "tp": ("parallel.tensor.size", "parallel.tensor"),
        "pp": ("parallel.pipeline.size", "parallel.pipeline"),
        "wp": ("parallel.weight.size",),
        "zero1": ("parallel.zero1.size", "parallel.zero1"),
        "gpus": (),
    },
    "xtuner": {
        "batch_size": ("train_dataloader.batch_size", "batch_size"),
        "accumulative_counts": (
            "optim_wrapper.accumulative_counts",
            "strategy.gradient_accumulation_steps",  # of the copy in its work_dir
            "accumulative_counts",
        ),
        "max_length": ("train_dataloader.dataset.packed_length", "train_dataloader.dataset.max_length", "max_length"),
        "sp": ("sequence_parallel_size",),
        "gpus": (),
    },
}
"""What is asked of each, and the keys of its config that say it."""
_DEFAULTS = {"micro_bsz": 1, "tp": 1, "pp": 1, "wp": 1, "zero1": -1, "batch_size": 1, "accumulative_counts": 1, "sp": 1}


@dataclass(frozen=True)
class Batch:
    """One optimizer step of a trainer, and the same here."""

    theirs: Mapping[str, int]
    lines: tuple[str, ...]
    """The arithmetic."""
    sequences: int
    tokens: int
    keys: Mapping[str, int]
    """Keys of the TOML that give it."""
    notes: tuple[str, ...]


def batch_of(where: Where, given: str, *, gpus: int | None = None) -> Batch:
    """The batch that settings mean, written as `micro_num=4,tp=2,...`, or the path of a config file.

    Args:
        gpus: ranks, where the settings do not say.
    Raises:
        ConfigError: for a setting that is unknown, missing or no positive number, or GPUs that do not divide.
    """
    read = _settings(where, given, f"--from-{where}")
    if gpus is not None:
        read.setdefault("gpus", gpus)
    return batch(where, read, cited=f"--from-{where}")


def batch(where: Where, settings: Mapping[str, int], *, cited: str) -> Batch:
    """The batch that settings mean, by the names of `_NAMES`.

    Raises:
        ConfigError: for a setting that is missing or no positive number, or GPUs that do not divide; begins with
            `cited`.
    """
    read = dict(settings)
    for name in _NAMES[where]:
        if name not in read and name in _DEFAULTS:
            read[name] = _DEFAULTS[name]
        if name not in read:
            remedy = "give --ranks" if name == "gpus" else f"write {name}=..."
            raise ConfigError(f"{cited}: {name} is missing; {remedy}")
        if read[name] < 1 and name != "zero1":
            raise ConfigError(f"{cited}: {name} = {read[name]}: expected a number of 1 or more")
    return _internevo(read, cited) if where == "internevo" else _xtuner(read, cited)


def settings_of(where: Where, config: Node) -> dict[str, int]:
    """What a config says of its batch."""
    read = {}
    for name, keys in _NAMES[where].items():
        found = [config.get(key) for key in keys]
        number = next((one for one in found if isinstance(one, int) and not isinstance(one, bool)), None)
        if number is not None:
            read[name] = number
    return read


def text(batch: Batch) -> str:
    """The arithmetic and the keys, as lines."""
    keys = [f"{name} = {value:_}" for name, value in batch.keys.items()]
    return "\n".join([*batch.lines, "here:", *(f"  {key}" for key in keys), *(f"note: {note}" for note in batch.notes)])


def _internevo(read: Mapping[str, int], cited: str) -> Batch:
    gpus, tensor, stages = read["gpus"], read["tp"], read["pp"]
    data = _divided(cited, gpus, tensor * stages, f"tensor {tensor} x pipeline {stages}")
    packs = read["micro_num"] * data
    capacity = read["micro_bsz"] * read["seq_len"]
    sequences = packs * read["micro_bsz"]
    keys = {
        "prep.pack.capacity": capacity,
        "train.global_batch_size": packs,
        "train.parallel.sequence_parallel_size": tensor,
        "train.deepspeed.zero_stage": 3 if tensor * stages * read["wp"] > 1 else 2,
    }
    notes = []
    if read["micro_bsz"] > 1:
        keys["prep.pack.attention_window"] = read["seq_len"]
        notes.append('prep.pack.attention_window takes prep.pack.strategy = "concat_split", which is InternEvo\'s')
    if stages > 1:
        notes.append("there are no pipeline stages here: ZeRO 3 shares the layers' weights instead")
    if tensor > 1:
        notes.append(
            f"the {tensor} tensor ranks become {tensor} ranks that share each pack; any other size trains the same"
        )
    if read["wp"] > 1:
        notes.append("weight parallelism becomes ZeRO 3")
    shards = data if read["zero1"] < 1 else read["zero1"]
    notes.append(
        f"InternEvo's ZeRO 1 shards the optimizer over {shards} ranks; here over all {gpus}, "
        "and ZeRO 1 in half precision runs as ZeRO 2"
    )
    lines = (
        f"data parallel   {gpus} GPUs / (tensor {tensor} x pipeline {stages}) = {data}",
        f"a pack          micro_bsz {read['micro_bsz']} x seq_len {read['seq_len']:,} = {capacity:,} tokens",
        f"packs a step    micro_num {read['micro_num']} x data parallel {data} = {packs:,}",
        f"sequences       {packs:,} x micro_bsz {read['micro_bsz']} = {sequences:,} a step",
        f"tokens          {sequences:,} x {read['seq_len']:,} = {sequences * read['seq_len']:,} a step",
    )
    return Batch(read, lines, sequences, sequences * read["seq_len"], keys, tuple(notes))


def _xtuner(read: Mapping[str, int], cited: str) -> Batch:
    gpus, shared = read["gpus"], read["sp"]
    groups = _divided(cited, gpus, shared, f"sequence_parallel_size {shared}")
    packs = read["batch_size"] * read["accumulative_counts"] * groups
    tokens = packs * read["max_length"]
    keys = {
        "prep.pack.capacity": read["max_length"],
        "train.global_batch_size": packs,
        "train.parallel.sequence_parallel_size": shared,
    }
    notes = [
        "accumulative_counts is the number that its config ends up with, after `*= sequence_parallel_size`",
        "XTuner averages the loss of each rank and micro-batch; here the mean is over all loss tokens of the step",
    ]
    lines = (
        f"groups          {gpus} GPUs / sequence_parallel_size {shared} = {groups}",
        f"packs a step    batch_size {read['batch_size']} x accumulative_counts {read['accumulative_counts']} x "
        f"groups {groups} = {packs:,}",
        f"tokens          {packs:,} x max_length {read['max_length']:,} = {tokens:,} a step",
    )
    return Batch(read, lines, packs, tokens, keys, tuple(notes))


def _divided(cited: str, gpus: int, by: int, what: str) -> int:
    if gpus % by:
        raise ConfigError(f"{cited}: gpus = {gpus}: {what} does not divide it; give the GPUs of the whole run")
    return gpus // by


def _settings(where: Where, given: str, option: str) -> dict[str, int]:
    known = _NAMES[where]
    if "=" not in given:
        return settings_of(where, python_config.read(Path(given), cited=f"{option} {given}"))
    read = {}
    for part in given.split(","):
        name, _, value = part.strip().partition("=")
        if name not in known:
            raise ConfigError(f"{option}: {name or part}: no such setting; there are {', '.join(known)}")
        try:
            read[name] = int(value.replace("_", ""))
        except ValueError:
            raise ConfigError(f"{option}: {name} = {value or 'nothing'}: expected a whole number") from None
    return read
