"""The gate before the fast tokenizer: a run uses it only once it gave the same ids on that run's own texts.

How much is tried: texts made to be awkward, and one part in 32 of the data, 256 thousand to 2 million characters, from
the first, the middle and the last chunk of each source.
"""

import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.artifacts import write_atomic
from prep.backend import Backend
from prep.chunk import Chunk, Rules, plain_texts, tokenizer_of
from prep.fast_tokenizer import Differs, Unsupported, awkward_texts

WORTH_BYTES = 8 << 20
"""Inputs below are tokenized sooner than a fast tokenizer is checked."""
_TRIED = 1 / 32
_FEWEST, _MOST = 1 << 18, 2 << 20
_CHUNKS = 48
"""Chunks read for the sample at most; each costs up to 0.1 s."""
_MARK = "backend.json"
"""Beside the chunks: why the fast tokenizer must not be used for them."""

log = logging.getLogger(__name__)


def settled(rules: Rules, chunks: Sequence[Chunk], folder: Path) -> Rules:
    """The rules with the library to tokenize with, if they leave it open.

    Args:
        rules: for all chunks.
        chunks: all chunks of the run, tokenized or not, so that a run that goes on chooses as it did before.
        folder: where the tokenized chunks are.
    """
    marked = _marked(folder)
    if rules.backend is not None and not (rules.backend.fast and marked):
        return rules
    backend = marked or choose_backend(rules, chunks)
    library = f"{backend.name} {backend.version}".rstrip()
    log.info("tokenizing with %s%s", library, f": {backend.why}" if backend.why else "")
    return replace(rules, backend=backend)


def choose_backend(rules: Rules, chunks: Sequence[Chunk]) -> Backend:
    """The fast library if it gives the same ids as the exact one for these chunks, else the exact one and why."""
    chunks = [chunk for chunk in chunks if chunk.input.format != "ftdp"]
    if not chunks:
        return Backend("none", why="the inputs are tokens already")
    tokenizer = tokenizer_of(rules.tokenizer, rules.added_tokens)
    size = sum({chunk.file: chunk.input.size for chunk in chunks}.values())
    if size < WORTH_BYTES:
        why = f"inputs below {WORTH_BYTES >> 20} MiB are tokenized sooner than another library is checked"
        return Backend.exact(tokenizer.library, why)
    try:
        fast = tokenizer.fast()
        fast.compare(awkward_texts(tokenizer.added_texts))
        for texts in _sample(chunks, rules, max(_FEWEST, min(_MOST, int(size * _TRIED)))):
            fast.compare(texts)
    except (Unsupported, Differs) as error:
        return Backend.exact(tokenizer.library, str(error))
    return Backend(fast.name, fast.version)


def distrusted(folder: Path, chunks: Sequence[Path]) -> bool:
    """Remove what the fast tokenizer made if it was found to differ anywhere; whether anything was removed.

    What was found is written down first, so that a run that is killed goes on as it should.
    """
    counts = {chunk: json.loads((chunk / "counts.json").read_bytes()) for chunk in chunks}
    reasons = [one["differs"] for one in counts.values() if one.get("differs")]
    if reasons and _marked(folder) is None:
        exact = next(one["backend"] for one in counts.values() if one.get("differs"))
        write_atomic(folder / _MARK, json.dumps(exact | {"why": reasons[0]}).encode())
        log.warning("%s; what it made is tokenized again", reasons[0])
    if _marked(folder) is None:
        return False
    made = [chunk for chunk, one in counts.items() if Backend(**one["backend"]).fast]
    for chunk in made:
        shutil.rmtree(chunk)
    return bool(made)


def _marked(folder: Path) -> Backend | None:
    try:
        return Backend(**json.loads((folder / _MARK).read_bytes()))
    except FileNotFoundError:
        return None


def _sample(chunks: Sequence[Chunk], rules: Rules, characters: int) -> Iterator[list[str]]:
    """Texts of some chunks of each source, batch by batch."""
    chosen = _spread(chunks)
    for number, chunk in enumerate(chosen):
        left = characters * (number + 1) // len(chosen) - characters * number // len(chosen)
        batch: list[str] = []
        for text in plain_texts(chunk, rules):
            batch.append(text[:left])
            left -= len(batch[-1])
            if left <= 0:
                break
        yield batch


def _spread(chunks: Sequence[Chunk]) -> list[Chunk]:
    """The first, the middle and the last chunk of each source, or of sources spread over all where there are many."""
    by_source: dict[int, list[Chunk]] = {}
    for chunk in chunks:
        by_source.setdefault(chunk.input.source, []).append(chunk)
    chosen = [
        source[index] for source in by_source.values() for index in sorted({0, len(source) // 2, len(source) - 1})
    ]
    return [chosen[index * len(chosen) // _CHUNKS] for index in range(_CHUNKS)] if len(chosen) > _CHUNKS else chosen
