"""Ranks that share a sequence compute what each document alone gives: logits, loss and every gradient."""

from pathlib import Path

import pytest

from tests.train.sequence_parallel.architectures import ARCHITECTURES, EXPERTS, GROUPED, MLA
from tests.train.sequence_parallel.exactness import TOLERANCE, Case, Difference, differences
from tests.train.sequence_parallel.models import MARKDOWN, measure, table

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


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "sizes"), [(4, [1, 2, 4]), (3, [1, 3]), (6, [3, 6])])
def test_any_number_of_heads_and_ranks_is_exact(ranks: int, sizes: list[int], tmp_path: Path) -> None:
    found = differences([case for size in sizes for case in cases(size)], ranks, tmp_path)
    assert {difference.size for difference in found} == set(sizes)
    assert {each.model_type: each for each in found if not each.largest < TOLERANCE} == {}


@pytest.mark.slow
def test_every_architecture_is_exact() -> None:
    found = measure()
    assert [each.model_type for each in found] == list(ARCHITECTURES)
    assert {each.model_type: each for each in found if not each.largest < TOLERANCE} == {}


def test_documentation_names_these_architectures() -> None:
    lines = MARKDOWN.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    header, measured = rows[0], rows[1:]
    assert [row[0] for row in measured] == list(ARCHITECTURES)
    assert all(float(number) < TOLERANCE for row in measured for number in row[-3:])
    # Without its figures, the page is what the table says.
    zeros = [Difference(name, 4, 0, 0, 0) for name in ARCHITECTURES]
    expected = table(zeros, {}).splitlines()
    assert [line for line in lines if not line.startswith(("| ", "Versions"))] == [
        line for line in expected if not line.startswith(("| ", "Versions"))
    ]
    assert header[0] == "model_type"
