"""Ranks that share a sequence compute what each document alone gives: logits, loss and every gradient."""

from pathlib import Path

import pytest

from tests.train.sequence_parallel.architectures import ARCHITECTURES, EXPERTS, GROUPED, MLA
from tests.train.sequence_parallel.exactness import TOLERANCE, Case, differences

pytestmark = pytest.mark.slow

HEADS = [(8, 8), (8, 2), (6, 2), (6, 3)]
"""Query heads, and key and value heads: as many as ranks or fewer, divisible by them or not."""


def cases(size: int) -> list[Case]:
    llamas = [
        Case("llama", {**GROUPED, "num_attention_heads": heads, "num_key_value_heads": of_keys}, size)
        for heads, of_keys in HEADS
    ]
    gemma2, gpt_oss = ARCHITECTURES["gemma2"].keys, ARCHITECTURES["gpt_oss"].keys
    return [
        *llamas,
        Case("gemma2", gemma2, size),
        Case("gpt_oss", {**gpt_oss, "num_attention_heads": 8}, size),
        Case("gpt_oss", gpt_oss, size),
        Case("deepseek_v3", {**MLA, **EXPERTS}, size),
    ]


@pytest.mark.parametrize(("ranks", "sizes"), [(4, [1, 2, 4]), (3, [1, 3])])
def test_any_number_of_heads_and_ranks_is_exact(ranks: int, sizes: list[int], tmp_path: Path) -> None:
    found = differences([case for size in sizes for case in cases(size)], ranks, tmp_path)
    assert {difference.size for difference in found} == set(sizes)
    assert {each.model_type: each for each in found if not each.largest < TOLERANCE} == {}


def test_every_architecture_is_exact(tmp_path: Path) -> None:
    every = [Case(name, architecture.keys, size=4) for name, architecture in ARCHITECTURES.items()]
    found = differences(every, 4, tmp_path)
    assert [each.model_type for each in found] == list(ARCHITECTURES)
    assert {each.model_type: each for each in found if not each.largest < TOLERANCE} == {}
