"""What is compared after writing and before an export gets its name: numbers, logits, text and prompts.

The other side of each comparison is the checkpoint: its tensors after the stated rounding, its config as the trainer
saved it, its tokenizer's probe conversations as prep rendered them.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from export.adapter import WEIGHTS, load_adapter, load_trained_adapter, stored_tensors
from export.blocks import THREADS, Block, blocks_of, each
from export.cast import WIDTH, Bits
from export.hf import Model
from export.language_model import Continuation, continue_greedily, load_folder, load_tensors
from export.model_config import read_config
from export.original_layout import OriginalWeights
from export.safetensors_stream import FORMAT, Digests
from export.weights import Weights
from pipelines.artifacts import Json, digest_file
from pipelines.errors import CheckError
from pipelines.file_ranges import FileRanges
from pipelines.probes import Probes
from pipelines.progress import progress_bar
from pipelines.safetensors_header import Entry, read_header
from pipelines.schema import ExportVerify

PROMPTS = 4
"""Probe prompts that are continued."""


def verify_hf(model: Model, folder: Path, table: ExportVerify, written: Digests | None = None) -> Json:
    """Check a Hugging Face directory; returns what was compared, for its manifest.

    Args:
        written: digests of files as they were computed; what is in others is computed again.
    Raises:
        CheckError: at the first difference, naming it.
    """
    found: dict[str, Json] = {"tensors_equal": compare_safetensors(model.weights, folder, written or {})}
    found["prompts_equal"] = _compare_prompts(model, folder)
    if table.greedy_tokens:
        exported = continuations(model, _loaded(model, folder), table.greedy_tokens)
        trained = continuations(model, trained_model(model, folder), table.greedy_tokens)
        found["greedy"] = compare_continuations(exported, trained, table.max_abs_diff, folder)
    return found


def verify_adapter(model: Model, base: Path, folder: Path, table: ExportVerify) -> Json:
    """Check a PEFT directory by loading it on its base; returns what was compared.

    Raises:
        CheckError: at the first difference, naming it.
    """
    found: dict[str, Json] = {"tensors_equal": _compare_adapter(model, folder)}
    found["prompts_equal"] = _compare_prompts(model, folder)
    if table.greedy_tokens:
        exported = continuations(model, load_adapter(base, folder), table.greedy_tokens)
        trained = continuations(model, load_trained_adapter(base, model), table.greedy_tokens)
        found["greedy"] = compare_continuations(exported, trained, table.max_abs_diff, folder)
    return found


def _compare_adapter(model: Model, folder: Path) -> int:
    path, weights = folder / WEIGHTS, model.weights
    with safe_open(path, framework="numpy") as file:
        stored = stored_tensors(model)
        for name, trained in stored.items():
            found = file.get_tensor(name).view(np.uint32)
            refuse_difference(found, weights.tensor(trained), f"{path}: {name}")
    return len(stored)


def _loaded(model: Model, folder: Path) -> Any:
    if not isinstance(model.weights, OriginalWeights):
        return load_folder(folder, code=model.code is not None)
    tensors = model.weights.read_back(folder).items()
    return load_tensors(read_config(model.checkpoint.model), tensors, model.weights.dtype, str(folder))


def trained_model(model: Model, folder: Path | None = None) -> Any:
    """The checkpoint's weights in the checkpoint's own config.

    Args:
        folder: an export with the same numbers, compared before; it is read where the names are the same as well, since
            merging costs more than that.
    """
    weights = model.weights.trained
    if folder is not None and weights is model.weights:
        tensors = _stored(folder)
    else:
        tensors = ((name, weights.tensor(name)) for name in weights.shapes)
    return load_tensors(
        read_config(model.checkpoint.model),
        tensors,
        model.weights.dtype,
        str(model.checkpoint.folder),
        model.code,
    )


def _stored(folder: Path) -> Iterator[tuple[str, Bits]]:
    """Every tensor of a directory as bit patterns, by name."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                tensor = file.get_tensor(name)
                yield name, tensor.view(torch.uint16 if tensor.element_size() == 2 else torch.uint32).numpy()


