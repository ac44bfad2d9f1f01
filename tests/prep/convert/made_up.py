"""Prep directories that tests make up, without any data behind them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from pipelines.artifacts import FileRecord, Manifest, identity
from pipelines.shards import FORMAT_VERSION, Attention, Packs, loss_bits, write_shard

CAPACITY = 12
VOCABULARY = 300
SEGMENTS = Attention()
SOURCES = ("chat", "code", "chat")
"""Of the three input files."""


@dataclass(frozen=True)
class Segment:
    """One segment of a pack."""

    file: int
    tokens: Sequence[int]
    loss: Sequence[bool]
    """The first is never one of a target."""

    @property
    def signed(self) -> list[int]:
        """As ftdp has it."""
        return [token if loss else -token for token, loss in zip(self.tokens, self.loss, strict=True)]

    @property
    def labels(self) -> list[int]:
        return [token if loss else -100 for token, loss in zip(self.tokens, self.loss, strict=True)]


Shards = Sequence[Sequence[Sequence[Segment]]]
"""Shards of packs of segments."""


@st.composite
def segments(draw: st.DrawFn, longest: int) -> Segment:
    tokens = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=longest))
    loss = [False, *draw(st.lists(st.booleans(), min_size=len(tokens) - 1, max_size=len(tokens) - 1))]
    return Segment(draw(st.integers(0, len(SOURCES) - 1)), tokens, loss)


packs = st.lists(segments(CAPACITY // 3), min_size=1, max_size=3)
shards = st.lists(st.lists(packs, min_size=1, max_size=4), min_size=1, max_size=3)


def write_prep(folder: Path, train: Shards, held_out: Shards = (), attention: Attention = SEGMENTS) -> Path:
    """A finished prep directory with these shards."""
    parts = {"": train, "eval/": held_out}
    records = [
        _write(folder, f"{prefix}shards/shard-{number:05}.arrow", packs)
        for prefix, shards in parts.items()
        for number, packs in enumerate(shards)
    ]
    facts = {
        "capacity": CAPACITY,
        "attention": asdict(attention),
        "vocab_size": VOCABULARY,
        "max_token_id": VOCABULARY - 1,
        "tokenizer": "0" * 64,
        "files": [{"source": source, "path": f"{number}.jsonl"} for number, source in enumerate(SOURCES)],
        "packs_per_shard": [len(packs) for packs in train],
        **({"eval": {"packs_per_shard": [len(packs) for packs in held_out]}} if held_out else {}),
    }
    stage = identity("made up", [record.sha256 for record in records])
    Manifest("prep", FORMAT_VERSION, stage, {}, records, facts).write(folder)
    return folder


def _write(folder: Path, name: str, packs: Sequence[Sequence[Segment]]) -> FileRecord:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = [segment for pack in packs for segment in pack]
    lengths = np.array([len(segment.tokens) for segment in flat], np.int32)
    segments_per_pack = np.array([len(pack) for pack in packs], np.int32)
    loss = np.concatenate([np.array(segment.loss, np.bool_) for segment in flat])
    zeros = np.zeros(len(flat), np.uint32)
    write_shard(
        path,
        Packs(
            tokens=np.concatenate([np.array(segment.tokens, np.uint16) for segment in flat]),
            loss_mask=loss_bits(loss, lengths, segments_per_pack),
            lengths=lengths,
            segments_per_pack=segments_per_pack,
            file=np.array([segment.file for segment in flat], np.uint32),
            record=np.arange(len(flat), dtype=np.uint32),
            start=zeros,
        ),
    )
    return FileRecord.of(folder, path)
