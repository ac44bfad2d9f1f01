"""Models that come with code of their own, which runs only where [model] asks for it, from files that are recorded."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from pipelines.artifacts import make_directory
from pipelines.errors import ConfigError
from pipelines.model_source import one_at_a_time
from pipelines.schema import Pipeline

MODEL = "AutoModelForCausalLM"


def read_config(pipeline: Pipeline, folder: Path) -> PretrainedConfig:
    """The config of a model directory; the code beside it is imported where model.trust_remote_code says so.

    Without that none of it runs: a type that Transformers has is its own, whatever the directory brings.

    Raises:
        ConfigError: if the model is nothing but code; without a place, which the caller adds.
    """
    if not pipeline.model.trust_remote_code:
        _refuse_code(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if hasattr(config, "auto_map"):
            del config.auto_map  # an export has none of the files that it names
        return config
    _refuse_code_elsewhere(folder)
    with one_at_a_time(f"code:{folder.resolve()}"):  # Transformers copies it to a place that ranks share
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=True)
        if reference := getattr(config, "auto_map", {}).get(MODEL):
            get_class_from_dynamic_module(reference, folder, local_files_only=True)
    return config


def copy_code(folder: Path, to: Path) -> None:
    """The Python files of a model directory, as they lie in it."""
    for path in sorted(folder.rglob("*.py")):
        target = to / path.relative_to(folder)
        make_directory(target.parent)
        shutil.copyfile(path, target)


def _refuse_code(folder: Path) -> None:
    config = _as_written(folder)
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise ConfigError(
            f"Transformers has no {config.get('model_type')} models, and code that a model brings is not run; read it, "
            "then set model.trust_remote_code = true"
        )


def _refuse_code_elsewhere(folder: Path) -> None:
    """Refuse code of another repository: no commit pins it, and no digest or checkpoint has it."""
    names = _as_written(folder).get("auto_map")
    for reference in names.values() if isinstance(names, dict) else ():
        repository, found, _ = str(reference).partition("--")
        if found:
            raise ConfigError(
                f"its config.json takes code of another repository, {repository}, which nothing pins; put the Python "
                f'files into a copy of the model, take "{repository}--" out of its auto_map, and name that'
            )


def _as_written(folder: Path) -> dict[str, Any]:
    """config.json; empty where it cannot be read, of which Transformers says what is wrong with it."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
