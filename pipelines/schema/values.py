"""What keys hold: numbers, paths and names, each checked as it is read, and the base of all tables."""

import math
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

from pipelines.toml_text import KeyPath

LONGEST = 2**31 - 1  # tokens of a sample are counted in 32 bits
MOST_TOKENS = 2**30  # token positions inside a shard are 32-bit, and its last pack may pass shard_tokens


def fault(finding: str, *path: str | int) -> PydanticCustomError:
    """A validator's complaint about the key at `path` below its table; the reader adds the key's place and value."""
    return PydanticCustomError("fault", "{finding}", {"finding": finding, "path": path})


def real(value: object) -> object:
    if isinstance(value, Decimal) or (isinstance(value, int) and not isinstance(value, bool)):
        try:
            value = float(value)
        except OverflowError:
            value = math.inf
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("expected a finite number")
    return value


def exact(value: object) -> object:
    if isinstance(value, int) and not isinstance(value, bool):
        value = Decimal(value)
    if isinstance(value, Decimal) and not (value.is_finite() and abs(value.adjusted()) <= 30):
        raise ValueError("expected a finite number of usual size")
    return value


def _whole(value: object) -> object:
    # Python takes true and 1.0 for 1, and so would a Literal.
    if isinstance(value, bool | float | Decimal):
        raise PydanticCustomError("kind", "not a whole number")
    return value


