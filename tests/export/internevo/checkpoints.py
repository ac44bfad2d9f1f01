"""Tiny InternEvo checkpoints, cut by hand from the definition: whole tensors by name, then every rank's share."""

from pathlib import Path
from typing import Any

import torch

State = dict[str, torch.Tensor]

SETTINGS: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 8,
    "num_kv_attention_heads": 4,
    "vocab_size": 24,
    "mlp_ratio": 1.25,
    "layer_norm_epsilon": 1e-5,
    "no_bias": True,
    "embed_split_hidden": True,
    "norm_head": False,
    "adapt_hf": True,
    "rope_base": 50000,
    "num_chunks": 1,
    "dtype": torch.bfloat16,
    "norm_type": "rmsnorm",
    "max_position_embeddings": 64,
    "use_dynamic_ntk_rope": False,
    "use_flash_attn": True,
}
_MLP = 40
_COLUMNS = ("wo.weight", "w2.weight", "tok_embeddings.weight")
_EQUAL = ("norm.weight", "wo.bias")


def whole_tensors(kind: str, settings: dict[str, Any]) -> State:
    """Every tensor before it is cut, with random numbers."""
    chance = torch.Generator().manual_seed(3)
    hidden, heads, kv = settings["hidden_size"], settings["num_attention_heads"], settings["num_kv_attention_heads"]
    head = hidden // heads
    shapes: dict[str, tuple[int, ...]] = {}
    embedding = "tok_embeddings" if settings["embed_split_hidden"] else "tok_embeddings.word_embeddings"
    shapes[f"{embedding}.weight"] = (settings["vocab_size"], hidden)
    rows = {"wqkv": hidden + 2 * kv * head} if kind == "internlm2" else {"wq": hidden, "wk": kv * head, "wv": kv * head}
    for layer in range(settings["num_layers"]):
        place = f"layers.{layer}"
        for name, count in {**rows, "wo": hidden}.items():
            shapes[f"{place}.attention.{name}.weight"] = (count, hidden)
            if not settings["no_bias"]:
                shapes[f"{place}.attention.{name}.bias"] = (count,)
        shapes[f"{place}.feed_forward.w1.weight"] = shapes[f"{place}.feed_forward.w3.weight"] = (_MLP, hidden)
        shapes[f"{place}.feed_forward.w2.weight"] = (hidden, _MLP)
        shapes[f"{place}.attention_norm.weight"] = shapes[f"{place}.ffn_norm.weight"] = (hidden,)
    shapes |= {"norm.weight": (hidden,), "output.weight": (settings["vocab_size"], hidden)}
    dtype = settings["dtype"]
    return {name: torch.randn(shape, generator=chance).to(dtype) for name, shape in shapes.items()}


def cut(whole: State, tp: int, runs: list[list[list[int]]]) -> dict[str, State]:
    """State of every file.

    Args:
        runs: [stages] runs of layers of each stage, in the order of their chunks.
    """
    files: dict[str, State] = {}
    for stage, chunks in enumerate(runs):
        for rank in range(tp):
            state: State = {}
            for chunk, layers in enumerate(chunks):
                first, last = (stage, chunk) == (0, 0), (stage, chunk) == (len(runs) - 1, len(chunks) - 1)
                prefix = f"model.{chunk}." if len(chunks) > 1 else "model."
                for name, tensor in whole.items():
                    stored = name
                    if name.startswith("layers."):
                        _, number, rest = name.split(".", 2)
                        if int(number) not in layers:
                            continue
                        stored = f"layers.{layers.index(int(number))}.{rest}"
                    elif not (first if name.startswith("tok_") else last):
                        continue
                    state[prefix + stored] = _share(name, tensor, rank, tp)
            files[f"model_tp{rank}_pp{stage}.pt"] = state
    return files


def write(folder: Path, settings: dict[str, Any], files: dict[str, State]) -> Path:
    folder.mkdir(parents=True)
    torch.save(settings, folder / "model_config.pt")
    for name, state in files.items():
        torch.save(state, folder / name)
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, State]]:
    files = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("model_tp*_pp*.pt"))}
    return torch.load(folder / "model_config.pt", weights_only=True), files


def same(one: State, other: State) -> bool:
    """Whether both hold the same names, shapes, number formats and bits."""
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _share(name: str, tensor: torch.Tensor, rank: int, tp: int) -> torch.Tensor:
    if name.endswith(_EQUAL):
        return tensor
    return tensor.chunk(tp, dim=1 if name.endswith(_COLUMNS) else 0)[rank].clone()
