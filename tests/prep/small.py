"""Small pipelines for tests to prepare."""

from collections.abc import Callable
from pathlib import Path

from pipelines.config import load

TOKENIZER = Path(__file__).parents[2] / "pipelines" / "quickstart" / "tokenizer"
LINE = '{{"messages": [{{"role": "user", "content": "{0}?"}}, {{"role": "assistant", "content": "{0}!"}}]}}\n'

MakePipeline = Callable[..., Path]


def conversations(count: int) -> str:
    return "".join(LINE.format(f"word {number} " * (number % 4 + 1)) for number in range(count))


def written(file: Path) -> dict[str, bytes]:
    """Every byte of the artefact."""
    folder = load(file).home / "prep"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("run.json", ".lock", "lengths.npz")
    }
