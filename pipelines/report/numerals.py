"""Numbers as the page writes them."""

import math


def real(value: float | None) -> str:
    """Four significant digits, or all before the point; `not finite` where there is no number."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def count(value: float, noun: str = "") -> str:
    """A whole number with commas, and its noun in the right number."""
    plural = f" {noun}" + ("" if value == 1 else "s") if noun else ""
    return f"{value:,.0f}{plural}"


def short(value: float) -> str:
    """Three significant digits and k, M, B or T: 1.23M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(abs(scaled) * 1.0005)))}f}{unit}"
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share of 1 in percent, with two digits behind the point."""
    return f"{share:.2%}"


def size(value: int) -> str:
    """Bytes in decimal units."""
    for scale, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return count(value, "byte")


def duration(seconds: float) -> str:
    """`3.2 s`, `4 min 05 s`, `2 h 03 min`, `3 d 04 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24:02d} h"
