"""A TurboMind export: the engine's weights and config.yaml, or nothing but what serves the hf export."""

from collections.abc import Mapping
from pathlib import Path

from export.cast import Dtype
from export.hf import Model
from export.model_config import read_config
from export.sources.foreign import Foreign
from export.turbomind.config import config_yaml
from export.turbomind.geometry import Geometry, Unservable, architecture_of
from export.turbomind.hf_direct import refuse_unready
from export.turbomind.packed import refuse_packed
from export.turbomind.serve import serving_files
from export.turbomind.writer import write_weights
from pipelines.artifacts import write_atomic
from pipelines.progress import progress_bar
from pipelines.schema import TurbomindExport

WEIGHTS = Path("triton_models") / "weights"
CONFIG = "config.yaml"


def write_turbomind(model: Model, folder: Path, table: TurbomindExport, model_name: str) -> None:
    """Write a folder that LMDeploy 0.6 to 0.7.3 serves, straight from the checkpoint, or what serves the hf export.

    Raises:
        Unservable: if the model cannot be served so, before anything is written.
    """
    if table.mode == "hf_direct":
        _write_files(folder, serving_files(model, table, model_name))
        return
    geometry, settings = settings_of(model, table, model_name)
    serving = serving_files(model, table, model_name)
    weights = folder / WEIGHTS
    weights.mkdir(parents=True)
    with progress_bar("writing turbomind", model.weights.nbytes, "B") as progress:
        source = model.checkpoint
        packed = source if geometry.group and isinstance(source, Foreign) else None
        write_weights(weights, model.weights, geometry, progress, packed)
    model.write_files(folder)
    _write_files(folder, serving)
    write_atomic(weights / CONFIG, settings)  # last, as its presence is what says that the weights are there


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        write_atomic(folder / name, content)


def refuse_turbomind(model: Model, dtype: Dtype, table: TurbomindExport, model_name: str) -> None:
    """What can be known to fail, before any work.

    Args:
        dtype: of the hf export.
    Raises:
        Unservable: if the model cannot be served as asked for, with the reason.
    """
    if table.mode == "hf_direct":
        refuse_unready(model, dtype, table)
    else:
        settings_of(model, table, model_name)
    serving_files(model, table, model_name)


def settings_of(model: Model, table: TurbomindExport, model_name: str) -> tuple[Geometry, bytes]:
    """The model's sizes and its config.yaml.

    Raises:
        Unservable: if no TurboMind folder of the model can be served, with the reason.
    """
    architecture = architecture_of(read_config(model.checkpoint.model))
    group = table.group_size if table.model_format == "awq" else 0
    geometry = Geometry.of(architecture, model.config, model.weights.shapes, table.tp, group)
    if kept := next((name for name in model.weights.shapes if model.weights.dtype_of(name) == "float32"), None):
        raise Unservable(f"{kept} stays in float32, and a TurboMind folder has one number format")
    refuse_packed(model.checkpoint, geometry, table)
    return geometry, config_yaml(geometry, model.config, table, model_name)
