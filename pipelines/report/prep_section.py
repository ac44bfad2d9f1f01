"""The data: sources and their shares, lengths, packs, and what was left out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import numpy as np

from pipelines.artifacts import Json
from pipelines.report.axis import DECADES
from pipelines.report.chart import COLOURS, Histogram, share_bar
from pipelines.report.lengths import Counts, binned, edges, summary
from pipelines.report.markup import Markup, element
from pipelines.report.numerals import count, percent, real
from pipelines.report.run import Run
from pipelines.report.table import Column, charts, folded, section, table

REJECTS = 20
"""That are shown."""

_NUMBER = "n"
_WHOLE = 0.3  # largest share from which on bars are of the whole mix rather than of that share


def prep_section(run: Run) -> Markup:
    """What was trained on, or that there is nothing yet."""
    if run.prep is None:
        return section("Data", element("p", "No finished prep output is here, so nothing is known of the data."))
    facts = run.prep.facts
    return section(
        "Data",
        element("p", _packing(facts)),
        charts([_lengths(run), _fill(run)]),
        _length_table(run),
        element("h3", "The mix, asked for and realised"),
        _mix(facts),
        _held_out(facts),
        *_left_out(run),
    )


def _packing(facts: Json) -> str:
    parts = [f"{count(facts['packs'], 'pack')} of up to {count(facts['capacity'], 'token')}"]
    if "fill" in facts:
        parts.append(f"{percent(facts['fill'])} full")
    if "packs_lower_bound" in facts:
        parts.append(f"{count(facts['packs'] - facts['packs_lower_bound'])} above the fewest possible")
    if facts.get("tokens") and "loss_tokens" in facts:
        parts.append(f"{percent(facts['loss_tokens'] / facts['tokens'])} of {count(facts['tokens'], 'token')} trained")
    strategy = facts.get("settings", {}).get("prep", {}).get("pack", {}).get("strategy")
    return ", ".join([*parts, *([f"packed by {strategy}"] if strategy else [])]) + "."


def _lengths(run: Run) -> Markup:
    shown, names = _few(run.lengths.by_source)
    known = [np.flatnonzero(counts) for counts in shown]
    if run.prep is None or not known:
        return Markup("")
    low, high = min(int(one[0]) for one in known), max(int(one[-1]) for one in known)
    logarithmic = low > 0 and bool(np.log10(high / low) > DECADES)
    borders = edges(low, high, logarithmic=logarithmic)
    strategy = run.prep.facts.get("settings", {}).get("prep", {}).get("pack", {}).get("strategy")
    title = "Lengths of samples in the packs" + (", as the packs cut them" if strategy == "concat_split" else "")
    return Histogram(title, borders, binned(shown, borders), names, "sample", logarithmic=logarithmic).html()


def _fill(run: Run) -> Markup:
    counts = run.lengths.packs
    lengths = np.flatnonzero(counts)
    if run.prep is None or not lengths.size:
        return Markup("")
    capacity = int(run.prep.facts["capacity"])
    borders = edges(int(lengths[0]), max(capacity, int(lengths[-1])), logarithmic=False)
    least = int(lengths[0])
    note = f"Of {capacity:,}; the emptiest pack holds {count(least, 'token')}, {percent(least / capacity)}."
    return Histogram("Tokens in each pack", borders, binned([counts], borders), ["packs"], "pack", note=note).html()


def _length_table(run: Run) -> Markup:
    found = [*run.lengths.by_source.items()]
    if len(found) > 1:
        found.append(("all sources", run.lengths.all))
    names = ("shortest", "5 %", "half", "95 %", "longest")
    columns = [Column("tokens of a sample", "name"), *(Column(name, _NUMBER) for name in (*names, "mean"))]
    rows = [(name, summary(counts)) for name, counts in found]
    return table(columns, ([name, *(count(one[key]) for key in names), real(one["mean"])] for name, one in rows if one))


def _mix(facts: Json) -> Markup:
    settings = facts.get("settings", {}).get("prep", {})
    unit = settings.get("mix", {}).get("unit", "tokens")
    asked = {source["name"]: source for source in settings.get("source", ())}
    sources = [source for source in facts.get("sources", ()) if "tokens" in source]
    wanted = _wanted(sources, asked, unit)
    most = max([*(one["share"] for one in sources), *(share for share in wanted if share is not None)], default=1.0)
    most = 1.0 if most > _WHOLE else most
    rows = [
        [
            one["name"], share_bar(one["share"], share, most), _asked(asked.get(one["name"], {}), share),
            percent(one["share"]), count(one["samples"]), count(one["tokens"]), f"{one['passes']:.2f}",
        ]
        for one, share in zip(sources, wanted, strict=True)
    ]  # fmt: skip
    columns = [
        Column("source", "name"), Column(f"share of the {unit}", "wide"), Column("asked for", _NUMBER),
        Column("realised", _NUMBER), Column("samples", _NUMBER), Column("tokens", _NUMBER), Column("passes", _NUMBER),
    ]  # fmt: skip
    return table(columns, rows) or element("p", "The manifest does not tell what each source gave.")


def _wanted(sources: Sequence[Json], asked: Mapping[str, Json], unit: str) -> list[float | None]:
    """The share of the whole mix that each source was to have; None where an amount was asked for instead.

    Sources with a weight share what they come to together.
    """
    weights = [Fraction(asked.get(one["name"], {}).get("weight") or 0) for one in sources]
    given = sum(one[unit] for one, weight in zip(sources, weights, strict=True) if weight)
    whole = sum(one[unit] for one in sources)
    return [float(weight / sum(weights)) * given / whole if weight else None for weight in weights]


def _asked(source: Json, share: float | None) -> str:
    if share is not None:
        return percent(share)
    if source.get("repeat"):
        return f"{source['repeat']} passes"
    for unit in ("samples", "tokens"):
        if source.get(unit):
            return count(source[unit], unit[:-1])
    return "1 pass"


def _held_out(facts: Json) -> Markup:
    held_out = facts.get("eval")
    if not held_out:
        return element("p", "No samples are held out, so there is no held-out loss.")
    parts = [count(held_out[key], key[:-1]) for key in ("samples", "tokens", "packs") if key in held_out]
    return element("p", f"Held out of training: {', '.join(parts)}.")


def _left_out(run: Run) -> Iterator[Markup]:
    assert run.prep is not None
    facts = run.prep.facts
    rows = [[reason, count(number)] for reason, number in facts.get("dropped", {}).items()]
    if facts.get("rejected"):
        rows.append(["faulty", count(facts["rejected"])])
    if not rows:
        if "records" in facts:
            yield element("p", f"All {count(facts['records'], 'record')} were taken whole.")
        return
    yield element("h3", "Records that were cut or left out")
    yield table([Column(f"of {count(facts['records'], 'record')}"), Column("records", _NUMBER)], rows)
    if rejects := list(_rejects(run)):
        more = "" if len(rejects) == facts["rejected"] else f", the first {len(rejects)} of {facts['rejected']:,}"
        columns = [Column("record"), Column("why")]
        yield folded(f"Faulty records{more}", table(columns, rejects))


def _rejects(run: Run) -> Iterator[list[str]]:
    try:
        with (run.folder / "prep" / "rejects.jsonl").open(encoding="utf-8") as file:
            for line, _ in zip(file, range(REJECTS), strict=False):
                one = json.loads(line)
                yield [f"{one['source']}/{one['path']}:{one['record'] + 1}", one["reason"]]
    except (OSError, ValueError, KeyError):
        return  # its size is compared, and what differs is said


def _few(by_source: dict[str, Counts]) -> tuple[Sequence[Counts], Sequence[str]]:
    """As many series as have a colour; the smaller sources are one."""
    if len(by_source) <= COLOURS:
        return list(by_source.values()), list(by_source)
    ranked = sorted(by_source, key=lambda name: -int(by_source[name].sum()))
    shown = [name for name in by_source if name in ranked[: COLOURS - 1]]
    rest = [by_source[name] for name in by_source if name not in shown]
    others = np.zeros(max(one.size for one in rest), np.int64)
    for one in rest:
        others[: one.size] += one
    return [*(by_source[name] for name in shown), others], [*shown, f"{len(rest)} other sources"]