def compare_safetensors(
    weights: Weights, folder: Path, written: Digests | None = None, *, threads: int = THREADS
) -> int:
    """Compare every number in a directory of safetensors with what it was written from; returns the tensors.

    Args:
        written: digests of files as they were computed; what is in a file of that digest is not computed again.
    Raises:
        CheckError: at the first difference, naming it.
    """
    ranges = FileRanges()
    entries: dict[str, tuple[Path, Entry]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, entry in read_header(path).items():
            kind = FORMAT[weights.dtype_of(name)] if name in weights.shapes else None
            if entry.shape != weights.shapes.get(name) or entry.dtype != kind:
                raise CheckError(f"{path}: {name} is {entry.dtype}{list(entry.shape)}; export again")
            entries[name] = path, entry
    if len(entries) != len(weights.shapes):
        raise CheckError(f"{folder}: {len(entries)} of {len(weights.shapes)} tensors; export again")
    with progress_bar("checking hf", weights.nbytes, "B") as progress:

        def compare(block: Block) -> None:
            path, entry = entries[block.name]
            width = WIDTH[weights.dtype_of(block.name)]
            found = np.empty(block.stop - block.start, np.uint16 if width == 2 else np.uint32)
            ranges.read_bytes(path, entry.first + block.start * width, found)
            refuse_difference(found, weights.read(block.name, block.start, block.stop), f"{path}: {block.name}")
            progress(found.nbytes)

        same = _as_computed(folder, written or {}, progress, threads)
        others = [name for name in weights.shapes if entries[name][0] not in same]
        each(compare, blocks_of(weights, others), threads)
    for name in others:
        if entries[name][0].name in (written or {}):
            raise CheckError(f"{entries[name][0]}: what is in it was computed otherwise before; export again")
    return len(entries)


def _as_computed(folder: Path, written: Digests, progress: Callable[[int], object], threads: int) -> set[Path]:
    """The files that have the digest of what was computed."""
    paths = [folder / name for name in written if (folder / name).is_file()]
    with ThreadPoolExecutor(threads) as pool:
        found = pool.map(partial(digest_file, progress=progress), paths)
        return {path for path, digest in zip(paths, found, strict=True) if digest == written[path.name]}


def refuse_difference(found: Bits, expected: Bits, where: str) -> None:
    """Make sure that numbers read back are the checkpoint's.

    Raises:
        CheckError: naming `where`, and how many differ.
    """
    if found.shape != expected.shape:
        raise CheckError(f"{where} has shape {list(found.shape)}, the checkpoint {list(expected.shape)}; export again")
    different = int(np.count_nonzero(found != expected))
    if different:
        raise CheckError(
            f"{where} differs from the checkpoint in {different:,} of {found.size:,} numbers; export again"
        )


def _compare_prompts(model: Model, folder: Path) -> int:
    probes = Probes.read(model.checkpoint.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if finding := probes.difference(tokenizer, folder):
        raise CheckError(f"{folder}: {finding}")
    return len(probes.probes)


def continuations(model: Model, loaded: Any, tokens: int) -> list[Continuation]:
    """What a loaded model says after each of the first probe prompts."""
    prompts, found = probe_prompts(model), []
    with progress_bar("continuing prompts", len(prompts), "prompt") as progress:
        for prompt in prompts:
            found.append(continue_greedily(loaded, prompt, tokens))
            progress()
    return found


def probe_prompts(model: Model) -> list[Sequence[int]]:
    """What models are asked to continue: prompts of the probe conversations, or plain numbers where there are none."""
    probes = Probes.read(model.checkpoint.tokenizer).probes[:PROMPTS]
    rows = model.config["vocab_size"]
    return [probe.prompt_ids for probe in probes] or [[id_ % rows for id_ in range(1, 17)]]


def compare_continuations(
    exported: list[Continuation], trained: list[Continuation], max_abs_diff: float, folder: Path
) -> Json:
    """Compare what an export says with what the checkpoint's weights do; returns how much was compared.

    Raises:
        CheckError: if a token or a logit differs by more than is accepted.
    """
    worst = max(float((one.logits - other.logits).abs().max()) for one, other in zip(exported, trained, strict=True))
    if not worst <= max_abs_diff:
        raise CheckError(
            f"{folder}: its logits are up to {worst:g} from the checkpoint's, export.verify.max_abs_diff = "
            f"{max_abs_diff:g}; the exported config or weights are not the trained model"
        )
    if any(one.ids != other.ids for one, other in zip(exported, trained, strict=True)):
        raise CheckError(f"{folder}: it continues a probe prompt otherwise than the checkpoint; export again")
    return {"prompts": len(exported), "tokens": len(exported[0].ids), "max_abs_diff": worst}
