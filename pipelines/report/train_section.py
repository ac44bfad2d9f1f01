"""The training: its curves, the loss of each source, throughput, and answers as they changed."""

from collections.abc import Iterator, Mapping

from pipelines.artifacts import Json
from pipelines.report.chart import COLOURS, Chart, Line
from pipelines.report.markup import Markup, element
from pipelines.report.metrics import Answer, Answers, Metrics
from pipelines.report.numerals import count, duration, percent, real, short
from pipelines.report.run import Run
from pipelines.report.table import Column, charts, folded, pairs, section, table
from pipelines.report.thinned import Thinned
from pipelines.terminal import printable

SOURCES = 2 * COLOURS
"""Lines that a chart of sources has at most."""
LONGEST_ANSWER = 4000
"""Characters of an answer or a prompt that are shown."""

_NUMBER = "n"


def train_section(run: Run) -> Markup:
    """What training came to, or that there is nothing yet."""
    metrics = run.metrics
    if not metrics.steps and not run.checkpoints:
        said = "has begun, and no step is done" if run.has("train") else "has not run"
        return section("Training", element("p", f"Training {said}."), *_talks(metrics))
    return section(
        "Training",
        charts(_charts(metrics)),
        *_by_source(metrics),
        element("h3", "How it ran"),
        pairs(_how(run)),
        *_talks(metrics),
    )


def _charts(metrics: Metrics) -> Iterator[Markup]:
    series, held_out, last = metrics.series, metrics.held_out, metrics.last_step
    loss = [Line.of("training loss", series["loss"], band=True)]
    if len(held_out.series):
        loss.append(Line.of("held-out loss", held_out.series, dots=True))
    norm = [Line.of("gradient norm", series["grad_norm"], band=True)]
    speed = [Line.of("tokens/s", series["tokens_per_s"], band=True)]
    found = [
        Chart(
            "Loss", loss, marks=metrics.nonfinite, marked="not finite", last_step=last,
            note="Mean over the loss tokens of each batch.",
        ),
        *_sources("Loss by source", metrics.loss_series, last),
        *_sources("Held-out loss by source", held_out.by_source, last, dots=True),
        Chart("Learning rate", [Line.of("learning rate", series["lr"])], logarithmic=False, last_step=last),
        Chart(
            "Gradient norm, before clipping", norm, marks=metrics.skipped, marked="skipped steps", last_step=last
        ),
        Chart("Throughput of all ranks, tokens/s", speed, logarithmic=False, last_step=last),
    ]  # fmt: skip
    return (chart.html() for chart in found)


def _sources(title: str, found: Mapping[str, Thinned], last: int, *, dots: bool = False) -> Iterator[Chart]:
    if len(found) < 2:
        return
    shown = sorted(found, key=lambda name: -len(found[name]))[:SOURCES]
    note = "" if len(shown) == len(found) else f"The {len(shown)} of {len(found)} sources that are in most steps."
    lines = [Line.of(name, one, dots=dots) for name, one in found.items() if name in shown]
    yield Chart(title, lines, note=note, last_step=last)


def _by_source(metrics: Metrics) -> Iterator[Markup]:
    if not metrics.by_source:
        return
    held_out = metrics.held_out
    first, last = (row.get("loss_by_source") or {} if row else {} for row in (held_out.first, held_out.last))
    edge = count(metrics.loss.steps, "step")
    columns = [Column("source", "name"), Column(f"loss, first {edge}", _NUMBER), Column(f"last {edge}", _NUMBER)]
    if last:
        columns += [Column("held-out loss, first", _NUMBER), Column("last", _NUMBER)]
    rows = []
    for name, edges in metrics.by_source.items():
        row = [name, real(edges.first), real(edges.last)]
        if last:
            row += [real(found[name]) if name in found else "" for found in (first, last)]
        rows.append(row)
    yield element("h3", "Loss of each source, at the beginning and at the end")
    yield element(
        "p", "Means of the steps in which a source has a loss token, each step counting the same.", class_="note"
    )
    yield table(columns, rows)


def _how(run: Run) -> Iterator[tuple[str, object]]:
    metrics, record = run.metrics, run.record("train")
    if metrics.steps:
        epochs = f", {metrics.epoch:.2f} epochs" if metrics.epoch else ""
        yield "steps", f"{count(metrics.steps)} recorded, up to step {metrics.last_step:,}{epochs}"
        yield "tokens", f"{count(metrics.tokens)}, {count(metrics.loss_tokens)} of them with loss"
        yield "time in steps", f"{duration(metrics.seconds)}, evaluations and saving not counted"
    if metrics.tokens_per_s:
        yield "throughput", f"{short(metrics.tokens_per_s)} tokens/s over all steps, of all ranks"
    if metrics.mfu is not None:
        yield "MFU", f"{percent(metrics.mfu)} of the devices' half-precision peak"
    if metrics.memory_gb:
        yield "memory", f"{metrics.memory_gb:.1f} GiB at most on rank 0"
    yield from _where(record)
    for one in run.checkpoints:
        loss = one.facts.get("loss", {}).get("last")
        yield one.path.rpartition("/")[2], f"checkpoint, loss {real(loss)}" if loss is not None else "checkpoint"
    for when in ("started", "ended"):
        if when in record:
            yield (
                f"last {'start' if when == 'started' else 'end'}",
                element(
                    "span",
                    element("time", record[when], datetime=record[when]),
                    " by the clock of the machine (run.json)",
                ),
            )


def _where(record: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    if "device" not in record:
        return
    yield "devices", f"{record['ranks']} x {record['device']}"
    parts = [f"ZeRO {record['zero_stage']}", record["precision"], f"{record['attention']} attention"]
    if record.get("sequence_parallel_size", 1) > 1:
        parts.append(f"{record['sequence_parallel_size']} ranks to a pack")
    yield "layout", ", ".join(parts)


def _talks(metrics: Metrics) -> Iterator[Markup]:
    if not metrics.answers:
        return
    yield element("h3", "Answers over time")
    for (prompt, system), answers in metrics.answers.items():
        yield _talk(prompt, system, answers)
    if metrics.prompts_left_out:
        yield element("p", f"{count(len(metrics.prompts_left_out), 'more prompt')}: see metrics.jsonl.", class_="note")


def _talk(prompt: str, system: str, answers: Answers) -> Markup:
    shown = list(answers)
    first, middle, last = shown[:1], shown[1:-1], shown[1:][-1:]
    between = len(middle)
    parts = [element("pre", f"[system] {_cut(system)}")] if system else []
    parts += [element("pre", _cut(prompt), class_="prompt"), element("ol", *map(_answer, first))]
    if between:
        kept = "" if answers.count == len(shown) else f" of {answers.count - 2:,}"
        noun = "answer" if between == 1 else "answers"
        parts.append(folded(f"{between}{kept} {noun} between", element("ol", *map(_answer, middle))))
    return element("div", *parts, element("ol", *map(_answer, last)), class_="talk")


def _answer(one: Answer) -> Markup:
    end = {"length": f", cut at {count(one.tokens, 'token')}", "error": ", not answered"}.get(one.finish, "")
    said = one.error or "" if one.text is None else one.text
    return element(
        "li", element("span", f"step {one.step:,}{end}", class_="when"), element("pre", _cut(said) or "(nothing)")
    )


def _cut(said: str) -> str:
    shown = printable(said[:LONGEST_ANSWER], keep="\n\t")
    return shown if len(said) <= LONGEST_ANSWER else f"{shown}\n[{len(said) - LONGEST_ANSWER:,} more characters]"
