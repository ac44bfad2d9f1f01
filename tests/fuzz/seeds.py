"""Inputs that are right, small, and of every kind, which fuzzing begins with: `python -m tests.fuzz.seeds`."""

import gzip
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save

from pipelines.artifacts import FileRecord, Manifest
from pipelines.shards import Packs, loss_bits, write_shard
from tests.export.internevo import checkpoints
from tests.export.sources.zero import small_tensors, write_zero
from tests.fuzz.artefacts import FACTS, RUN, SHARD
from tests.fuzz.bundle import joined, pickle_of
from tests.fuzz.weights import DISTRIBUTED, INTERNEVO, UNIVERSAL, ZERO_2, ZERO_3
from tests.pipelines.report.written import write_run

CORPUS = Path(__file__).with_name("corpus")
CONFIGS = Path(__file__).parents[1] / "pipelines" / "migrate" / "configs"
_TALK: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two.", "reasoning_content": "so", "loss": True},
    ]
}
_SHAREGPT: dict[str, Any] = {
    "system": "s",
    "conversations": [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": [1, 2.5, null]}}'},
        {"from": "observation", "value": "7"},
        {"from": "gpt", "value": "b", "weight": 1},
    ],
    "tools": '[{"name": "f"}]',
}
_MSAGENT: dict[str, Any] = {
    "conversations": [
        {"from": "system", "value": '[{"name": "f", "description": "d", "paths": [{"parameters": []}]}]'},
        {"from": "user", "value": "u"},
        {
            "from": "assistant",
            "value": 'x<|startofthink|>```JSON{"api_name": "f", "parameters": {"a": 1}}```<|endofthink|>'
            '<|startofexec|>```JSON{"r": 2}```<|endofexec|>done',
        },
    ]
}
_FLAT: dict[str, Any] = {
    "instruction": "i", "input": "j", "output": "o", "history": [["a", "b"]], "system": "s",
    "text": "### Human: a### Assistant: b",
    "question": "q", "response": "r", "answer": "w", "context": "c", "prompt": "p", "completion": "d",
    "abstract": "x", "title": "t",
    "description": "d: e", "color": "#fff", "instruction_zh": "i", "input_zh": "j", "output_zh": "o",
    "system_prompt": "s",
}  # fmt: skip
RECORDS = (_TALK, _SHAREGPT, _MSAGENT, _FLAT)


def seeds() -> Iterator[tuple[str, str, bytes]]:
    """Name of the target, name of the input, and the input."""
    yield from _texts()
    yield from _records()
    with tempfile.TemporaryDirectory() as folder:
        yield from _artefacts(Path(folder))
        yield from _weights(Path(folder))


def _texts() -> Iterator[tuple[str, str, bytes]]:
    ready = Path(__file__).parents[2] / "pipelines"
    yield (
        "toml",
        "quickstart",
        joined([(ready / "quickstart.toml").read_bytes(), b"run.seed=7\nprep.source.chinese.weight=0.1"]),
    )
    yield "toml", "small", joined([_PIPELINE, b"train.optimizer.lr=1e-5"])
    yield "data_order", "two", b"a/x.jsonl\na/y/z.jsonl\nb/\xc3\xa9.jsonl\n"
    for trainer, suffix in (
        ("xtuner", "py.txt"),
        ("internevo", "py.txt"),
        ("axolotl", "yaml"),
        ("llamafactory", "yaml"),
    ):
        for path in sorted(CONFIGS.glob(f"{trainer}_*.{suffix}")):
            beside = b""
            if trainer == "llamafactory":
                beside = (
                    b'{"alpaca_en": {"file_name": "a.json", "formatting": "sharegpt", "columns": {"messages": "m"}}}'
                )
            yield f"migrate_{trainer}", path.name.split(".")[0], joined([path.read_bytes(), beside])
    yield "template", "generation", _GENERATION
    yield "template", "quickstart", (ready / "quickstart" / "tokenizer" / "chat_template.jinja").read_bytes()


