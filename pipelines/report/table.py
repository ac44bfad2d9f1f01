"""Tables, tiles and lists of the page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipelines.report.markup import Markup, element, join


@dataclass(frozen=True)
class Column:
    """A column: its heading, and how its cells stand."""

    heading: str
    kind: str = ""
    """`n` for numbers, `word` for what is not to be broken, `name`, `wide`, or as it comes."""


@dataclass(frozen=True)
class Tile:
    """One figure of the head of the page."""

    label: str
    value: str
    about: str = ""
    words: bool = False
    """The value is text rather than a number."""


def table(columns: Sequence[Column], rows: Iterable[Sequence[object]]) -> Markup:
    """Rows of cells below their headings; nothing without rows."""
    head = [element("th", column.heading, class_=column.kind or None, scope="col") for column in columns]
    body = [
        element(
            "tr",
            *(element("td", cell, class_=column.kind or None) for column, cell in zip(columns, row, strict=True)),
        )
        for row in rows
    ]
    if not body:
        return Markup("")
    whole = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    return element("div", whole, class_="scroll")


def pairs(rows: Iterable[tuple[object, object]]) -> Markup:
    """A table of names and what they are, without headings; nothing without rows."""
    body = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    return element("div", element("table", element("tbody", *body)), class_="scroll") if body else Markup("")


def tiles(found: Iterable[Tile]) -> Markup:
    """Figures beside each other, each with what it is and a word about it."""
    return element(
        "dl",
        *(
            element(
                "div",
                element("dt", tile.label),
                element("dd", tile.value, *([element("p", tile.about, class_="about")] if tile.about else [])),
                class_="words" if tile.words else None,
            )
            for tile in found
        ),
        class_="tiles",
    )


def charts(figures: Iterable[Markup]) -> Markup:
    """Figures side by side where there is room; nothing without any."""
    drawn = [figure for figure in figures if figure]
    return element("div", *drawn, class_="charts") if drawn else Markup("")


def folded(summary: str, *content: object) -> Markup:
    """Content that is shown when it is asked for."""
    return element("details", element("summary", summary), *content)


def section(title: str, *content: object) -> Markup:
    """A part of the page, which a link reaches by its title: report.html#training."""
    return element("section", element("h2", title), join(content), id=title.lower())
