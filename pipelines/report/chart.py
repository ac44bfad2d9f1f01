"""Charts as inline SVG: lines over steps, histograms, and shares as bars.

The drawing stretches with the page, and what is written stays as large as other text: axis labels are HTML beside the
drawing, placed in percent. `page.js` shows values where the pointer is; without it everything else is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from pipelines.report.axis import Axis
from pipelines.report.markup import Markup, element, join, raw
from pipelines.report.numerals import count, percent, real
from pipelines.report.thinned import Buckets, Thinned

COLOURS = 7
"""That page.css tells apart; lines beyond are dashed as well."""

Numbers = npt.NDArray[np.float64]

_WIDTH, _HEIGHT = 1000, 400
_LEAST_BAR = 0.006  # of the height: one among many shall be seen


@dataclass(frozen=True)
class Line:
    """One series of a chart."""

    name: str
    values: Buckets
    band: bool = False
    """Also show the least and the most value that each point stands for."""
    dots: bool = False
    """Points are few: show each."""

    @classmethod
    def of(cls, name: str, series: Thinned, *, band: bool = False, dots: bool = False) -> "Line":
        return cls(name, series.buckets, band and series.width > 1, dots)


@dataclass(frozen=True)
class Chart:
    """Lines over optimizer steps."""

    title: str
    lines: Sequence[Line]
    logarithmic: bool | None = None
    """None: where that is easier to read."""
    marks: Sequence[int] = ()
    """Steps that are marked along the axis."""
    marked: str = ""
    """What they are."""
    note: str = ""
    """A sentence below the title."""
    last_step: int = 0
    """Where the axis of steps ends at least, so that charts beside each other have the same."""

    def html(self) -> Markup:
        """The figure; nothing where there is no number to draw."""
        if not any(line.values.count.size for line in self.lines):
            return Markup("")
        drawing = element(
            "svg",
            *self._grid(),
            *(self._drawn(number, line) for number, line in enumerate(self.lines)),
            *self._marks(),
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
            preserveAspectRatio="none",
            aria_hidden="true",
        )
        return _figure(self.title, self._note(), self._legend(), self._plot(drawing))

    @cached_property
    def _x(self) -> Axis:
        edges = [edge for line in self.lines for edge in (line.values.first, line.values.last)]
        ends = [1, self.last_step] if self.last_step else []
        return Axis.over(np.concatenate([*edges, [*self.marks], ends]), counts=True)

    @cached_property
    def _y(self) -> Axis:
        heights = [one for line in self.lines for one in self._extent(line)]
        return Axis.over(np.concatenate([*heights, []]), logarithmic=self.logarithmic)

    def _extent(self, line: Line) -> Sequence[Numbers]:
        return (line.values.least, line.values.most) if line.band else (line.values.mean,)

    def _plot(self, drawing: Markup) -> Markup:
        return element(
            "div", *_labels(self._x, self._y, last="step"), drawing,
            class_="plot", style=_gutter(self._y), tabindex="0", role="img", aria_label=self._spoken(),
            data_from=f"{self._x.low:.12g}", data_to=f"{self._x.high:.12g}",
        )  # fmt: skip

    def _grid(self) -> list[Markup]:
        heights = [_down(self._y, tick) for tick in self._y.ticks()]
        return [element("line", x1=0, x2=_WIDTH, y1=at, y2=at, class_="grid") for at in heights]

    def _drawn(self, number: int, line: Line) -> Markup:
        x, y = _across(self._x, line.values.middle), _downs(self._y, line.values.mean)
        parts = []
        if line.band:
            low, high = _downs(self._y, line.values.least), _downs(self._y, line.values.most)
            edge = [*_points(x, high), *reversed(_points(x, low))]
            parts.append(element("path", d=f"M{'L'.join(edge)}Z", class_="band"))
        points = _points(x, y)
        if len(points) > 1:
            parts.append(element("path", d=f"M{'L'.join(points)}", class_="line"))
        if line.dots or len(points) == 1:
            parts.append(element("path", d="".join(f"M{point}h0" for point in points), class_="dots"))
        return element("g", *parts, class_=_colour(number), **self._data(line))

    def _data(self, line: Line) -> dict[str, str]:
        """What the script says at a point."""
        values = line.values
        data = {"data_name": line.name, "data_x": _list(values.middle, digits=12), "data_y": _list(values.mean)}
        if (values.count > 1).any():
            data |= {"data_low": _list(values.least), "data_high": _list(values.most)}
        return data

    def _marks(self) -> list[Markup]:
        places = sorted({f"{at:.0f}" for at in _across(self._x, np.array(self.marks, np.float64)).tolist()})
        path = "".join(f"M{at} {_HEIGHT}v-24" for at in places)
        return [element("path", d=path, class_="marks")] if path else []

    def _legend(self) -> Markup:
        entries = [_entry(_colour(number), line.name) for number, line in enumerate(self.lines)]
        if self.marks:
            entries.append(_entry("mark", f"{self.marked} ({len(self.marks):,})"))
        return join(entries) if len(entries) > 1 else Markup("")

    def _note(self) -> str:
        scale = "Logarithmic scale." if self._y.logarithmic else ""
        wide = max((int(line.values.count.max(initial=0)) for line in self.lines), default=1)
        means = f"Points are means of {wide:,} steps"
        bands = means + (", bands their least and most." if any(line.band for line in self.lines) else ".")
        return " ".join(filter(None, (self.note, bands if wide > 1 else "", scale)))

    def _spoken(self) -> str:
        said = []
        for line in self.lines:
            values = line.values
            if values.count.size:
                first, last = values.mean[[0, -1]].tolist()
                least, most = float(values.least.min()), float(values.most.max())
                said.append(f"{line.name} from {real(first)} to {real(last)}, least {real(least)}, most {real(most)}")
        return f"{self.title} by step: {'; '.join(said)}"


@dataclass(frozen=True)
class Histogram:
    """How many have which length, by source."""

    title: str
    edges: npt.NDArray[np.int64]
    """[bins + 1] tokens."""
    heights: npt.NDArray[np.int64]
    """[sources, bins], one above the other."""
    names: Sequence[str]
    counted: str
    """What is counted, in the singular."""
    logarithmic: bool = False
    """The axis of lengths."""
    note: str = ""

    def html(self) -> Markup:
        """The figure; nothing where nothing was counted."""
        if not self.heights.sum():
            return Markup("")
        x = Axis(float(self.edges[0]), float(self.edges[-1]), self.logarithmic, counts=True)
        y = Axis(0.0, float(self.heights.sum(axis=0).max()) * 1.04, counts=True)
        grid = [element("line", x1=0, x2=_WIDTH, y1=at, y2=at, class_="grid") for at in _heights(y)]
        drawing = element(
            "svg", *grid, *self._bars(x, y),
            viewBox=f"0 0 {_WIDTH} {_HEIGHT}", preserveAspectRatio="none", aria_hidden="true",
        )  # fmt: skip
        plot = element(
            "div", *_labels(x, y, last="tokens"), drawing,
            class_="plot", style=_gutter(y), role="img", aria_label=self._spoken(),
        )  # fmt: skip
        names = [_entry(_colour(number), name) for number, name in enumerate(self.names)]
        note = " ".join(filter(None, (self.note, "Lengths on a logarithmic scale." if self.logarithmic else "")))
        return _figure(self.title, note, join(names) if len(names) > 1 else Markup(""), plot)

    def _bars(self, x: Axis, y: Axis) -> list[Markup]:
        places = _across(x, self.edges.astype(np.float64))
        drawn = []
        for index in range(self.edges.size - 1):
            left, right = places[index : index + 2].tolist()
            below = 0
            whole = int(self.heights[:, index].sum())
            if not whole:
                continue
            parts = []
            for number, height in enumerate(self.heights[:, index].tolist()):
                if height:
                    bottom, top = _down(y, below), min(_down(y, below + height), _HEIGHT * (1 - _LEAST_BAR))
                    parts.append(
                        element(
                            "rect",
                            x=f"{left:.1f}",
                            y=f"{top:.1f}",
                            class_=_colour(number),
                            width=f"{max(right - left, 1):.1f}",
                            height=f"{max(bottom - top, 0.0):.1f}",
                        )
                    )
                below += height
            parts.append(element("title", self._said(index, whole)))
            drawn.append(element("g", *parts, class_="bar"))
        return drawn

    def _said(self, index: int, whole: int) -> str:
        low, high = int(self.edges[index]), int(self.edges[index + 1]) - 1
        lengths = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        parts = [
            f"{name}: {int(height):,}"
            for name, height in zip(self.names, self.heights[:, index], strict=True)
            if height and len(self.names) > 1
        ]
        return "\n".join([f"{lengths} tokens: {count(whole, self.counted)}", *parts])

    def _spoken(self) -> str:
        counts = self.heights.sum(axis=0)
        top = int(counts.argmax())
        return f"{self.title}: most, {count(int(counts[top]), self.counted)}, at {self._said(top, int(counts[top]))}"


def share_bar(realised: float, asked: float | None, most: float) -> Markup:
    """A share as a bar, with a line where it was asked to be.

    Args:
        most: the share at the right end.
    """
    wide = 1000 / most if most else 0.0
    line = [] if asked is None else [element("path", d=f"M{asked * wide:.1f} 0v20", class_="asked")]
    whole = element("rect", x=0, y=4, width=1000, height=12, class_="whole")
    bar = element("rect", x=0, y=4, width=f"{realised * wide:.1f}", height=12, class_="c0")
    said = f"realised {percent(realised)}" + ("" if asked is None else f", asked {percent(asked)}")
    return element(
        "svg", element("title", said), whole, bar, *line,
        viewBox="0 0 1000 20", preserveAspectRatio="none", class_="share", role="img", aria_label=said,
    )  # fmt: skip


def _figure(title: str, note: str, legend: Markup, plot: Markup) -> Markup:
    return element(
        "figure",
        element("figcaption", element("h4", title), element("p", note, class_="note") if note else raw("")),
        element("p", legend, class_="legend") if legend else raw(""),
        plot,
    )


def _entry(colour: str, name: str) -> Markup:
    line = element("path", d="M0 5h24", class_="marks" if colour == "mark" else "line")
    swatch = element("svg", element("g", line, class_=colour), viewBox="0 0 24 10", aria_hidden="true")
    return element("span", swatch, element("span", name))


def _labels(x: Axis, y: Axis, *, last: str) -> list[Markup]:
    beside = [
        element("span", label, class_="y", style=f"top:{100 * _down(y, tick) / _HEIGHT:.2f}%")
        for tick, label in y.labels()
    ]
    below = [
        element("span", label, class_="x", style=f"left:{100 * float(x.place(tick)):.2f}%")
        for tick, label in x.labels()
    ]
    return [*beside, *below, element("span", last, class_="unit")]


def _gutter(y: Axis) -> str:
    """Room for the labels beside the drawing."""
    return f"--gutter:{max((len(label) for _, label in y.labels()), default=1)}ch"


def _colour(number: int) -> str:
    dashed = number // COLOURS
    return f"c{number % COLOURS}" + (f" dash{min(dashed, 3)}" if dashed else "")


def _across(axis: Axis, values: Numbers) -> Numbers:
    return axis.place(values) * _WIDTH


def _downs(axis: Axis, values: Numbers) -> Numbers:
    return (1 - axis.place(values)) * _HEIGHT


def _down(axis: Axis, value: float) -> float:
    return round((1 - float(axis.place(value))) * _HEIGHT, 1)


def _heights(axis: Axis) -> list[float]:
    return [_down(axis, tick) for tick in axis.ticks()]


def _points(x: Numbers, y: Numbers) -> list[str]:
    return [f"{one:.1f} {other:.1f}" for one, other in zip(x.tolist(), y.tolist(), strict=True)]


def _list(values: Numbers, *, digits: int = 5) -> str:
    return " ".join(f"{value:.{digits}g}" for value in values.tolist())
