"""A figure knows its ratio and whether its target holds, and the table shows both."""

import json
import math

import pytest

from bench.table import Figure, rows, show


@pytest.mark.parametrize(
    ("value", "other", "target", "met"),
    [
        (8.0, None, "<= 8", True),
        (8.1, None, "<= 8", False),
        (150.0, 1000.0, ">= 150", True),
        (149.0, 1.0, ">= 150", False),
        (30.0, 2.0, ">= 15 x", True),
        (29.0, 2.0, ">= 15 x", False),
        (30.0, None, ">= 15 x", None),
        (30.0, 2.0, "a few", None),
        (30.0, 2.0, "", None),
        (math.nan, 2.0, ">= 1", None),
        (2000.0, None, "<= 1,500", False),
    ],
)
def test_a_target_holds_of_the_value_or_with_an_x_of_the_ratio(
    value: float, other: float | None, target: str, met: bool | None
) -> None:
    assert Figure("what", value, "unit", "peer", other, target).met is met


def test_a_row_shows_the_peer_the_ratio_and_whether_the_target_holds() -> None:
    header, row = rows([Figure("read", 1000.0, "MB/s", "peer", 50.0, ">= 15 x")])
    assert dict(zip(header, row, strict=True)) == {
        "what": "read",
        "value": "1,000",
        "unit": "MB/s",
        "target": ">= 15 x",
        "met": "yes",
        "beside": "peer",
        "other": "50",
        "ratio": "20",
    }


def test_a_figure_without_a_peer_keeps_its_row() -> None:
    _, row = rows([Figure("read", math.nan, "", "peer, not installed")])
    assert row == ("read", "", "", "", "", "peer, not installed", "", "")


def test_figures_are_printed_as_json_with_their_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    show([Figure("read", 3.0, "MB/s", "peer", 2.0)], as_json=True)
    [one] = json.loads(capsys.readouterr().out)
    assert (one["what"], one["ratio"]) == ("read", 1.5)
