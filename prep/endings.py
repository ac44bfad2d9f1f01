"""Which format a file is in, as far as its name tells: what a look at 100,000 names needs, and nothing imported."""

from collections.abc import Mapping

COMPRESSED = {".gz", ".zst"}
"""Endings that are taken off before the format is read from the name."""

ENDINGS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".json": "json",
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".bin": "ftdp",
}
"""Format of a file by its ending, where the source says auto."""


def format_of(name: str) -> str | None:
    """The format that a file's name tells, with .gz and .zst taken off; None if it tells none."""
    stem, ending = _split(name)  # pathlib takes ten times as long, and a folder may hold 100,000 names
    if ending not in COMPRESSED:
        return ENDINGS.get(ending)
    found = ENDINGS.get(_split(stem)[1])
    return found if found in ("jsonl", "json", "text", "csv", "tsv") else None


def _split(name: str) -> tuple[str, str]:
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem else (name, "")