def pair(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _json(value: Any, *, path: KeyPath = ()) -> Any:
    if isinstance(value, dict):
        return {key: _json(child, path=(*path, key)) for key, child in value.items()}
    if isinstance(value, list):
        return [_json(child, path=(*path, index)) for index, child in enumerate(value)]
    if isinstance(value, Decimal):
        value = float(value)
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise fault("expected text, a finite number, true or false", *path)
    return value


def _columns(value: dict[str, Any]) -> dict[str, Any]:
    for key, name in value.items():
        if not isinstance(name, str):
            raise fault("expected text in quotes", key)
    return value


def _local_path(value: object, info: ValidationInfo) -> object:
    if isinstance(value, str):
        value = expand(value)
    if not isinstance(value, str | Path):
        return value
    if str(value).startswith("~"):
        raise ValueError("~ is not expanded here; write ${env:HOME} instead")
    base = Path(info.context["base"] if info.context else "").resolve()
    # The TOML's folder is resolved and the rest is taken as written: a linked data file keeps its own name.
    path = Path(os.path.normpath(base / value))
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _where(value: object, info: ValidationInfo) -> object:
    """A path, or as it is a repository of the hub that the key `source` before it names."""
    source = info.data.get("source", "local")
    if source == "local" or not isinstance(value, str):
        return _local_path(value, info)
    text = expand(value)
    if not re.fullmatch(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", text, re.ASCII):
        raise ValueError(f'expected a repository such as "org/name", as source = "{source}" says')
    return Path(text)


def _revision(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.+/-]*", value, re.ASCII) or ".." in value:
        raise ValueError("expected a commit, a tag or a branch")
    return value


def _download_arguments(value: dict[str, Any]) -> dict[str, Any]:
    for key, one in value.items():
        name = key.removesuffix("_env")
        if name in _OURS:
            raise fault("packtrain sets it; remove it", key)
        if key.endswith("_env"):
            if not isinstance(one, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", one):
                raise fault("expected the name of an environment variable", key)
        elif re.search(r"token|secret|password|cookie|header|auth|key", key):
            raise fault(f"a secret has no place in a file; set {key}_env to the environment variable that has it", key)
        elif re.search(r"://[^/\s]*@", str(one)):
            raise fault(f"a password has no place in a file; set {key}_env to the variable that has this address", key)
        if key == "cache_dir" and (not isinstance(one, str) or not Path(expand(one)).is_absolute()):
            raise fault("expected an absolute path", key)
    return value | ({"cache_dir": expand(value["cache_dir"])} if "cache_dir" in value else {})


_OURS = {
    "repo_id", "model_id", "repo_type", "revision", "local_dir", "local_files_only", "allow_patterns",
    "ignore_patterns", "allow_file_pattern", "ignore_file_pattern", "dry_run", "force_download", "tqdm_class",
}  # fmt: skip
"""Arguments of the hubs' downloads that other keys decide, or nothing here may."""


def _special_texts(value: list[str]) -> list[str]:
    for index, text in enumerate(value):
        if not text.strip():
            raise fault("expected text that is more than spaces", index)
        if text in value[:index]:
            raise fault("is there twice; remove one", index)
    return value


def pattern(value: str) -> str:
    parts = value.split("/")
    if {"", ".", ".."} & set(parts) or parts[-1] == "**":
        raise ValueError("expected a pattern below the source's directory, such as **/*.jsonl")
    return value


def file_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", value):
        raise ValueError("expected letters, digits, '.', '_' or '-', starting with a letter or digit, at most 128")
    return value


def _python_map(value: str) -> str:
    if not re.fullmatch(r"python(:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)(:[A-Za-z_]\w*)", value, re.ASCII):
        raise ValueError("expected python:module:function")
    return value


def expand(text: str) -> str:
    """A path's text with ${env:NAME} and ${env:NAME:-fallback} replaced; an empty variable counts as unset.

    Raises:
        ValueError: if a variable without a fallback is not set, or the result is no path.
    """

    def value(match: re.Match[str]) -> str:
        name, fallback = match.groups()
        found = os.environ.get(name) or fallback
        if found is None:
            raise ValueError(f"environment variable {name} is not set; set it, or write ${{env:{name}:-fallback}}")
        return found

    if re.sub(_VARIABLE, "", text).count("${"):
        raise ValueError("expected ${env:NAME} or ${env:NAME:-fallback}")
    text = re.sub(_VARIABLE, value, text)
    if not text or "\0" in text:
        raise ValueError("expected a path")
    return text


_VARIABLE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")

Real = Annotated[float, BeforeValidator(real)]
"""A finite binary float, written in TOML as an integer or a decimal."""
PositiveReal = Annotated[float, Field(gt=0), BeforeValidator(real)]
NonNegativeReal = Annotated[float, Field(ge=0), BeforeValidator(real)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(real)]
"""A part of a whole."""
Beta = Annotated[float, Field(ge=0, lt=1), BeforeValidator(real)]
"""How much of a running mean stays at each step."""
PositiveExact = Annotated[Decimal, Field(gt=0), BeforeValidator(exact)]
"""A finite exact decimal above 0."""
Verbatim = Annotated[dict[str, Any], AfterValidator(_json)]
"""Keys of another project's JSON, passed on as they are."""
Columns = Annotated[dict[str, Any], AfterValidator(_columns)]
"""Names by names."""
Whole = BeforeValidator(_whole)
"""On a Literal of integers: takes neither true nor 1.0 for 1."""
LocalPath = Annotated[Path, BeforeValidator(_local_path)]
"""A path, relative to the TOML file that names it; ${env:NAME} and ${env:NAME:-fallback} are replaced."""
Where = Annotated[Path, BeforeValidator(_where)]
"""A LocalPath, or where the key `source` names a hub a repository of it; ${env:NAME} is replaced in both."""
Revision = Annotated[str, AfterValidator(_revision)]
"""What a version of a repository is called."""
DownloadArguments = Annotated[dict[str, Any], AfterValidator(_json), AfterValidator(_download_arguments)]
"""Arguments of a hub's download; secrets by the name of an environment variable."""
SpecialTexts = Annotated[list[str], AfterValidator(_special_texts)]
"""Texts of tokens, each once."""
Name = Annotated[str, AfterValidator(file_name)]
"""A name that is also a file name."""
MapName = Literal[
    "openai",
    "sharegpt",
    "alpaca",
    "alpaca_zh",
    "oasst1",
    "pretrain",
    "default",
    "none",
    "arxiv",
    "code_alpaca",
    "colors",
    "crime_kg_assitan",
    "crime_kg_assitant",
    "crime_kg_assistant",
    "law_reference",
    "medical",
    "msagent_react",
    "openorca",
    "sql",
    "stack_exchange",
    "tiny_codes",
    "wizardlm",
]
"""Shape of a record, as prep/records.py describes each."""
PythonMap = Annotated[str, AfterValidator(_python_map)]
"""`python:module:function`: a map of the user's own."""
Ranks = dict[str, PositiveInt]
"""Ranks by the end of a module's name."""
Alphas = dict[str, PositiveReal]
"""Scales by the end of a module's name."""


class Table(BaseModel):
    """Base of all tables: no coercion, no unknown keys, no change after reading."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        # A default is read like a key of the file, also inside a table that is left out: its paths begin there too.
        validate_default=True,
        revalidate_instances="always",
    )
