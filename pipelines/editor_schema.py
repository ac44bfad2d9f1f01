"""The JSON schema of a pipeline TOML, laid beside a file so that an editor completes and checks its keys."""

from pathlib import Path

from pipelines.artifacts import write_atomic

SCHEMA = Path(__file__).with_name("pipeline.schema.json")
"""As `python -m pipelines.reference` writes it."""


def pointing(toml: str) -> str:
    """A pipeline's text with the first line by which editors find the schema beside it."""
    return f"#:schema {SCHEMA.name}\n{toml}"


def write_schema(folder: Path) -> list[Path]:
    """Bring the schema in a folder up to date; returns it where it was written."""
    target, content = folder / SCHEMA.name, SCHEMA.read_bytes()
    if target.is_file() and target.read_bytes() == content:
        return []
    write_atomic(target, content)
    return [target]