def _records() -> Iterator[tuple[str, str, bytes]]:
    lines = "".join(json.dumps(one) + "\n" for one in RECORDS).encode()
    yield "jsonl", "records", lines
    yield "jsonl_gz", "records", gzip.compress(lines, mtime=0)
    yield "jsonl_zst", "records", pa.compress(lines, "zstd", asbytes=True)
    yield "json", "records", json.dumps(RECORDS, indent=1).encode()
    yield "text", "lines", "one\r\n\n中文\n".encode()
    yield "csv", "rows", b'instruction,output\r\n"a ""b""\nc",d\r\n,\r\n'
    yield "tsv", "rows", b"question\tresponse\na\tb\n"
    for name, record in zip(("openai", "sharegpt", "msagent", "flat"), RECORDS, strict=True):
        yield "maps", name, json.dumps(record).encode()
    table = pa.table(
        {"text": ["a", None], "n": [1, 2], "s": [{"x": [1.5]}, None], "d": pa.array(["a", "a"]).dictionary_encode()}
    )
    for compression in ("NONE", "SNAPPY"):
        file = io.BytesIO()
        pq.write_table(table, file, compression=compression)
        yield "parquet", compression.lower(), file.getvalue()
    for name, make in (("file", pa.ipc.new_file), ("stream", pa.ipc.new_stream)):
        file = io.BytesIO()
        with make(file, table.schema) as writer:
            writer.write_table(table)
        yield "arrow", name, file.getvalue()
    rows = [[1, -2, 0, 999], [], [5]]
    written = [b'{"tokens": ' + json.dumps(row).encode() + b"}\n" for row in rows]
    meta = io.BytesIO()
    offsets = np.cumsum([0, *map(len, written)])[:-1]
    np.save(meta, np.column_stack([offsets, [len(row) for row in rows]]).astype(np.int64))
    yield "ftdp", "rows", joined([meta.getvalue(), b"".join(written)])
    yield (
        "tokenizer",
        "bytes",
        joined([_TOKENIZER, b'{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}', b"{}", b"{}"]),
    )


