"""Numbers as the page writes them, also where rounding makes them longer."""

import pytest

from pipelines.report.numerals import count, duration, real, short, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.5, "0.5"), (5.505, "5.505"), (0.12345, "0.1235"), (999.96, "1000"), (1234.5, "1,234"),
        (123456.7, "123,457"), (2e-5, "2e-5"), (1.5e-5, "1.5e-5"), (1e9, "1e9"), (-0.25, "-0.25"),
        (None, "not finite"), (float("nan"), "not finite"),
    ],
)  # fmt: skip
def test_reals_have_four_digits(value: float | None, text: str) -> None:
    assert real(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7, "7"), (999, "999"), (1_000, "1.00k"), (45_123, "45.1k"), (999_499, "999k"), (999_600, "1.00M"),
        (1_580_000, "1.58M"), (7.6e9, "7.60B"), (1.2e13, "12.0T"),
    ],
)  # fmt: skip
def test_large_counts_have_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_nouns_sizes_and_times() -> None:
    assert [count(number, "pack") for number in (0, 1, 1_234)] == ["0 packs", "1 pack", "1,234 packs"]
    assert [size(number) for number in (1, 999, 2_000, 4_310_000)] == ["1 byte", "999 bytes", "2 kB", "4.31 MB"]
    assert [duration(seconds) for seconds in (1.5, 65, 7_400, 300_000)] == [
        "1.5 s", "1 min 05 s", "2 h 03 min", "3 d 11 h",
    ]  # fmt: skip
