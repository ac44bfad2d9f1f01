"""The bar that long steps show on a terminal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress_bar(title: str, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """Show how far `title` is; yields a function that is told what was done since it was told last."""
    scaled = unit == "B"
    with tqdm(total=total, desc=title, unit=unit, unit_scale=scaled, disable=None, leave=False) as bar:
        yield bar.update
