"""A second writer of TurboMind weight files: one column, one row, one rank at a time, straight from the format's text.

It shares nothing with the exporter. For every column of a file it says which row of which Hugging Face weight it is.
"""

from typing import Any

import torch

from tests.export.tiny import Tensors


def weight_files(config: dict[str, Any], tensors: Tensors, tp: int, dtype: str) -> dict[str, bytes]:
    """Content of every weight file by name."""
    kind = getattr(torch, dtype)
    hf = {name: torch.from_numpy(tensor).to(kind) for name, tensor in tensors.items()}
    files: dict[str, torch.Tensor] = {}
    rows, hidden = config["vocab_size"], config["hidden_size"]
    padded = rows
    while padded % tp:
        padded += 1
    embedding = torch.zeros(padded, hidden, dtype=kind)
    embedding[:rows] = hf["model.embed_tokens.weight"]
    output = torch.zeros(padded, hidden, dtype=kind)
    output[:rows] = hf["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    for rank in range(tp):
        wide, tall = hidden // tp, padded // tp
        files[f"tok_embeddings.{rank}.weight"] = embedding[:, rank * wide : (rank + 1) * wide]
        files[f"output.{rank}.weight"] = output[rank * tall : (rank + 1) * tall]
    files["norm.weight"] = hf["model.norm.weight"]
    for layer in range(config["num_hidden_layers"]):
        files |= _layer(config, hf, layer, tp, kind)
    return {name: tensor.contiguous().view(torch.uint8).numpy().tobytes() for name, tensor in files.items()}


def _layer(
    config: dict[str, Any], hf: dict[str, torch.Tensor], layer: int, tp: int, kind: torch.dtype
) -> dict[str, torch.Tensor]:
    theirs, ours = f"model.layers.{layer}", f"layers.{layer}"
    files = {
        f"{ours}.attention_norm.weight": hf[f"{theirs}.input_layernorm.weight"],
        f"{ours}.ffn_norm.weight": hf[f"{theirs}.post_attention_layernorm.weight"],
    }
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim", hidden // heads)
    place = (lambda head, j, size: head * size + j) if config["model_type"] == "glm" else _rotated
    query_rows = [place(head, j, size) for head in range(heads) for j in range(size)]
    copies = [head for head in range(kv) for _ in range(max(1, tp // kv))]
    key_rows = [place(head, j, size) for head in copies for j in range(size)]
    value_rows = [head * size + j for head in copies for j in range(size)]
    for rank in range(tp):
        columns: list[torch.Tensor] = []
        biases: list[torch.Tensor] = []
        for name, source in (("q", query_rows), ("k", key_rows), ("v", value_rows)):
            share = len(source) // tp
            for row in source[rank * share : (rank + 1) * share]:
                columns.append(hf[f"{theirs}.self_attn.{name}_proj.weight"][row])
                if f"{theirs}.self_attn.{name}_proj.bias" in hf:
                    biases.append(hf[f"{theirs}.self_attn.{name}_proj.bias"][row])
        files[f"{ours}.attention.w_qkv.{rank}.weight"] = torch.stack(columns, dim=1)
        share = heads * size // tp
        rows = [hf[f"{theirs}.self_attn.o_proj.weight"][:, row] for row in range(rank * share, (rank + 1) * share)]
        files[f"{ours}.attention.wo.{rank}.weight"] = torch.stack(rows)
        if biases:
            files[f"{ours}.attention.w_qkv.{rank}.bias"] = torch.stack(biases)
            zeros = torch.zeros(hidden, dtype=kind)
            files[f"{ours}.attention.wo.{rank}.bias"] = hf.get(f"{theirs}.self_attn.o_proj.bias", zeros)
        files |= _mlps(config, hf, layer, rank, tp)
    if config["model_type"] == "mixtral":
        router = hf[f"{theirs}.block_sparse_moe.gate.weight"]
        files[f"{ours}.moe_ffn.gate.weight"] = torch.stack([router[:, i] for i in range(hidden)])
    return files


def _mlps(
    config: dict[str, Any], hf: dict[str, torch.Tensor], layer: int, rank: int, tp: int
) -> dict[str, torch.Tensor]:
    theirs, ours, inner = f"model.layers.{layer}", f"layers.{layer}", config["intermediate_size"]
    if config["model_type"] == "mixtral":
        files: dict[str, torch.Tensor] = {}
        for expert in range(config["num_local_experts"]):
            names = [f"{theirs}.block_sparse_moe.experts.{expert}.{name}.weight" for name in ("w1", "w3", "w2")]
            gate, up, down = (hf[name] for name in names)
            files |= _mlp(gate, up, down, f"{ours}.moe_ffn.experts.{expert}", rank, tp)
        return files
    if config["model_type"] == "glm":
        both = hf[f"{theirs}.mlp.gate_up_proj.weight"]
        gate, up = both[:inner], both[inner:]
    else:
        gate, up = (hf[f"{theirs}.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    return _mlp(gate, up, hf[f"{theirs}.mlp.down_proj.weight"], f"{ours}.feed_forward", rank, tp)


def _mlp(
    gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor, ours: str, rank: int, tp: int
) -> dict[str, torch.Tensor]:
    inner, zeros = gate.shape[0], torch.zeros_like(gate[0])
    share = -(-inner // tp)
    mine = range(rank * share, (rank + 1) * share)
    return {
        f"{ours}.w1.{rank}.weight": torch.stack([gate[i] if i < inner else zeros for i in mine], dim=1),
        f"{ours}.w3.{rank}.weight": torch.stack([up[i] if i < inner else zeros for i in mine], dim=1),
        f"{ours}.w2.{rank}.weight": torch.stack([down[:, i] if i < inner else zeros for i in mine]),
    }


def _rotated(head: int, j: int, size: int) -> int:
    """The row that is the j-th of its head: first halves on even places, second halves on odd ones."""
    return head * size + (j // 2 if j % 2 == 0 else size // 2 + j // 2)
