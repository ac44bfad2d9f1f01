"""Packs of a step, of XTuner's batch size, accumulation and sequence parallelism."""

from pipelines.batches_elsewhere import batch
from pipelines.migrate.draft import Draft
from pipelines.migrate.xtuner.iterations import ACCUMULATED
from pipelines.toml_file import Written


def map_batch(draft: Draft, gpus: int | None) -> None:
    """train.global_batch_size and sequence_parallel_size."""
    config = draft.config
    read: dict[str, int] = {"max_length": 1}
    for name, paths in BATCH.items():
        nodes = [node for path in paths if (node := config.at(path)) is not None]
        value = nodes[0].get("") if nodes else 1
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            read[name] = value
        else:
            draft.decide(nodes[0] if nodes else None, f"{name} is not known; see train.global_batch_size")
    shared = read.get("sp", 1)
    read["gpus"] = gpus or shared
    packs = batch("xtuner", read, cited=f"{draft.name}: --gpus").keys["train.global_batch_size"]
    arithmetic = (
        f"batch_size {read.get('batch_size', 1)} x accumulative_counts {read.get('accumulative_counts', 1)} x "
        f"{read['gpus']} GPUs / sequence_parallel_size {shared}"
    )
    for name in ("accumulative_counts", "batch_size"):
        node = next((node for path in BATCH[name] if (node := config.at(path)) is not None), None)
        if node is not None and node.finding is None:
            draft.map(node, "train.global_batch_size", packs)
    draft.keys[("train", "global_batch_size")] = Written(packs, f"was: {arithmetic}")
    if gpus is None:
        draft.ask("train.global_batch_size", packs, f"was: {arithmetic}; give --gpus of the run, which multiply it")
    draft.map(config.at("sequence_parallel_size"), "train.parallel.sequence_parallel_size")


BATCH = {
    "batch_size": ("train_dataloader.batch_size", "batch_size"),
    "accumulative_counts": ACCUMULATED,
    "sp": ("sequence_parallel_size",),
}
