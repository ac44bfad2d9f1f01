"""The plan of a training run as a person reads it: aligned lines, numbers with units."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.layouts import BETWEEN_NODES, ROOM, TO_HOST, WITHIN_NODE, gb
from pipelines.terminal import plural

BEST = 15
"""Layouts that are shown."""
_SHORT = {
    "train.deepspeed.zero_stage": "ZeRO",
    "train.deepspeed.offload_optimizer": "optimizer",
    "train.deepspeed.offload_param": "parameters",
    "train.parallel.sequence_parallel_size": "SP",
    "train.activation_checkpointing": "checkpointing",
    "train.activation_offload": "inputs",
    "train.tiled_mlp": "tiled MLP",
}


def text(found: Mapping[str, Any]) -> str:
    """What `forecast` found, as lines."""
    blocks = [_run(found), _memory(found)]
    if found["time"] is not None:
        blocks.append(_time(found["time"], found["steps"]["total"]))
    if "layouts" in found:
        blocks.append(_layouts(found["layouts"], found["memory"]["gpu_memory"]))
    if found["notes"]:
        blocks.append([f"note: {note}" for note in found["notes"]])
    return "\n\n".join("\n".join(block) for block in blocks)


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Rows with aligned columns; those numbered in `right` end together."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if at in right else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _run(found: Mapping[str, Any]) -> list[str]:
    ranks, batch, model, data = found["ranks"], found["batch"], found["model"], found["data"]
    shared = ranks["sequence_parallel_size"]
    rows = [
        (
            "model",
            f"{model['model_type']}, {count(model['parameters'])} parameters"
            + (f", {count(model['trained'])} of them trained" if model["trained"] != model["parameters"] else "")
            + f" ({model['source']})",
        ),
        (
            "ranks",
            f"{ranks['total']:,} ({ranks['from']})"
            + (f", {shared} to a pack: {plural(ranks['groups'], 'group')}" if shared > 1 else ""),
        ),
        (
            "batch",
            f"{plural(batch['packs'], 'pack')} a step, {batch['tokens']:,} tokens at most: "
            f"{plural(ranks['micro_batches'], 'micro-batch', 'micro-batches')} a rank",
        ),
        ("data", _data(data)),
        ("steps", _steps(found["steps"])),
        *_events(found["events"]),
        ("checkpoint", _checkpoint(found["checkpoint"])),
    ]
    return table(rows)


def _data(data: Mapping[str, Any]) -> str:
    if data["from"] is None:
        return "unknown until prep has finished; --packs says how many packs an epoch has"
    if data["from"] == "--packs":
        return f"{data['packs']:,} packs an epoch (--packs), tokens unknown until prep has finished"
    share = data["loss_tokens"] / data["tokens"]
    return (
        f"{data['packs']:,} packs, {data['tokens']:,} tokens, {data['loss_tokens']:,} of them with loss ({share:.1%}) "
        "an epoch"
    )


def _steps(steps: Mapping[str, Any]) -> str:
    if steps["total"] is None:
        return "unknown"
    text = f"{steps['total']:,}"
    if steps["epochs"] is not None:
        text += f", {steps['epochs']:.2f} epochs"
    if steps["tokens"] is not None:
        text += f": {steps['tokens']:,} tokens, {steps['loss_tokens']:,} with loss"
    return text


def _events(events: Mapping[str, Any]) -> list[tuple[str, str]]:
    def when(every: int, times: int | None) -> str:
        text = f"every {every:,} steps and after the last" if every else "after the last step"
        return text + (f": {times:,}" if times is not None else "")

    rows = [("saves", when(events["save_steps"], events["saves"]))]
    if events["eval_steps"]:
        rows.append(("evaluation", when(events["eval_steps"], events["evaluations"])))
    if events["learning_rate"]:
        marks = [f"{mark['lr']:.3g} at step {mark['step']:,} ({mark['what']})" for mark in events["learning_rate"]]
        rows += [("learning rate" if not at else "", mark) for at, mark in enumerate(marks)]
    return rows


def _checkpoint(checkpoint: Mapping[str, Any]) -> str:
    kept = "all are kept" if checkpoint["kept"] is None else f"the newest {checkpoint['kept']} are kept"
    disk = "" if checkpoint["disk"] is None else f": {gb(checkpoint['disk'])} of disk, one more while saving"
    return f"{gb(checkpoint['bytes'])} each, {kept}{disk}"


def _memory(found: Mapping[str, Any]) -> list[str]:
    memory, layout = found["memory"], found["layout"]
    rows = [(f"  {name}", gb(size)) for name, size in sorted(memory["parts"].items(), key=lambda part: -part[1])]
    total = f"{gb(memory['total'])}"
    if memory["gpu_memory"] is not None:
        is_tight = memory["fits"] and memory["total"] > ROOM * memory["gpu_memory"]
        total += f" of {gb(memory['gpu_memory'])}: {'fits' if memory['fits'] else 'does not fit'}"
        total += ", but is tight" if is_tight else ""
    head = (
        f"memory of a rank at its peak, the {memory['peak']} ({layout['train.precision']}, packs of "
        f"{layout['prep.pack.capacity']:,} tokens)"
    )
    lines = [head, *table(rows, right=(1,)), f"  in all {total}"]
    if memory["host"]:
        lines.append(f"  and {gb(memory['host'])} of the machine's own memory for each rank")
    return [*lines, f"  ({memory['error']})"]


def _time(time: Mapping[str, Any], steps: int | None) -> list[str]:
    lines = [f"time of a step {time['seconds']:,.2f} s, {time['tokens_per_gpu_s']:,.0f} tokens a second and GPU"]
    if steps is not None:
        cost = "" if time["cost"] is None else f", cost {time['cost']:,.2f}"
        lines.append(f"  in all {time['hours']:,.2f} h, {time['gpu_hours']:,.1f} GPU hours{cost}")
    return [
        *lines,
        f"  (assumed: {time['mfu']:.1%} of {time['peak_flops'] / 1e12:,.0f} TFLOP/s, {time['mfu_source']};",
        f"  {time['attended']})",
    ]


def _layouts(layouts: Sequence[Mapping[str, Any]], gpu_memory: int) -> list[str]:
    every, fitting = len(layouts), sum(one["fits"] for one in layouts)
    timed = layouts[0]["seconds"] is not None
    header = [*_SHORT.values(), "GPU", "host a rank", *(["s a step", "tokens/GPU/s"] if timed else [])]
    rows = [header]
    shown = [one for one in layouts if one["fits"] and one["frontier"]] if fitting else layouts
    for one in shown[:BEST]:
        cells = [{True: "yes", False: "no"}.get(value, str(value)) for value in one["keys"].values()]
        cells[0] = str(one["keys"]["train.deepspeed.zero_stage"])
        cells[3] = str(one["keys"]["train.parallel.sequence_parallel_size"])
        cells += [
            gb(one["total"]) + (" tight" if gpu_memory * ROOM < one["total"] <= gpu_memory else ""),
            gb(one["host"]),
        ]
        if timed:
            cells += [f"{one['seconds']:,.2f}", f"{one['tokens_per_gpu_s']:,.0f}"]
        rows.append(cells)
    what = "fastest first, each next one takes less memory" if timed else "simplest first, each next one takes less"
    lines = [
        f"layouts: {fitting} of {every} fit {gb(gpu_memory)}; {what if fitting else 'those that take least'}",
        *(f"  {line}" for line in table(rows, right=(3, 7, 8, 9, 10))),
    ]
    if timed:
        lines += [
            f"  (assumed: {WITHIN_NODE / 1e9:.0f} GB/s between the GPUs of a machine, {BETWEEN_NODES / 1e9:.0f} GB/s "
            "between machines,",
            f"  {TO_HOST / 1e9:.0f} GB/s to the machine's memory)",
        ]
    return lines


def count(number: int) -> str:
    """`8.03B`, `1.61M`."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f}{unit}"
    return str(number)
