"""Models that come with code of their own, which runs only where [model] asks for it, from files that are recorded."""

import json
import shutil
from pathlib import Path

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
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return  # Transformers says what is wrong with it
    if isinstance(config, dict) and config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise ConfigError(
            f"Transformers has no {config.get('model_type')} models, and code that a model brings is not run; read it, "
            "then set model.trust_remote_code = true"
        )
