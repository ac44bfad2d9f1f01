"""Which packs a step sees, of XTuner's samplers and seeds."""

from pipelines.migrate.draft import Draft
from pipelines.migrate.xtuner.names import last_name
from pipelines.toml_file import Written


def map_order(draft: Draft, *, exact: bool) -> None:
    """run.seed and train.shuffle.

    Args:
        draft: to write to.
        exact: whether packs are those of build_packed_dataset, whose seed is 1024.
    """
    config = draft.config
    sampler = config.at("train_dataloader.sampler")
    kind, shuffle = sampler.at("type") if sampler else None, sampler.at("shuffle") if sampler else None
    seed = sampler.at("seed") if sampler else None
    general = config.at("randomness.seed")
    for node in (seed, general):
        if node is None or node.get("") is None:
            draft.same(node, "not set")
        elif ("run", "seed") not in draft.keys and not (exact and node.get("") != 1024):
            draft.map(node, "run.seed")
        elif node.get("") != draft.keys.get(("run", "seed"), Written(1024)).value:
            draft.decide(node, "there is one seed here, run.seed, and that of the packs is taken")
        else:
            draft.same(node, "run.seed")
    if shuffle is not None and shuffle.get("") is False:
        draft.map(shuffle, "train.shuffle", "none")
        draft.same(kind, "train.shuffle")
        return
    known = SAMPLERS.get(last_name(kind.get("")) if kind else "")
    seeded = exact or any(node is not None and isinstance(node.get(""), int) for node in (seed, general))
    if known == "internrepo" and draft.keys.get(("run", "seed"), Written(1024)).value != 1024:
        draft.decide(kind, "its seed is always 1024, and that of the packs another; there is one seed here, run.seed")
    elif known and seeded:
        draft.map(kind, "train.shuffle", known)
        draft.same(shuffle, "train.shuffle")
        unseeded = all(node is None or node.get("") is None for node in (seed, general))
        if known == "xtuner" and unseeded:
            draft.notes.append("the sampler of that run had a seed drawn by chance; its log says it: set run.seed")
    elif known or kind is None:
        draft.same(kind, "packs are shuffled, by chance there")
        draft.same(shuffle, "packs are shuffled")
    else:
        draft.decide(kind, "no such order of packs here; see train.shuffle")


SAMPLERS = {
    "DefaultSampler": "xtuner",
    "SequenceParallelSampler": "xtuner",
    "InternRepoSampler": "internrepo",
    "InternlmRepoSampler": "internrepo",
}
