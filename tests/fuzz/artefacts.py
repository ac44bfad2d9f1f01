"""What packtrain's stages leave and read again: manifests, shards, a run's numbers."""

import json
from pathlib import Path

import numpy as np

from pipelines.artifacts import MANIFEST, FileRecord, Manifest, digest_file
from pipelines.report.write import write as report
from pipelines.shards import ShardReader, read_shard
from tests.fuzz.bundle import signed, write
from tests.fuzz.target import Target

FACTS = {"capacity": 8, "max_token_id": 8}
SHARD = "shards/shard-00000.arrow"


def _manifest(data: bytes, folder: Path) -> None:
    """As it is, and with the digest that fits."""
    (folder / MANIFEST).write_bytes(data)
    (folder / "x").mkdir()
    write(data, folder / "x", (MANIFEST,))
    try:
        _read(folder)
    finally:
        _read(folder / "x")


def _read(folder: Path) -> None:
    manifest = Manifest.read(folder)
    if manifest is not None:
        manifest.verify(folder)


def _shard(data: bytes, folder: Path) -> None:
    """A shard alone: it is refused, or every pack of it holds together."""
    path = folder / SHARD
    path.parent.mkdir()
    path.write_bytes(data)
    packs = 0
    try:
        packs = read_shard(path).segments_per_pack.size
    finally:
        files = [FileRecord.of(folder, path)]
        for count in {packs, 1, 3}:
            Manifest("prep", 1, "0" * 64, {}, files, {**FACTS, "packs_per_shard": [count]}).write(folder)
            _walk(folder)


def _walk(folder: Path) -> None:
    for pack in ShardReader(folder):
        assert pack.cu_seqlens[0] == 0
        assert pack.cu_seqlens[-1] == pack.tokens.size == pack.loss.size == pack.labels.size == pack.positions.size
        assert np.diff(pack.cu_seqlens).min() > 0
        assert pack.file.size == pack.record.size == pack.start.size == pack.segments.size - 1


def _shard_manifest(data: bytes, folder: Path) -> None:
    """A shard, and what the manifest says of it, its digest aside."""
    write(data, folder, _PREP)
    _fit_digest(folder)
    for part in ("train", "eval"):
        _opened(folder, part == "eval")


def _fit_digest(folder: Path) -> None:
    path = folder / MANIFEST
    try:
        table = json.loads(path.read_bytes())
        for record in table["files"]:
            record["sha256"] = digest_file(folder / record["path"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return
    path.write_bytes(signed(json.dumps(table).encode()))


def _opened(folder: Path, held_out: bool) -> None:
    reader = ShardReader(folder, "eval" if held_out else "train")
    assert len(reader.packs_per_shard) <= len(reader.shards)
    for index in range(min(len(reader), 20)):
        assert reader[index].tokens.size


def _report(data: bytes, folder: Path) -> None:
    """A run's directory."""
    write(data, folder, RUN)
    for stage in ("prep", "train", "export"):
        (folder / stage).mkdir(exist_ok=True)
    assert report(folder)["bytes"]


_PREP = ("manifest.json", SHARD)
RUN = (
    "train/metrics.jsonl",
    "prep/manifest.json",
    "prep/run.json",
    "prep/rejects.jsonl",
    "train/run.json",
    "train/checkpoints/step-00000001/manifest.json",
    "train/checkpoints/step-00000001/model/config.json",
    "export/manifest.json",
    "export/eval.json",
)
_ROW = tuple(
    f'"{key}": '.encode()
    for key in ("kind", "step", "loss", "loss_by_source", "tokens", "lr", "grad_norm", "prompt", "answer", "mfu",
    "facts")
)  # fmt: skip

TARGETS = (
    Target("manifest", _manifest, (MANIFEST,), (b'"files": ', b'"facts": ', b'"kind": "prep"', b'"sha256": ')),
    Target("shard", _shard, tokens=(b"ARROW1", b"\xff\xff\xff\xff", b"input_ids", b"cu_seqlens", b"loss_mask")),
    Target("shard_manifest", _shard_manifest, _PREP, (b'"packs_per_shard": ', b'"attention": ', b'"window": ')),
    Target("report", _report, RUN, (*_ROW, b'"train"', b'"eval"', b'"chat"', b"NaN", b"Infinity")),
)
