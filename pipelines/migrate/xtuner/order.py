"""Which packs a step sees, of XTuner's samplers and seeds."""

from typing import Any

from pipelines.migrate.config_tree import Node
from pipelines.migrate.draft import Draft
from pipelines.migrate.xtuner.names import last_name
from pipelines.toml_file import Written

_USUAL = 1024  # seed of build_packed_dataset, and the only one of InternRepoSampler


def map_order(draft: Draft, *, exact: bool) -> None:
    """run.seed, train.shuffle and train.shuffle_seed.

    Args:
        draft: to write to.
        exact: whether packs are those of build_packed_dataset, whose seed is then run.seed.
    """
    config = draft.config
    sampler = config.at("train_dataloader.sampler")
    kind, shuffle = sampler.at("type") if sampler else None, sampler.at("shuffle") if sampler else None
    own, general = sampler.at("seed") if sampler else None, config.at("randomness.seed")
    known = SAMPLERS.get(last_name(kind.get("")) if kind else "")
    if not exact:
        draft.map(general, "run.seed")
    if shuffle is not None and shuffle.get("") is False:
        draft.map(shuffle, "train.shuffle", "none")
        draft.same(kind, "train.shuffle")
        draft.drop(own, "packs are not shuffled")
    elif known == "internrepo":
        draft.map(kind, "train.shuffle", known)
        draft.same(shuffle, "train.shuffle")
        _seed(draft, own, _USUAL)
        draft.drop(own, f"it is {_USUAL} there, whatever is said")
    elif known:
        _default_sampler(draft, kind, own if _number(own) is not None else general, exact=exact)
        draft.same(shuffle, "train.shuffle")
    elif kind is not None:
        draft.decide(kind, "no such order of packs here; see train.shuffle")
    draft.same(shuffle, "packs are shuffled")
    for node in (own, general):
        draft.same(node, "not set") if _number(node) is None else draft.drop(node, "run.seed is that of the packs")


def _default_sampler(draft: Draft, kind: Node | None, seed: Node | None, *, exact: bool) -> None:
    """A permutation by the sampler's seed, or the general one, or else by one that was drawn by chance."""
    if _number(seed) is not None:
        draft.map(kind, "train.shuffle", "xtuner")
        _seed(draft, seed, _number(seed))
    elif exact:
        draft.map(kind, "train.shuffle", "xtuner")
        draft.notes.append("train.shuffle_seed: that run's sampler drew its seed by chance; its log says it")
    else:
        draft.same(kind, "packs are shuffled, by a seed drawn by chance there")


def _seed(draft: Draft, node: Node | None, value: Any) -> None:
    """The seed of the sampler, where it is not run.seed."""
    root = draft.keys.get(("run", "seed"), Written(_USUAL)).value
    if value == root:
        draft.same(node, "run.seed")
    elif node is not None and node.get("") == value:
        draft.map(node, "train.shuffle_seed")
    else:
        draft.put("train.shuffle_seed", value, "its sampler's")


def _number(node: Node | None) -> int | None:
    value = node.get("") if node else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


SAMPLERS = {
    "DefaultSampler": "xtuner",
    "SequenceParallelSampler": "xtuner",
    "InternRepoSampler": "internrepo",
    "InternlmRepoSampler": "internrepo",
}
