"""Golden digests: what prep wrote once, kept in version control so that CI notices any change of bytes."""

import json
from pathlib import Path

from pipelines.artifacts import Json, Manifest, canonical_json, digest_file, identity
from pipelines.errors import CheckError, DataError
from pipelines.named_file import write_named_file
from pipelines.schema import Pipeline


def digests(pipeline: Pipeline) -> Json:
    """The format version, what was asked for, and the digests of the data order and of every finished shard."""
    folder = pipeline.home / "prep"
    manifest = Manifest.read(folder)
    if manifest is None:
        raise DataError(f"{folder}: no finished prep output here; run `packtrain prep` first")
    manifest.verify(folder)
    order = pipeline.prep.order.file
    return {
        "format_version": manifest.format_version,
        "asked": identity(*(manifest.facts[what] for what in ("settings", "files", "tokenizer"))),
        "data_order": digest_file(order) if order.is_file() else None,
        "files": {record.path: record.sha256 for record in manifest.files if record.path.endswith(".arrow")},
    }


def write(pipeline: Pipeline, golden: Path) -> None:
    """Make what prep wrote the golden output."""
    write_named_file(golden, canonical_json(digests(pipeline)))


def check(pipeline: Pipeline, golden: Path) -> int:
    """Compare the prep output with golden digests; returns how many files agree.

    Raises:
        CheckError: naming what differs: the format, what was asked for, or the bytes alone.
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
    if found["asked"] != expected["asked"]:
        raise CheckError(
            f"{golden}: written for other settings, other input files or another tokenizer; if the change is meant, "
            f"run `packtrain order write --golden {golden}`"
        )
    names = sorted(found["files"].keys() | expected["files"].keys())
    wrong = [name for name in names if found["files"].get(name) != expected["files"].get(name)]
    if wrong:
        raise CheckError(
            f"{golden}: {len(wrong)} of {len(names)} shards differ ({', '.join(wrong[:3])}), though the same was asked "
            "of the same inputs; find out which library or version of packtrain changed them, and if that is meant run "
            f"`packtrain order write --golden {golden}`"
        )
    return len(names)
