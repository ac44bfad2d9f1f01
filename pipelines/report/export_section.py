"""The export: what was written, what was compared after writing, and what the exported model answers."""

from collections.abc import Iterator, Mapping

from pipelines.artifacts import Json
from pipelines.report.markup import Markup, element
from pipelines.report.numerals import count, percent, real, size
from pipelines.report.run import Artefact, Run
from pipelines.report.table import Column, folded, section, table
from pipelines.report.verdict import evaluation

WRONG = 10
"""Answers other than expected that are shown."""

_NUMBER = "n"


def export_section(run: Run) -> Markup:
    """What became of the checkpoint, or that there is nothing yet."""
    if not run.targets:
        said = "has begun, and nothing is written yet" if run.has("export") else "has not run"
        return section("Export", element("p", f"Export {said}."))
    columns = [
        Column("target", "name"), Column("of step", _NUMBER), Column("numbers", _NUMBER), Column("format", "word"),
        Column("size", _NUMBER), Column("verified after writing", "wide"),
    ]  # fmt: skip
    rows = [[name, *_target(one)] for name, one in run.targets.items()]
    unfinished = [] if run.export else [element("p", "The stage has not come to its end.", class_="bad")]
    return section("Export", *unfinished, table(columns, rows), *_merging(run), *_answers(run))


def _target(one: Artefact) -> list[object]:
    facts = one.facts
    step = facts.get("step")
    return [
        "" if step is None else count(step),
        count(facts["parameters"]) if "parameters" in facts else "",
        facts.get("dtype", ""),
        size(sum(record.size for record in one.manifest.files)),
        element("span", "yes: " + "; ".join(_compared(facts["verified"])), class_="good")
        if facts.get("verified")
        else element("span", "no", class_="bad"),
    ]


def _compared(verified: Mapping[str, Json]) -> Iterator[str]:
    """What an export's manifest says was compared, in words where this page knows it."""
    for key, found in verified.items():
        if key == "tensors_equal":
            yield f"{count(found, 'tensor')} equal bit for bit"
        elif key == "prompts_equal":
            yield f"{count(found, 'probe prompt')} rendered to the same tokens"
        elif key == "greedy" and isinstance(found, dict):
            yield (
                f"{count(found['prompts'], 'greedy answer')} of {count(found['tokens'], 'token')} the same, "
                f"logits {real(found['max_abs_diff'])} apart at most"
            )
        else:
            yield f"{key.replace('_', ' ')}: {_plain(found)}"


def _plain(value: Json) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return real(value) if isinstance(value, float) else str(value)


def _merging(run: Run) -> Iterator[Markup]:
    """What merging an adapter came to that was trained on a model in 4 bits, onto either base."""
    found = next(filter(None, (one.facts.get("merging") for one in run.targets.values())), None)
    if not found:
        return
    yield element("h3", "The adapter, merged")
    yield element(
        "p", f"Trained on a model in 4 bits ({found['type']}), merged onto the {found['base']} base. Relative "
        "differences from what was trained, for either base:",
    )  # fmt: skip
    columns = [
        Column("base", "name"), Column("all matrices", _NUMBER), Column("worst matrix", _NUMBER), Column("which"),
        Column("logits apart", _NUMBER),
    ]  # fmt: skip
    rows = []
    for base in ("original", "dequantized"):
        one = found[base]
        logits = "not measured" if one["logits"] is None else real(one["logits"])
        worst = one["worst"]
        rows.append([base, f"{one['relative']:.3%}", f"{worst['relative']:.3%}", worst["matrix"], logits])
    yield table(columns, rows)


def _answers(run: Run) -> Iterator[Markup]:
    found = evaluation(run)
    if not found:
        return
    yield element("h3", "Held-out questions, answered by the export")
    yield element(
        "p", f"{count(found['right'])} of {count(found['of'], 'answer')} are exactly as expected: "
        f"{percent(found['accuracy'])}.",
    )  # fmt: skip
    columns = [Column("task", "name"), Column("right", _NUMBER), Column("of", _NUMBER), Column("share", _NUMBER)]
    by_task = found.get("by_task", {}).items()
    yield table(
        columns, ([task, count(one["right"]), count(one["of"]), percent(one["accuracy"])] for task, one in by_task)
    )
    answers = run.answers.get("answers", []) if isinstance(run.answers, dict) else []
    if wrong := [one for one in answers if not one["right"]]:
        rows = [[_question(one), one["expected"], one["found"]] for one in wrong[:WRONG]]
        title = f"Answers other than expected, {len(rows)} of {len(wrong):,}"
        yield folded(title, table([Column("asked"), Column("expected"), Column("answered")], rows))


def _question(one: Json) -> str:
    return "\n".join(str(message.get("content", "")) for message in one["messages"] if message.get("role") == "user")
