"""Golden digests: what prep wrote once, kept in version control so that CI notices any change of bytes."""

import json
from pathlib import Path

from pipelines.artifacts import Json, Manifest, canonical_json, digest_file, write_atomic
from pipelines.errors import CheckError, DataError
from pipelines.schema import Pipeline


def digests(pipeline: Pipeline) -> Json:
    """The format version, and the digests of the data order and of every shard of the finished prep output."""
    folder = pipeline.home / "prep"
    manifest = Manifest.read(folder)
    if manifest is None:
        raise DataError(f"{folder}: no finished prep output here; run `packtrain prep` first")
    manifest.verify(folder)
    order = pipeline.prep.order.file
    return {
        "format_version": manifest.format_version,
        "data_order": digest_file(order) if order.is_file() else None,
        "files": {record.path: record.sha256 for record in manifest.files if record.path.startswith("shards/")},
    }


def write(pipeline: Pipeline, golden: Path) -> None:
    """Make what prep wrote the golden output."""
    write_atomic(golden, canonical_json(digests(pipeline)))


def check(pipeline: Pipeline, golden: Path) -> int:
    """Compare the prep output with golden digests; returns how many files agree.

    Raises:
        CheckError: naming what differs and, where bytes changed under one format version, that it must be raised.
    """
    try:
        expected = json.loads(golden.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{golden}: missing; write it with `packtrain order write --golden {golden}`") from error
    except ValueError as error:
        raise DataError(
            f"{golden}: not JSON ({error}); write it again with `packtrain order write --golden`"
        ) from error
    found = digests(pipeline)
    if found["format_version"] != expected["format_version"]:
        raise CheckError(
            f"{golden}: written for shard format {expected['format_version']}, prep writes {found['format_version']}; "
            f"if the change is meant, run `packtrain order write --golden {golden}`"
        )
    if found["data_order"] != expected["data_order"]:
        raise CheckError(f"{pipeline.prep.order.file}: SHA-256 differs from {golden}; the list of input files changed")
    names = sorted(found["files"].keys() | expected["files"].keys())
    wrong = [name for name in names if found["files"].get(name) != expected["files"].get(name)]
    if wrong:
        raise CheckError(
            f"{golden}: {len(wrong)} of {len(names)} shards differ ({', '.join(wrong[:3])}); the bytes changed under "
            f"shard format {found['format_version']}: raise FORMAT_VERSION in pipelines/shards.py if it is meant, "
            "else find what moved"
        )
    return len(names)
