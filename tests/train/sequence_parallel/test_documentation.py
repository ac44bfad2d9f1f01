"""The example of docs/sequence_parallel.md and README.md, as it stands there."""

import re
from pathlib import Path

import pytest

from tests.train.ranks import run_on_ranks

ROOT = Path(__file__).parents[3]


def examples() -> list[str]:
    """Each of these pages that has the example, but the same text once."""
    pages = [ROOT / "docs" / "sequence_parallel.md", ROOT / "README.md"]
    blocks = [re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL) for page in pages]
    found = [block for page in blocks for block in page if "init_sequence_parallel(2)" in block]
    return list(dict.fromkeys(found))


def _run(code: str, printed: Path) -> None:
    def note(text: str) -> None:
        with printed.open("a") as file:
            file.write(text + "\n")

    exec(compile(code, "example.py", "exec"), {"__name__": "__main__", "print": note})


def losses(code: str, ranks: int, printed: Path) -> list[float]:
    assert run_on_ranks(ranks, _run, code, printed) == [0] * ranks
    return [float(line.removeprefix("loss ")) for line in printed.read_text().splitlines()]


def test_pages_have_the_example() -> None:
    assert examples()


@pytest.mark.slow
@pytest.mark.parametrize("example", examples(), ids=len)
def test_example_prints_the_same_losses_on_any_ranks(example: str, tmp_path: Path) -> None:
    alone, two, four = (
        losses(example.replace("parallel(2)", f"parallel({ranks})"), ranks, tmp_path / f"{ranks} to a pack")
        for ranks in (1, 2, 4)
    )
    assert len(alone) == 16
    assert two == pytest.approx(alone, abs=1.1e-4)  # printed with four digits
    assert four == pytest.approx(alone, abs=1.1e-4)
    assert alone[-1] < alone[0]
    assert len(losses(example, 4, tmp_path / "4")) == 8, "two packs a step"
