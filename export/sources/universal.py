"""DeepSpeed's universal checkpoints: `zero/<parameter>/fp32.pt`, a file for each parameter, whole."""

from pathlib import Path

from export.sources.deepspeed import LATEST as ORDINARY
from export.sources.deepspeed import is_dealt, module_of, step_folder
from export.sources.found import Found, stored_tensor
from export.sources.stored import StoredTensor
from export.sources.torch_file import TensorPlace, load
from pipelines.errors import CheckError, DataError

LATEST = "latest_universal"


def find(folder: Path) -> Found | None:
    """The checkpoint in a directory, None if there is none of this kind.

    Raises:
        CheckError: if it is incomplete or damaged.
        DataError: if DeepSpeed made it of the wrong numbers.
    """
    inner = folder
    latest = folder / LATEST
    if not (folder / "zero").is_dir() and latest.is_file():
        inner = folder / latest.read_text(encoding="utf-8", errors="replace").strip()
        if inner.parent != folder or not (inner / "zero").is_dir():
            raise CheckError(f"{inner}: {latest} names it, and there is no directory zero in it; copy it again")
    paths = sorted((inner / "zero").glob("*/fp32.pt"))
    if not paths:
        return None
    tensors = {path.parent.name: _tensor(path) for path in paths}
    for state in sorted((inner / "zero").glob("*/exp_avg.pt")):
        if state.parent.name not in tensors:
            raise CheckError(f"{state.parent / 'fp32.pt'}: missing, and is the weight itself; copy it as well")
    module, model = module_of(inner)
    if is_dealt(model, int(model.get("dp_world_size") or 1)):
        raise DataError(
            f"{inner}: was made of a run with round_robin_gradients, whose weights DeepSpeed's ds_to_universal takes "
            "from the wrong places; name the checkpoint that it was made of"
        )
    step = int(model.get("global_steps") or 0)
    if inner != folder:
        _refuse_other_step(folder, inner, step)
    # A conversion of ZeRO 3 leaves a parameter's numbers without its shape.
    beside = (folder, inner) if inner != folder else (folder, folder.parent)
    return Found("DeepSpeed universal", module | tensors, beside, step=step, flat=True)


def _refuse_other_step(folder: Path, inner: Path, step: int) -> None:
    """Training that went on from a universal checkpoint leaves it beside newer ones of its own."""
    newest = step_folder(folder) if (folder / ORDINARY).is_file() else None
    _, model = module_of(newest) if newest is not None else ({}, {})
    other = int(model.get("global_steps") or 0)
    if newest is not None and other != step:
        raise DataError(
            f"{folder}: {LATEST} names step {step}, {ORDINARY} names step {other}; name {inner} or {newest} itself"
        )


def _tensor(path: Path) -> StoredTensor:
    content = load(path)
    place = content.get("param") if isinstance(content, dict) else content
    if not isinstance(place, TensorPlace):
        raise CheckError(f"{path}: holds no tensor; copy it again")
    return stored_tensor(path.parent.name, place)
