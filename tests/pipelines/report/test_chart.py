"""What is drawn is where the numbers are."""

import math
import re

import numpy as np
import pytest

from pipelines.report.chart import Chart, Histogram, Line, share_bar
from pipelines.report.thinned import Thinned

WIDTH, HEIGHT = 1000, 400


def series(values: list[float | None], points: int = 240) -> Thinned:
    found = Thinned(points)
    found.extend(range(1, len(values) + 1), values)
    return found


def path(html: str, kind: str) -> list[tuple[float, float]]:
    """The points of the one path of a kind, outside of legends."""
    [drawn] = re.findall(rf'<path d="M([^"]*)" class="{kind}"/>', html)
    return [(float(x), float(y)) for x, y in (point.split() for point in drawn.rstrip("Z").split("L"))]


def ticks(html: str, side: str) -> dict[float, float]:
    """Labels that are numbers, and where they stand, in percent."""
    place = {"x": "left", "y": "top"}[side]
    found = re.findall(rf'class="{side}" style="{place}:([\d.]+)%">([^<]*)<', html)
    return {float(label.replace(",", "")): float(at) for at, label in found}


@pytest.mark.parametrize("logarithmic", [False, True])
def test_points_stand_where_the_labels_say(logarithmic: bool) -> None:
    values: list[float | None] = [1.0, 8.0, None, 2.0, 4.0]
    html = Chart("Loss", [Line.of("loss", series(values))], logarithmic=logarithmic).html()
    points = dict(zip((1, 2, 4, 5), path(html, "line"), strict=True))
    (low, top), (high, bottom) = sorted(ticks(html, "y").items())[:: len(ticks(html, "y")) - 1]
    shown = math.log if logarithmic else float
    for step, (x, y) in points.items():
        value = values[step - 1]
        assert value is not None
        share = (shown(value) - shown(low)) / (shown(high) - shown(low))
        assert y / HEIGHT * 100 == pytest.approx(top + share * (bottom - top), abs=0.1)
        assert x / WIDTH * 100 == pytest.approx(ticks(html, "x")[step], abs=0.1)


def test_a_band_reaches_from_the_least_to_the_most_and_the_reader_is_told() -> None:
    html = Chart("Loss", [Line.of("loss", series([1.0, 3.0, 1.0, 9.0], points=2), band=True)]).html()
    (_, first_top), (_, last_top), (_, last_bottom), (_, first_bottom) = path(html, "band")
    (_, first), (_, last) = path(html, "line")
    assert first_top < first < first_bottom == last_bottom  # downwards, and the least of both is 1
    assert last_top < first_top
    assert (first + last) / 2 > last_top
    assert 'data-low="1 1" data-high="3 9"' in html
    assert "Points are means of 2 steps, bands their least and most." in html
    assert "least 1, most 9" in html


def test_what_has_no_number_is_no_chart_and_one_number_is_a_dot() -> None:
    assert not Chart("Loss", [Line.of("loss", series([None]))], marks=[1], marked="not finite").html()
    html = Chart("Loss", [Line.of("loss", series([2.0]))]).html()
    assert 'class="dots"' in html
    assert "nan" not in html


def test_bars_are_as_high_as_what_they_count_and_stand_on_each_other() -> None:
    heights = np.array([[4, 0, 1], [4, 2, 0]])
    html = Histogram("Lengths", np.array([10, 20, 30, 40]), heights, ("a", "b"), "sample").html()
    bars = [
        (float(x), float(y), colour, float(width), float(height))
        for x, y, colour, width, height in re.findall(
            r'<rect x="([\d.]+)" y="([\d.]+)" class="(\w+)" width="([\d.]+)" height="([\d.]+)"/>', html
        )
    ]
    unit = HEIGHT / (8 * 1.04)
    first, second, third, fourth = bars
    assert [bar[2] for bar in bars] == ["c0", "c1", "c1", "c0"]
    assert [bar[4] for bar in bars] == pytest.approx([4 * unit, 4 * unit, 2 * unit, unit], abs=0.2)
    assert second[1] + second[4] == pytest.approx(first[1], abs=0.2)
    assert [bar[0] for bar in bars] == pytest.approx([0, 0, WIDTH / 3, 2 * WIDTH / 3], abs=0.1)
    assert "10 to 19 tokens: 8 samples\na: 4\nb: 4" in html
    assert third[3] == fourth[3] == pytest.approx(WIDTH / 3, abs=0.1)


def test_a_share_is_drawn_beside_the_one_that_was_asked_for() -> None:
    html = share_bar(0.2, 0.3, 0.4)
    assert 'width="500.0"' in html
    assert 'd="M750.0 0v20" class="asked"' in html
    assert 'class="asked"' not in share_bar(0.2, None, 1.0)
