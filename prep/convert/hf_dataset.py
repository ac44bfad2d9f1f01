"""Packs as a Hugging Face DatasetDict on disk, for `datasets.load_from_disk`: a pack a row.

    input_ids     the pack's tokens
    labels        the token itself where it is a target, else -100; not shifted, as Transformers shifts
    position_ids  from 0 in every document
    seq_lengths   tokens of each document, which is how TRL's padding-free collator is told where documents end

A document is what attention stays inside of: a segment, unless prep.pack says otherwise.

Such a directory is Arrow streams and three small JSON files, so it takes pyarrow alone, and one record batch at a time.
No features are written: `datasets` takes them from the Arrow schema, whose names it has changed less often.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.artifacts import Json, canonical_json
from pipelines.shards import Pack
from prep.convert.part import Part, counts

VERSION = 1

BATCH_TOKENS = 1 << 20
"""Tokens in a record batch, to within one pack."""

_COLUMNS = ("input_ids", "labels", "position_ids", "seq_lengths")
_SCHEMA = pa.schema([(name, pa.list_(pa.int32())) for name in _COLUMNS])


def write(parts: Mapping[str, Part], folder: Path) -> dict[str, Json]:
    """Write every part as one split; returns what each holds."""
    found = {name: _write_split(part, folder / name) for name, part in parts.items()}
    (folder / "dataset_dict.json").write_bytes(canonical_json({"splits": list(parts)}))
    return found


def _write_split(part: Part, folder: Path) -> Json:
    folder.mkdir()
    total: Counter[str] = Counter()
    names = [f"data-{shard:05}-of-{len(part.packs_per_shard):05}.arrow" for shard in range(len(part.packs_per_shard))]
    for name, packs in zip(names, part.shards(), strict=True):
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, _SCHEMA) as stream:
            for batch in _batches(packs):
                stream.write_batch(_table(batch))
                for pack in batch:
                    total.update(counts(pack))
    state: Json = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": f"{part.reader.manifest.identity[:16]}-{part.name}",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": part.name,
    }
    (folder / "state.json").write_bytes(canonical_json(state))
    (folder / "dataset_info.json").write_bytes(canonical_json({"description": "packs written by packtrain"}))
    return dict(total)


def _batches(packs: Iterator[Pack]) -> Iterator[list[Pack]]:
    batch: list[Pack] = []
    tokens = 0
    for pack in packs:
        batch.append(pack)
        tokens += pack.tokens.size
        if tokens >= BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def _table(packs: Sequence[Pack]) -> Any:
    columns: list[list[npt.NDArray[Any]]] = [
        [pack.tokens for pack in packs],
        [pack.labels for pack in packs],
        [pack.positions for pack in packs],
        [np.diff(pack.cu_seqlens) for pack in packs],
    ]
    return pa.RecordBatch.from_arrays([_lists(rows) for rows in columns], schema=_SCHEMA)


def _lists(rows: Sequence[npt.NDArray[Any]]) -> Any:
    ends = np.cumsum([0, *(row.size for row in rows)], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(rows).astype(np.int32)))
