from collections import Counter
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError, DataError
from pipelines.schema import Prep
from prep.mix import Size, amounts, arrange
from prep.shuffle import sample_order
from tests.prep.samples import identities, made_up

Table = dict[str, Any]
Identity = tuple[str, str, int, int]


def prep(*sources: Table, order: Table | None = None, **mix: Any) -> Prep:
    tables = [{"name": f"s{number}", "path": "x", **source} for number, source in enumerate(sources)]
    return Prep.model_validate({"source": tables, "pack": {"capacity": 64}, "mix": mix, "order": order or {}})


def weight(value: str | int) -> Table:
    return {"weight": Decimal(value)}


def mixed(
    counts: dict[str, int], *sources: Table, order: Table | None = None, **mix: Any
) -> tuple[list[Identity], dict[str, Table]]:
    """The mix of sources with so many samples each (two files of them): identities in order, and what it reports."""
    files = [
        (name, f"{part}.jsonl", count // 2 + part * (count % 2)) for name, count in counts.items() for part in (0, 1)
    ]
    samples, inputs = made_up(files)
    named = [{"name": name, **source} for name, source in zip(counts, sources, strict=True)]
    found = arrange(samples, inputs, prep(*named, order=order, **mix), seed=7)
    names = [inputs[file].name for file in samples.file[found.sequence].tolist()]
    assert [list(counts)[source] for source in found.source.tolist()] == names
    return identities(samples, inputs, found.sequence.tolist()), {one["name"]: dict(one) for one in found.realised}


def samples_of(found: list[Identity]) -> Counter[str]:
    return Counter(source for source, *_ in found)


# Amounts


@given(
    weights=st.lists(st.decimals("0.001", 1000, places=3), min_size=1, max_size=6),
    sizes=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 5000)), min_size=6, max_size=6),
    unit=st.sampled_from(["tokens", "samples"]),
)
def test_without_a_total_the_scarcest_source_is_used_up_and_the_others_keep_their_share(
    weights: list[Decimal], sizes: list[tuple[int, int]], unit: str
) -> None:
    table = prep(*({"weight": one} for one in weights), unit=unit)
    have = [Size(samples, samples * length) for samples, length in sizes[: len(weights)]]
    asked = amounts(table.source, table.mix, have)
    exact = min(size.of(unit) / Fraction(one) for size, one in zip(have, weights, strict=True))
    for amount, one, size in zip(asked, weights, have, strict=True):
        assert amount.share == exact * Fraction(one) <= size.of(unit)
        assert abs(amount.number - amount.share) < 1 if unit == "samples" else amount.number == amount.share
    assert any(amount.number == size.of(unit) for amount, size in zip(asked, have, strict=True))


@given(
    weights=st.lists(st.decimals("0.001", 1000, places=3), min_size=1, max_size=6),
    total=st.integers(1, 10**9),
)
def test_whole_samples_of_a_total_add_up_to_it(weights: list[Decimal], total: int) -> None:
    table = prep(*({"weight": one} for one in weights), unit="samples", total=total)
    asked = amounts(table.source, table.mix, [Size(10**9, 10**10)] * len(weights))
    assert sum(amount.number for amount in asked) == total
    for amount, one in zip(asked, weights, strict=True):
        assert amount.number.denominator == 1
        assert abs(amount.number - total * Fraction(one) / sum(map(Fraction, weights))) < 1


def test_equal_claims_on_the_last_sample_go_by_name() -> None:
    counts = {"b": 10, "c": 10, "a": 10}
    found, _ = mixed(counts, weight(1), weight(1), weight(1), unit="samples", total=10)
    assert samples_of(found) == {"a": 4, "b": 3, "c": 3}


@given(st.integers(1, 40), st.decimals("0.01", 5, places=2))
def test_repeat_gives_the_nearest_number_of_samples(count: int, repeat: Decimal) -> None:
    expected = int(repeat * count + Decimal("0.5"))
    if expected:
        found, _ = mixed({"a": count}, {"repeat": repeat})
        assert len(found) == expected
    else:
        with pytest.raises(ConfigError, match="come to no sample; ask for more of it, or remove it"):
            mixed({"a": count}, {"repeat": repeat})


def test_two_and_a_half_passes_are_two_whole_ones_and_the_first_half_of_a_third() -> None:
    samples, inputs = made_up([("a", "x", 10)])
    found = arrange(samples, inputs, prep({"name": "a", "repeat": Decimal("2.5")}), seed=7)
    passes = [sample_order(samples, inputs, range(10), shuffle="hash", seed=7, turn=turn).tolist() for turn in range(3)]
    assert found.sequence.tolist() == [*passes[0], *passes[1], *passes[2][:5]]
    assert passes[0] != passes[1] != passes[2]


def test_a_source_without_an_amount_is_taken_once() -> None:
    assert mixed({"a": 11}, {}) == mixed({"a": 11}, {"repeat": Decimal(1)})


