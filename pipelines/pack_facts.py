"""A pack as JSON: its samples with their origin, tokens, texts, and which of them are trained.

pack, shard, row  where it is; null for a sample that is in no shard
title             what it is called
tokens, trained   counts
why_no_text       why texts are missing, or empty
samples           of each: source, path, record (from 1), begin and end (of its tokens in the pack), sample_token
                  (its first token's place in the sample), documents (places in the pack where attention begins
                  anew), tokens (ids), texts (null without a tokenizer), trained ([begin, end] runs in the pack)
marked            a place in the pack that is asked about, or null
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.artifacts import Json
from pipelines.shards import Pack
from pipelines.token_text import TokenText


def pack_facts(
    pack: Pack,
    files: Sequence[Mapping[str, Any]],
    tokens: TokenText | None,
    title: str,
    *,
    place: tuple[int, str, int] | None = None,
    marked: int | None = None,
    why_no_text: str = "",
) -> dict[str, Json]:
    """A pack in the shape that this file's first lines describe.

    Args:
        files: of the manifest.
        tokens: what tokens' texts are by; None for ids alone.
        place: its number, its shard, and its number in the shard.
    """
    number, shard, row = place or (None, None, None)
    return {
        "title": title,
        "pack": number,
        "shard": shard,
        "row": row,
        "tokens": int(pack.tokens.size),
        "trained": int(np.count_nonzero(pack.loss)),
        "why_no_text": why_no_text,
        "marked": marked,
        "samples": [_sample(pack, index, files, tokens) for index in range(pack.file.size)],
    }


def _sample(pack: Pack, index: int, files: Sequence[Mapping[str, Any]], tokens: TokenText | None) -> dict[str, Json]:
    begin, end = pack.segments[index : index + 2].tolist()
    file = int(pack.file[index])
    known = files[file] if file < len(files) else {"source": "", "path": f"file {file}"}
    ids = pack.tokens[begin:end].tolist()
    borders = pack.cu_seqlens[(pack.cu_seqlens >= begin) & (pack.cu_seqlens < end)]
    edges = np.flatnonzero(np.diff(np.concatenate([[False], pack.loss[begin:end], [False]]).astype(np.int8)))
    return {
        "source": known["source"],
        "path": known["path"],
        "record": int(pack.record[index]) + 1,
        "begin": begin,
        "end": end,
        "sample_token": int(pack.start[index]),
        "documents": borders.tolist(),
        "tokens": ids,
        "texts": tokens.of(ids) if tokens else None,
        "trained": (edges.reshape(-1, 2) + begin).tolist(),
    }
