"""Every byte of an artefact, changed: whoever opens it is told, before anything of it is used."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from pipelines.artifacts import MANIFEST, FileRecord, Manifest, digest_file
from pipelines.checkpoints import FORMAT_VERSION, Checkpoint
from pipelines.errors import CheckError, DataError, PacktrainError
from pipelines.provenance import verify
from pipelines.shards import ShardReader
from tests.train.runs import write_prep

STATE = "state-00000-of-00001.safetensors"


def prep(folder: Path) -> Callable[[], object]:
    write_prep(folder, packs=2, shards=1)
    return lambda: list(ShardReader(folder))


def checkpoint(folder: Path) -> Callable[[], object]:
    (folder / "model").mkdir(parents=True)
    (folder / "tokenizer").mkdir()
    (folder / "model" / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer" / "tokenizer.json").write_text('{"version": "1.0"}')
    save_file({"parameter/w/0": np.arange(8, dtype=np.float32)}, folder / STATE)
    files = [FileRecord.of(folder, path) for path in sorted(folder.rglob("*")) if path.is_file()]
    weights = [vars(one) for one in files if one.path == STATE]
    facts = {"parameters": {"w": [8]}, "buffers": {}, "weights": weights}
    Manifest("checkpoint", FORMAT_VERSION, "1", {}, files, facts).write(folder)

    def used() -> object:
        found = Checkpoint(folder)
        found.verify()
        return found.read("parameter", "w")

    return used


READ = {"prep": ("shards/shard-00000.arrow",), "checkpoint": (STATE, "model/config.json", "tokenizer/tokenizer.json")}
MAKE = {"prep": prep, "checkpoint": checkpoint}


@pytest.mark.parametrize("kind", READ)
def test_damage_anywhere_in_what_is_used_is_found(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "one"
    use = MAKE[kind](folder)
    use()
    whole = Manifest.read(folder)
    for name in (MANIFEST, *READ[kind]):
        path = folder / name
        content = path.read_bytes()
        cuts = [content[:at] for at in (0, 1, len(content) // 2, len(content) - 2)]
        flips = [
            content[:at] + bytes([content[at] ^ (1 << at % 8)]) + content[at + 1 :] for at in range(0, len(content), 11)
        ]
        for damaged in (*cuts, *flips, content + b"\0", None):
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            if damaged is not None and name == MANIFEST and says(folder) == whole:
                continue  # its white space
            with pytest.raises(PacktrainError, match=re.escape(str(tmp_path))):
                use()
        path.write_bytes(content)
    use()


def says(folder: Path) -> Manifest | None:
    try:
        return Manifest.read(folder)
    except CheckError:
        return None


def test_files_of_equal_size_that_changed_places_are_found(tmp_path: Path) -> None:
    write_prep(tmp_path / "prep", packs=4, shards=2)
    one, other = (tmp_path / "prep" / "shards" / f"shard-{number:05}.arrow" for number in range(2))
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    with pytest.raises((CheckError, DataError), match=r"shard-00000\.arrow"):
        ShardReader(tmp_path / "prep")[0]
    with pytest.raises(CheckError, match=r"shard-00000\.arrow"):
        verify(tmp_path / "prep")


def test_a_shard_of_another_run_is_named(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        write_prep(tmp_path / name / "prep", packs=4, shards=2, seed=seed)
    mine, its = (tmp_path / name / "prep" / "shards" / "shard-00001.arrow" for name in "ab")
    mine.write_bytes(its.read_bytes())
    with pytest.raises(CheckError, match=r"a/prep/shards/shard-00001\.arrow"):
        verify(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "prep" / MANIFEST).read_bytes())
    for record in manifest["files"]:
        if record["path"].endswith("00001.arrow"):
            record |= {"size": mine.stat().st_size, "sha256": digest_file(mine)}
    (tmp_path / "a" / "prep" / MANIFEST).write_text(json.dumps(manifest))  # as someone would who mends it by hand
    with pytest.raises(CheckError, match=r"a/prep/manifest\.json: not a manifest \(its own digest does not fit it\)"):
        verify(tmp_path / "a")
