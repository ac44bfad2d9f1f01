"""The page: one HTML file that holds everything it shows and opens no connection."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from pipelines.artifacts import Json
from pipelines.report.export_section import export_section
from pipelines.report.markup import Markup, element, raw
from pipelines.report.numerals import count, duration, percent, real, short
from pipelines.report.prep_section import prep_section
from pipelines.report.provenance_section import provenance_section
from pipelines.report.run import Run
from pipelines.report.table import Tile, tiles
from pipelines.report.train_section import train_section
from pipelines.report.verdict import Stage, evaluation, headline, stages, warnings


def page(run: Run) -> bytes:
    """The report of a run. The same files give the same bytes."""
    style, script = _shipped("page.css"), _shipped("page.js")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{run.name}: packtrain report"),
        element("style", raw(style)),
    )
    body = element(
        "body",
        element("header", element("h1", run.name), *_stages(stages(run)), _tiles(headline(run), run), _warnings(run)),
        element("main", prep_section(run), train_section(run), export_section(run), provenance_section(run)),
        element("footer", element("p", "Written by packtrain report from the run's own files.")),
        element("script", raw(script)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n".encode()


def _policy(script: str) -> str:
    """Nothing is loaded, and no script runs but our own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )


def _stages(found: list[Stage]) -> list[Markup]:
    parts = [
        element(
            "span", element("strong", stage.name), " ",
            element("span", stage.text, class_="good" if stage.finished else None),
        )
        for stage in found
    ]  # fmt: skip
    dot = element("span", " \u00b7 ", class_="dot")
    return [element("p", parts[0], dot, parts[1], dot, parts[2], class_="lead")]


def _tiles(found: dict[str, Json], run: Run) -> Markup:
    return tiles(filter(None, (
        _model(found), _data(found), _steps(found), _loss(found), _held_out(found), _speed(found), _fill(found),
        _verified(found, run),
    )))  # fmt: skip


def _model(found: dict[str, Json]) -> Tile | None:
    if not found["model"]:
        return None
    trained = found["trained_parameters"]
    return Tile("Model", found["model"], f"{short(trained)} parameters trained" if trained else "", words=True)


def _data(found: dict[str, Json]) -> Tile | None:
    if not found["tokens"]:
        return None
    about = f"{short(found['samples'])} samples of {count(len(found['sources']), 'source')}"
    return Tile("Tokens to train on", short(found["tokens"]), about)


def _steps(found: dict[str, Json]) -> Tile | None:
    if found["step"] is None:
        return None
    total = found["total_steps"]
    about = f"of {count(total)}" if total else "how many in all, the next checkpoint knows"
    if found["tokens_trained"]:
        about += f"; {short(found['tokens_trained'])} tokens"
    return Tile("Steps done", count(found["step"]), about)


def _loss(found: dict[str, Json]) -> Tile | None:
    if found["loss_last"] is None:
        return None
    steps = count(found["loss_over_steps"], "step")
    return Tile("Training loss", real(found["loss_last"]), f"last {steps}; first {steps} {real(found['loss_first'])}")


def _held_out(found: dict[str, Json]) -> Tile | None:
    if found["held_out_loss_last"] is None:
        return None
    best, first = real(found["held_out_loss_best"]), real(found["held_out_loss_first"])
    return Tile("Held-out loss", real(found["held_out_loss_last"]), f"lowest {best}; first {first}")


def _speed(found: dict[str, Json]) -> Tile | None:
    if not found["tokens_per_s"]:
        return None
    mfu = "" if found["mfu"] is None else f"; MFU {percent(found['mfu'])}"
    return Tile("Tokens/s", short(found["tokens_per_s"]), f"{duration(found['training_seconds'])} in steps{mfu}")


def _fill(found: dict[str, Json]) -> Tile | None:
    return None if found["fill"] is None else Tile("Fill of the packs", percent(found["fill"]))


def _verified(found: dict[str, Json], run: Run) -> Tile | None:
    answered = evaluation(run)
    about = f"{percent(answered['accuracy'])} of {count(answered['of'], 'answer')} exact" if answered else ""
    if not found["verified"]:
        return Tile("Export", "none yet", about, words=True)
    return Tile("Export verified", ", ".join(found["verified"]), about, words=True)


def _warnings(run: Run) -> Markup:
    found = warnings(run)
    if not found:
        return element("p", "No warnings.", class_="good")
    title = element("h2", f"{count(len(found), 'thing')} to look at")
    return element("div", title, element("ul", *(element("li", warning) for warning in found)), class_="warnings")


@cache
def _shipped(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
