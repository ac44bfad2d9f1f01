"""What a finished run says about itself: packs, loss, accuracy, where the exports are and how to try them."""

from pipelines.artifacts import Json, Manifest
from pipelines.schema import Pipeline

EVALUATION = "eval.json"


def facts(pipeline: Pipeline) -> dict[str, Json]:
    """The run in numbers; what a stage did not leave behind is null."""
    home = pipeline.home
    export = Manifest.read(home / "export")
    return {
        "packing": _packing(pipeline),
        "loss": export.facts["loss"] if export else None,
        "step": export.facts["step"] if export else None,
        "accuracy": export.facts["evaluation"] if export else None,
        "verified": export.facts["verified"] if export else None,
        "targets": {target: str(home / "export" / target) for target in pipeline.export.targets},
    }


def summary(pipeline: Pipeline) -> str:
    """The same for a person, with the command to talk to the result."""
    found = facts(pipeline)
    lines = []
    if packing := found["packing"]:
        lines.append(
            f"packing    {packing['packs']:,} packs of {packing['capacity']:,} tokens, {packing['fill']:.2%} full"
        )
    if loss := found["loss"]:
        lines.append(f"training   loss {loss['first']:.4f} before, {loss['last']:.4f} after {found['step']:,} steps")
    if accuracy := found["accuracy"]:
        lines.append(
            f"accuracy   {accuracy['accuracy']:.1%}: {accuracy['right']:,} of {accuracy['of']:,} held-out prompts "
            "answered exactly by the exported model"
        )
        width = max(map(len, accuracy["by_task"]), default=0)
        lines += [
            f"           {task:{width}}  {one['accuracy']:6.1%} of {one['of']}"
            for task, one in accuracy["by_task"].items()
        ]
    lines += [f"{target:10} {folder}" for target, folder in found["targets"].items()]
    if "hf" in found["targets"]:
        lines.append(f"talk to it: packtrain chat {found['targets']['hf']}")
    return "\n".join(lines)


def _packing(pipeline: Pipeline) -> Json:
    manifest = Manifest.read(pipeline.home / "prep")
    return {key: manifest.facts[key] for key in ("packs", "capacity", "fill")} if manifest else None
