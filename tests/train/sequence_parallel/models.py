"""docs/models.md, the table of architectures: `python -m tests.train.sequence_parallel.models` writes it."""

import json
import tempfile
import textwrap
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from tests.train.sequence_parallel.architectures import ARCHITECTURES, REFUSED, Architecture
from tests.train.sequence_parallel.exactness import LENGTHS, TOLERANCE, Case, Difference, differences

ROOT = Path(__file__).resolve().parents[3]
MARKDOWN = ROOT / "docs" / "models.md"
RANKS = 4
VERSIONS = ("torch", "transformers")


def measure() -> list[Difference]:
    """Every architecture on 4 ranks that share a sequence."""
    cases = [Case(name, architecture.keys, RANKS) for name, architecture in ARCHITECTURES.items()]
    with tempfile.TemporaryDirectory() as folder:
        return differences(cases, RANKS, Path(folder))


def table(found: list[Difference], versions: Mapping[str, str]) -> str:
    """The page as Markdown."""
    paragraphs = [
        "# Models",
        _filled(
            f"""Written by `python -m tests.train.sequence_parallel.models`, which measures what it says. A tiny random
            model of each architecture runs over a pack of documents ({", ".join(map(str, LENGTHS))} tokens) that
            {RANKS} gloo ranks share, on a CPU in float32; the same documents run alone, one after the other, through
            Transformers' own eager attention. The figures are the largest relative differences of logits, loss and
            gradients (of any parameter); the test fails at {TOLERANCE:.0e}. Each model also passes the audit that the
            trainer makes before its first step."""
        ),
        f"Versions: {', '.join(f'{name} {number}' for name, number in versions.items())}.",
        "\n".join(
            [
                "| model_type | among them | attention | heads | logits | loss | gradients |",
                "|---|---|---|---|---|---|---|",
                *(_row(each, ARCHITECTURES[each.model_type]) for each in found),
            ]
        ),
        _filled(
            """Heads are query heads, and key and value heads. 4 ranks do not divide 6 heads: two ranks each
            exchange heads, and the two pairs gather each other's keys and values. Other models train as well if they
            pass the audit."""
        ),
        "## Refused by name",
        _filled(
            f"""Tokens see each other there in ways that attention over documents is not told of. Tests hold the trainer
            to refusing each, before its first step: {", ".join(REFUSED)} (phimoe only with a sliding window)."""
        ),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_on_hyphens=False, break_long_words=False)


def _row(found: Difference, architecture: Architecture) -> str:
    keys = architecture.keys
    heads = keys.get("num_attention_heads", keys.get("n_head"))
    of_keys = keys.get("num_key_value_heads", 1 if found.model_type == "gpt_bigcode" else heads)
    cells = [
        found.model_type, architecture.known_as, architecture.special, f"{heads}, {of_keys}",
        *(f"{value:.1e}" for value in (found.logits, found.loss, found.gradients)),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    found = measure()
    wrong = [each for each in found if not each.largest < TOLERANCE]
    assert not wrong, json.dumps([vars(each) for each in wrong])
    MARKDOWN.write_text(table(found, {name: version(name) for name in VERSIONS}), encoding="utf-8")


if __name__ == "__main__":
    main()