@given(st.integers(1, 20), st.integers(1, 80))
def test_samples_are_exactly_so_many(count: int, asked: int) -> None:
    found, realised = mixed({"a": count}, {"samples": asked}, max_repeat=Decimal(80))
    assert len(found) == asked == realised["a"]["samples"]
    times = Counter(found).values()
    assert max(times) - min(times) <= 1 or len(times) < count  # no sample comes again before all others came
    assert max(times) == -(-asked // count)


@given(st.integers(1, 2000))
def test_tokens_are_met_as_nearly_as_whole_samples_can(asked: int) -> None:
    samples, inputs = made_up([("a", "x", 30)])
    table = prep({"name": "a", "tokens": asked}, max_repeat=Decimal(100))
    every = [sample_order(samples, inputs, range(30), shuffle="hash", seed=7, turn=turn) for turn in range(5)]
    lengths = samples.lengths[np.concatenate(every)].tolist()
    distances = [abs(asked - sum(lengths[:taken])) for taken in range(len(lengths))]
    best = distances.index(min(distances))  # the fewer of two equally near
    if best:
        assert arrange(samples, inputs, table, seed=7).sequence.size == best
    else:
        with pytest.raises(ConfigError, match=f"{asked} tokens of it come to no sample"):
            arrange(samples, inputs, table, seed=7)


def test_what_is_asked_outright_comes_on_top_of_the_weights() -> None:
    counts = {"a": 100, "b": 50, "c": 7, "d": 20}
    sources = weight("0.75"), weight("0.25"), {"repeat": Decimal(2)}, {"samples": 5}
    found, _ = mixed(counts, *sources, unit="samples")
    assert samples_of(found) == {"a": 100, "b": 33, "c": 14, "d": 5}


def test_the_manifest_tells_the_realised_mix() -> None:
    _, realised = mixed({"a": 100, "b": 50}, weight(3), weight(1), unit="samples", total=200)
    assert realised["a"]["samples"] == 150
    assert realised["a"]["share"] == 0.75
    assert realised["a"]["passes"] == 1.5
    usual = {"name": "b", "samples": 50, "share": 0.25, "passes": 1.0, "samples_per_pass": 50}
    tokens = realised["b"]["tokens"]
    assert realised["b"] == usual | {"tokens": tokens, "tokens_per_pass": tokens}


# Shortage


def test_a_total_beyond_max_repeat_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        mixed({"a": 100, "b": 10}, weight(1), weight(1), unit="samples", total=100)
    assert str(caught.value) == (
        "prep.mix.total = 100 samples asks for 5.00 times what [[prep.source]] 'b' has, 10; lower it or that weight, "
        'raise prep.mix.max_repeat = 4, or set prep.mix.on_shortage = "rescale"'
    )


def test_rescale_lowers_the_total_to_what_max_repeat_gives() -> None:
    options: Table = {"unit": "samples", "total": 100, "on_shortage": "rescale"}
    found, _ = mixed({"a": 100, "b": 10}, weight(1), weight(1), **options)
    assert samples_of(found) == {"a": 40, "b": 40}
    found, _ = mixed({"a": 100, "b": 10}, weight(1), weight(1), **options, max_repeat=Decimal("1.5"))
    assert samples_of(found) == {"a": 15, "b": 15}
    enough, _ = mixed({"a": 100, "b": 60}, weight(1), weight(1), **options)
    assert samples_of(enough) == {"a": 50, "b": 50}


def test_max_repeat_holds_for_samples_and_tokens_but_not_for_repeat() -> None:
    assert len(mixed({"a": 10}, {"repeat": Decimal(5)})[0]) == 50
    assert len(mixed({"a": 10}, {"samples": 40})[0]) == 40
    with pytest.raises(ConfigError, match=r"samples = 41 is 4.10 times what it has, 10; ask for less, or raise"):
        mixed({"a": 10}, {"samples": 41})
    with pytest.raises(ConfigError, match=r"tokens = 9999 is .* times what it has"):
        mixed({"a": 10}, {"tokens": 9999})


def test_an_empty_source_is_named() -> None:
    with pytest.raises(DataError, match=r"\[\[prep.source\]\] 'b': has no sample to train on"):
        mixed({"a": 10, "b": 0, "c": 3}, weight(1), weight(1), {})


def test_a_weight_too_small_for_one_sample_is_named() -> None:
    with pytest.raises(ConfigError, match=r"\[\[prep.source\]\] 'b': 0.1 samples of it come to no sample"):
        mixed({"a": 100, "b": 100}, weight(1000), weight(1), unit="samples")


def test_a_mix_beyond_32_bits_is_refused_before_it_takes_memory() -> None:
    with pytest.raises(ConfigError, match="the mix comes to 10,000,000,000 samples"):
        mixed({"a": 10}, {"repeat": Decimal(10**9)})


# Order

COUNTS = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 25), min_size=2)