def _artefacts(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    shard = folder / SHARD
    shard.parent.mkdir()
    lengths, segments = np.array([3, 2, 4], np.int32), np.array([2, 1], np.int32)
    some = np.zeros(3, np.uint32)
    packs = Packs(
        np.arange(9, dtype=np.uint16),
        loss_bits(np.ones(9, np.bool_), lengths, segments),
        lengths,
        segments,
        some,
        some,
        some,
    )
    write_shard(shard, packs)
    yield "shard", "two-packs", shard.read_bytes()
    facts = {
        **FACTS,
        "packs_per_shard": [2],
        "eval": {"packs_per_shard": []},
        "attention": {"window": 2, "across_samples": True},
    }
    Manifest("prep", 1, "0" * 64, {"x": "1" * 64}, [FileRecord.of(folder, shard)], facts).write(folder)
    manifest = (folder / "manifest.json").read_bytes()
    yield "manifest", "prep", manifest
    yield "shard_manifest", "two-packs", joined([manifest, shard.read_bytes()])
    (folder / "run").mkdir()
    run = write_run(folder / "run", steps=6)
    checkpoint = next((run / "train" / "checkpoints").iterdir()).name
    files = [run / name.replace("step-00000001", checkpoint) for name in RUN]
    yield "report", "whole", joined([path.read_bytes() if path.is_file() else b"" for path in files])


def _weights(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    content = {
        "a": torch.arange(6.0).view(2, 3),
        "p": torch.nn.Parameter(torch.ones(2)),
        "n": [1, ("x", None), {2}],
        "t": torch.float16,
    }
    torch.save(content, folder / "x.pt")
    yield "torch_file", "values", (folder / "x.pt").read_bytes()
    yield "torch_pickle", "values", pickle_of(folder / "x.pt")
    torch.save({"a.weight": torch.ones(2, 2)}, folder / "x.bin")
    yield (
        "torch_bin",
        "one",
        joined([b'{"weight_map": {"a.weight": "pytorch_model-1.bin"}}', (folder / "x.bin").read_bytes()]),
    )
    tensors = small_tensors()
    yield "safetensors", "three", save(dict(tensors.items()), {"format": "pt"})
    halves = [save({name: tensors[name]}) for name in ("a.weight", "b.weight")]
    index = {"metadata": {}, "weight_map": {"a.weight": "a.safetensors", "b.weight": "b.safetensors"}}
    yield "plain", "two", joined([json.dumps(index).encode(), *halves, b'{"model_type": "llama"}'])
    for stage, name, files in (
        (0, "zero_2", ZERO_2),
        (1, "zero_2", ZERO_2),
        (2, "zero_2", ZERO_2),
        (3, "zero_3", ZERO_3),
    ):
        inner = write_zero(
            folder / f"stage-{stage}", tensors, stage=stage, ranks=1, frozen=["c.weight"] if stage > 1 else []
        )
        yield name, f"stage-{stage}", _pickles(inner, files)
    universal = folder / "universal"
    for name in ("a.weight", "b.weight"):
        (universal / "zero" / name).mkdir(parents=True)
        torch.save({"param": torch.from_numpy(tensors[name])}, universal / "zero" / name / "fp32.pt")
    torch.save({"module": {}, "global_steps": 3, "param_shapes": None}, universal / "mp_rank_00_model_states.pt")
    yield "universal", "two", _pickles(universal, UNIVERSAL)
    yield "distributed", "two", _distributed(folder / "fsdp")
    whole = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "num_kv_attention_heads": 2, "vocab_size": 8}
    for kind, changed in (("internlm2", whole), ("llama", {**whole, "no_bias": False})):
        settings = {**checkpoints.SETTINGS, **changed}
        files_ = checkpoints.cut(checkpoints.whole_tensors(kind, settings), 2, [[[0]]])
        home = checkpoints.write(folder / kind, settings, files_)
        yield "internevo", kind, _pickles(home, INTERNEVO)
    yield "sentencepiece", "three", _SENTENCEPIECE


def _pickles(folder: Path, names: tuple[str, ...]) -> bytes:
    return joined([pickle_of(folder / name) if (folder / name).is_file() else b"" for name in names])


def _distributed(folder: Path) -> bytes:
    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    weight = torch.arange(8, dtype=torch.float32).reshape(2, 4)
    save_distributed({"model": {"a": weight, "b": weight[:, :2] * 3}}, checkpoint_id=folder, no_dist=True)
    return joined([(folder / name).read_bytes() for name in DISTRIBUTED])


_PIPELINE = b"""\
schema_version = 1
[run]
name = "t"
[model]
name_or_path = "/m"
[prep]
max_length = 64
[prep.pack]
capacity = 64
[[prep.source]]
name = "s"
path = "s.jsonl"
map = "openai"
[train]
global_batch_size = 1
[train.optimizer]
lr = 1e-4
"""
_GENERATION = b"""\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.role == 'assistant' %}{% generation %}{{ message.content | trim }}<|im_end|>{% endgeneration %}
{% else %}{{ message['content'] }}<|im_end|>{% endif %}
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
_TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [
            {
                "id": 3,
                "content": "</s>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "unk_token": None, "vocab": {"O": 0, "n": 1, "On": 2}, "merges": [["O", "n"]]},
    }
).encode()
_SENTENCEPIECE = (
    b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02" b"\x0a\x08\x0a\x01a\x15\x00\x00\x80\xbf"
    b"\x12\x05\x18\x02\x98\x02\x01" b"\x1a\x02\x18\x01"
)  # fmt: skip


def main() -> None:
    """Write every seed to the corpus."""
    for target, name, content in seeds():
        path = CORPUS / target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    main()
