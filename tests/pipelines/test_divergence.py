"""`packtrain verify A B` names the first difference of each kind."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from pipelines.artifacts import FileRecord, Manifest, digest_file
from pipelines.cli import main
from pipelines.divergence import Divergence, compare
from pipelines.errors import CheckError, DataError
from pipelines.shards import read_shard, write_shard
from tests.train.runs import write_prep

LAYERS = [f"model.layers.{layer}.weight" for layer in (2, 10)]


def rewrite(
    folder: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, parent: str | None = None
) -> None:
    """Write a manifest anew after files or facts changed, as a run that did so would have."""
    found = Manifest.read(folder)
    assert found is not None
    facts = json.loads(json.dumps(found.facts))
    change(facts)
    files = [FileRecord.of(folder, folder / one.path) for one in found.files]
    identity = digest_file(folder / files[0].path)
    parents = {"prep": parent} if parent else found.parents
    Manifest(found.kind, found.format_version, identity, parents, files, facts).write(folder)


def make_run(home: Path) -> Path:
    data = home.parent / f"{home.name}.jsonl"
    data.write_text('{"text": "one"}\n{"text": "two"}\n')
    write_prep(home / "prep", packs=6, shards=3)
    (home / "prep" / "run.json").write_text(json.dumps({"inputs": [{"where": str(data)}]}))

    def describe(facts: dict[str, Any]) -> None:
        facts["files"][0] |= {"sha256": digest_file(data)}
        facts["settings"] = {"prep": {"pack": {"capacity": 40}}, "seed": 7}
        facts["versions"] = {"tokenizers": "0.23.3"}

    rewrite(home / "prep", describe)
    rows = [{"kind": "train", "step": step, "loss": 4 - step, "step_time_s": step * 0.1} for step in (1, 2)]
    checkpoint(home, {name: np.arange(6, dtype=np.float32) for name in LAYERS})
    (home / "train" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home


def checkpoint(home: Path, values: dict[str, Any]) -> None:
    folder = home / "train" / "checkpoints" / "step-00000002"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"parameter/{name}/0": one for name, one in values.items()}, folder / "state-00000-of-00001.safetensors")
    facts = {"parameters": {name: [2, 3] for name in values}, "buffers": {}, "step": 2, "layout": {"world_size": 1}}
    prep = Manifest.read(home / "prep")
    assert prep is not None
    files = [FileRecord.of(folder, folder / "state-00000-of-00001.safetensors")]
    Manifest("checkpoint", 1, files[0].sha256, {"prep": prep.identity}, files, facts).write(folder)


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return make_run(tmp_path / "a")


@pytest.fixture
def b(tmp_path: Path) -> Path:
    return make_run(tmp_path / "b")


def first(a: Path, b: Path) -> Divergence:
    return compare(a, b).divergences[0]


def test_equal_runs_are_the_same_whatever_their_steps_took(a: Path, b: Path) -> None:
    metrics = b / "train" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step_time_s": 0.1', '"step_time_s": 9.0'))
    answer = CliRunner().invoke(main, ["verify", str(a), str(b)])
    assert (answer.exit_code, answer.output) == (
        0,
        "the same: prep, train/metrics.jsonl, train/checkpoints/step-00000002\n",
    )


def test_a_setting_is_named_by_its_key_before_the_packs(a: Path, b: Path) -> None:
    rewrite(b / "prep", lambda facts: facts["settings"]["prep"]["pack"].update(capacity=80))
    assert first(a, b) == Divergence("setting", "prep.pack.capacity", 40, 80)
    assert "no pack, step, tensor or file differs" in compare(a, b).text()


def test_a_library_is_named(a: Path, b: Path) -> None:
    rewrite(b / "prep", lambda facts: facts["versions"].update(tokenizers="0.24.0"))
    assert first(a, b) == Divergence("setting", "versions.tokenizers", "0.23.3", "0.24.0")


def test_an_input_is_named_with_the_record_that_differs(a: Path, b: Path) -> None:
    data = b.parent / "b.jsonl"
    data.write_text('{"text": "one"}\n{"text": "zwei"}\n')
    rewrite(b / "prep", lambda facts: facts["files"][0].update(sha256=digest_file(data)))
    one, two = compare(a, b).divergences
    assert (one.what, one.where) == ("input", "s/data.jsonl, its sha256")
    assert two == Divergence("record", "s/data.jsonl:2", '{"text": "two"}', '{"text": "zwei"}')
    long = '{"text": "' + "same " * 100
    for home, end in ((a, "\x1b[2J"), (b, "other")):
        text = home.parent / f"{home.name}.jsonl"
        text.write_text(f"{long}{end}\n")
        digest = {"sha256": digest_file(text)}
        rewrite(home / "prep", partial(lambda new, facts: facts["files"][0].update(new), digest))
    record = compare(a, b).divergences[1]
    assert str(record) == (
        "record s/data.jsonl:1: ...same same same same \\x1b[2J in A, ...same same same same other in B"
    )
    data.write_text("changed since")
    assert [found.what for found in compare(a, b).divergences] == ["input"]


def test_a_missing_input_is_named(a: Path, b: Path) -> None:
    rewrite(b / "prep", lambda facts: facts["files"].pop())
    assert first(a, b) == Divergence("input", "number 3 of the data order", "t/data.jsonl", None)


def test_a_pack_is_named_with_its_token_and_record(a: Path, b: Path) -> None:
    shard = b / "prep" / "shards" / "shard-00001.arrow"
    packs = read_shard(shard)
    tokens = packs.tokens.copy()
    at = int(packs.lengths[: packs.segments_per_pack[0]].sum()) + 3  # of its second pack, the fourth of all
    was, tokens[at] = int(tokens[at]), 47 - int(tokens[at])
    write_shard(shard.with_suffix(".new"), type(packs)(**{**vars(packs), "tokens": tokens}))
    shard.with_suffix(".new").replace(shard)  # the old one is mapped
    rewrite(b / "prep")
    pack, *rest = compare(a, b).divergences
    assert (pack.what, pack.where, rest) == ("pack", "3 token 3", [])
    segment = int(np.searchsorted(np.cumsum(packs.lengths), at, side="right"))
    origin = f"{'sst'[int(packs.file[segment])]}/data.jsonl:{int(packs.record[segment]) + 1}"
    assert (pack.a, pack.b) == (f"{was} of {origin}", f"{47 - was} of {origin}")


def test_equal_tokens_of_another_record_are_named(a: Path, b: Path) -> None:
    shard = b / "prep" / "shards" / "shard-00000.arrow"
    packs = read_shard(shard)
    record = packs.record.copy()
    record[1] += 7
    write_shard(shard.with_suffix(".new"), type(packs)(**{**vars(packs), "record": record}))
    shard.with_suffix(".new").replace(shard)
    rewrite(b / "prep")
    at = int(packs.lengths[0])
    said = [f"{'sst'[int(packs.file[1])]}/data.jsonl:{number} from its token 0" for number in (2, 9)]
    assert compare(a, b).divergences == [Divergence("pack", f"0 origin of token {at}", *said)]


def test_state_that_is_no_tensor_is_not_taken_for_equal(a: Path, b: Path) -> None:
    for home, state in ((a, 1), (b, 2)):
        folder = home / "train" / "checkpoints" / "step-00000002"
        path = folder / "state-00000-of-00001.safetensors"
        values = {f"parameter/{name}/0": np.arange(6, dtype=np.float32) for name in LAYERS}
        save_file({**values, "block/digest.absmax/0": np.array([state], np.uint8)}, path)
        rewrite(folder)
    [found] = compare(a, b).divergences
    assert (found.what, found.where) == ("file", "state-00000-of-00001.safetensors")


def test_a_step_is_named(a: Path, b: Path) -> None:
    metrics = b / "train" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss": 2', '"loss": 2.5'))
    assert first(a, b) == Divergence("step", "2 loss", 2, 2.5)


def test_runs_are_compared_in_the_order_of_the_work_also_from_above(a: Path, b: Path, tmp_path: Path) -> None:
    for home in (a, b):
        (tmp_path / f"above-{home.name}").mkdir()
        home.rename(tmp_path / f"above-{home.name}" / "run")
    found = compare(tmp_path / "above-a", tmp_path / "above-b").compared
    assert found == ["run/prep", "run/train/metrics.jsonl", "run/train/checkpoints/step-00000002"]


def test_a_damaged_row_of_metrics_is_named(a: Path, b: Path) -> None:
    (b / "train" / "metrics.jsonl").write_text('{"step": 1\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: not a row of metrics"):
        compare(a, b)


def test_the_first_tensor_of_the_model_is_named(a: Path, b: Path) -> None:
    values = {name: np.arange(6, dtype=np.float32) for name in LAYERS}
    for name in LAYERS:
        values[name][4] = -0.5
    checkpoint(b, values)
    assert compare(a, b).divergences == [Divergence("tensor", "model.layers.2.weight element 4", "4.0", "-0.5")]
    places = [home / "train" / "checkpoints" / "step-00000002" for home in (a, b)]
    answer = CliRunner().invoke(main, ["verify", *map(str, places), "--json"])
    assert answer.exit_code == CheckError.exit_code
    assert json.loads(answer.output)["divergences"][0]["what"] == "tensor"


def test_a_tensor_of_an_export_is_named_wherever_it_lies(a: Path, b: Path) -> None:
    for home, value, shards in ((a, 1.0, 1), (b, 2.0, 2)):
        folder = home / "export" / "hf"
        folder.mkdir(parents=True)
        tensors = {"one": np.zeros(3, np.float16), "two": np.array([0, value], np.float16)}
        for shard in range(shards):
            part = tensors if shards == 1 else dict([list(tensors.items())[shard]])
            save_file(part, folder / f"model-{shard}.safetensors")
        (folder / "config.json").write_text(json.dumps({"vocab_size": int(value)}))
        files = [FileRecord.of(folder, path) for path in sorted(folder.iterdir())]
        Manifest("hf", 1, str(value), {}, files, {}).write(folder)
    assert compare(a / "export", b / "export").divergences == [
        Divergence("tensor", "two element 1", "0x3c00", "0x4000"),
        Divergence("file", "config.json: vocab_size", 1, 2),
    ]


def test_a_checkpoint_leads_to_the_shards_it_was_trained_on(a: Path, b: Path) -> None:
    rewrite(b / "prep", lambda facts: facts["settings"].update(seed=8))
    places = [home / "train" / "checkpoints" / "step-00000002" for home in (a, b)]
    rewrite(places[1], parent="other")
    assert first(*places).where == "parent prep"
    (b / "prep" / "tokenizer" / "tokenizer.json").write_text('{"added": 1}')
    rewrite(b / "prep", lambda facts: facts["settings"].update(seed=8))
    found = Manifest.read(b / "prep")
    assert found is not None
    Manifest("prep", found.format_version, "other", {}, found.files, found.facts).write(b / "prep")
    assert compare(*places).divergences == [
        Divergence("setting", "seed", 7, 8),
        Divergence("file", "tokenizer/tokenizer.json: added", None, 1),
    ]


def test_a_file_that_changed_since_it_was_written_is_named_first(a: Path, b: Path) -> None:
    (b / "prep" / "tokenizer" / "tokenizer.json").write_text("[]")
    with pytest.raises(CheckError, match=r"tokenizer\.json: SHA-256 differs"):
        compare(a, b)


def test_two_places_without_anything_in_common_are_refused(a: Path, b: Path) -> None:
    with pytest.raises(DataError, match="name two runs, or two artefacts of one kind"):
        compare(a, b / "prep")
    other = b / "train" / "checkpoints" / "step-00000002"
    assert first(a / "prep", other).what == "kind"
    assert "differs" not in compare(a / "prep", other).text(), "nothing else was compared"