@given(COUNTS, st.sampled_from(["tokens", "samples"]), st.data())
def test_a_source_that_comes_or_goes_moves_no_two_samples_of_others(
    counts: dict[str, int], unit: str, data: st.DataObject
) -> None:
    kept = data.draw(st.sets(st.sampled_from(sorted(counts)), min_size=1))
    tables = {name: {"repeat": data.draw(st.sampled_from([Decimal(1), Decimal("2.5")]))} for name in counts}
    found, _ = mixed(counts, *tables.values(), unit=unit)
    fewer = {name: count for name, count in counts.items() if name in kept}
    rest, _ = mixed(fewer, *(tables[name] for name in fewer), unit=unit)
    assert rest == [one for one in found if one[0] in kept]


@given(COUNTS, st.sampled_from(["tokens", "samples"]), st.data())
def test_a_scarcer_source_shortens_a_weighted_mix_and_moves_nothing_in_it(
    counts: dict[str, int], unit: str, data: st.DataObject
) -> None:
    weights = {name: weight(data.draw(st.sampled_from(["1", "0.7", "0.3", "2.5"]))) for name in counts}
    kept = data.draw(st.sets(st.sampled_from(sorted(counts)), min_size=1))
    fewer = {name: count for name, count in counts.items() if name in kept}
    try:
        small, _ = mixed(counts, *weights.values(), unit=unit)
        large, _ = mixed(fewer, *(weights[name] for name in fewer), unit=unit)
    except ConfigError:
        return  # some source is too scarce for any sample of another
    rest = [one for one in small if one[0] in kept]
    common = set(rest) & set(large)
    assert [one for one in rest if one in common] == [one for one in large if one in common]
    assert len(rest) - len(common) <= len(kept)  # rounding may give a source one sample more in the smaller mix


@given(COUNTS, st.sampled_from(["fractional", "concat"]))
def test_each_source_keeps_its_own_order(counts: dict[str, int], interleave: str) -> None:
    found, _ = mixed(counts, *({} for _ in counts), order={"interleave": interleave})
    for name, count in counts.items():
        alone, _ = mixed({name: count}, {})
        assert [one for one in found if one[0] == name] == alone


@given(COUNTS, st.permutations("abcdef"))
def test_the_order_of_the_tables_in_the_toml_does_not_matter(counts: dict[str, int], order: list[str]) -> None:
    tables = {name: weight(number + 1) for number, name in enumerate(sorted(counts))}
    other = {name: counts[name] for name in order if name in counts}
    try:
        found, _ = mixed(counts, *(tables[name] for name in counts))
    except ConfigError:
        return
    assert mixed(other, *(tables[name] for name in other))[0] == found


def test_concat_is_the_order_of_the_tables() -> None:
    found, _ = mixed({"b": 3, "a": 2}, {}, {}, order={"interleave": "concat"})
    assert [source for source, *_ in found] == ["b", "b", "b", "a", "a"]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60))
def test_shares_in_samples_are_within_one_sample_at_every_prefix(first: int, second: int, third: int) -> None:
    counts = {"a": first, "b": second, "c": third}
    found, _ = mixed(counts, {}, {}, {}, unit="samples")
    for length in range(1, len(found) + 1):
        so_far = samples_of(found[:length])
        for name, count in counts.items():
            assert abs(so_far[name] - Fraction(length * count, len(found))) <= 1


@given(st.integers(1, 60), st.integers(1, 60))
def test_shares_in_tokens_are_within_one_sample_at_every_prefix(first: int, second: int) -> None:
    samples, inputs = made_up([("a", "x", first), ("b", "y", second)])
    found = arrange(samples, inputs, prep({"name": "a"}, {"name": "b"}), seed=7)
    tokens = np.cumsum(samples.lengths[found.sequence])
    of_first = np.cumsum(np.where(found.source == 0, samples.lengths[found.sequence], 0))
    due = tokens * (of_first[-1] / tokens[-1])
    assert np.abs(of_first - due).max() <= samples.lengths.max()


def test_the_order_never_changes() -> None:
    found, _ = mixed({"chat": 6, "code": 4, "math": 4}, weight("0.5"), weight("0.3"), {"repeat": Decimal("1.5")})
    assert [(source, path[0], record) for source, path, record, _ in found] == [
        ("chat", "0", 1),
        ("chat", "0", 2),
        ("math", "1", 0),
        ("code", "0", 1),
        ("chat", "0", 0),
        ("code", "1", 1),
        ("math", "0", 0),
        ("chat", "1", 1),
        ("math", "0", 1),
        ("chat", "1", 0),
        ("code", "0", 0),
        ("math", "1", 1),
        ("math", "1", 1),
        ("chat", "1", 2),
        ("math", "0", 0),
    ]
