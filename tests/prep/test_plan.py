"""Planning without writing: the same numbers as the run that follows, and nothing tokenized twice."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.config import load
from pipelines.errors import DataError
from pipelines.shards import ShardReader
from prep import run as stage
from prep.plan import summary
from prep.run import dry_run, run
from tests.prep.small import MakePipeline, conversations, written

SAME = ("samples", "tokens", "packs", "packs_lower_bound", "fill")


def test_the_plan_is_what_the_run_then_writes(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(80))
    found = dry_run(load(file), workers=1)
    assert not list((load(file).home / "prep").glob("**/*.arrow"))
    facts = run(load(file), workers=1)
    assert {key: found[key] for key in SAME} == {key: facts[key] for key in SAME}
    assert [one["tokens"] for one in found["sources"]] == [one["tokens"] for one in facts["sources"]]
    assert found["above_lower_bound"] == facts["packs"] - facts["packs_lower_bound"]
    text = summary(found)
    assert f"{facts['packs']:,} packs of 256: {facts['fill']:.2%} full" in text
    assert f"lower bound {facts['packs_lower_bound']} packs, {found['above_lower_bound']} above it" in text
    assert " tokens, 1 pass, 100.00% of the mix" in text


def test_what_a_plan_tokenized_the_run_does_not_tokenize_again(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_pipeline(conversations(30))
    assert dry_run(load(file), workers=1)["tokenized"]
    once = list((load(file).home / "prep").glob(".partial/tokens-*/chunk-*/tokens.u32"))
    stamps = [path.stat().st_mtime_ns for path in once]
    assert once
    monkeypatch.setattr(stage, "_write_rejects", _stop)
    with pytest.raises(KeyboardInterrupt):
        run(load(file, ["prep.pack.strategy='best_fit'"]), workers=1)
    assert [path.stat().st_mtime_ns for path in once] == stamps


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("override", "again"),
    [
        ("prep.pack.capacity=128", False),  # no sample is longer
        ("prep.pack.strategy='concat_split'", False),
        ("run.seed=3", False),
        ("prep.eval.fraction=0.2", False),
        ("prep.min_length=12", True),
        ("template.loss.end_of_turn=false", True),
    ],
)
def test_known_lengths_are_not_tokenized_again(make_pipeline: MakePipeline, override: str, again: bool) -> None:
    file = make_pipeline(conversations(40))
    run(load(file), workers=1)
    before = written(file)
    found = dry_run(load(file, [override]), workers=1)
    assert found["tokenized"] is again
    assert {name: content for name, content in written(file).items() if not name.startswith(".partial")} == before
    fresh = make_pipeline(conversations(40))
    assert dry_run(load(fresh, [override, "run.name='other'"]), workers=1) == found | {"tokenized": True}


def test_samples_that_a_shorter_limit_would_touch_are_tokenized_again(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(40))
    run(load(file), workers=1)
    with pytest.raises(DataError, match="exceed"):
        dry_run(load(file, ["prep.pack.capacity=12"]), workers=1)


def test_damaged_lengths_are_no_lengths(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(10))
    run(load(file), workers=1)
    (load(file).home / "prep" / "lengths.npz").write_bytes(b"nothing")
    assert dry_run(load(file), workers=1)["tokenized"]


def test_every_strategy_is_compared(make_pipeline: MakePipeline) -> None:
    found = dry_run(load(make_pipeline(conversations(60))), workers=1)["strategies"]
    assert list(found) == ["in_order", "best_fit", "concat_split", "none"]
    assert found["none"]["packs"] == 60
    assert found["concat_split"]["packs"] <= found["best_fit"]["packs"] <= found["in_order"]["packs"]


def records(folder: Path, part: str) -> list[int]:
    return [int(record) for pack in ShardReader(folder, part) for record in pack.record]  # type: ignore[arg-type]


def test_held_out_records_are_in_shards_of_their_own(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(100), "[prep.eval]\nfraction = 0.2")
    facts = run(load(file), workers=1)
    folder = load(file).home / "prep"
    train, held_out = records(folder, "train"), records(folder, "eval")
    assert sorted(train + held_out) == list(range(100))
    assert facts["eval"]["samples"] == len(held_out)
    assert facts["eval"]["packs"] == len(ShardReader(folder, "eval"))
    assert facts["eval"]["loss_tokens"] == sum(int(np.count_nonzero(pack.loss)) for pack in ShardReader(folder, "eval"))
    assert f"held out: {len(held_out)} samples" in stage.summary(facts)


def test_shards_without_held_out_samples_say_so(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(10))
    run(load(file), workers=1)
    with pytest.raises(DataError, match=r"set prep.eval.fraction"):
        ShardReader(load(file).home / "prep", "eval")


def test_the_first_samples_alone_are_packed(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(50), "max_samples = 7")
    assert run(load(file), workers=1)["samples"] == 7
    assert len(records(load(file).home / "prep", "train")) == 7


def test_a_change_of_a_users_map_is_a_change(
    make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = "def shape(record):\n    return record\n"
    (tmp_path / "a_map_of_mine.py").write_text(source)
    file = make_pipeline(conversations(5))
    file.write_text(file.read_text().replace('path = "data"', 'path = "data"\nmap = "python:a_map_of_mine:shape"'))
    first = run(load(file), workers=1)
    assert first["samples"] == 5
    before = written(file)["manifest.json"]
    (tmp_path / "a_map_of_mine.py").write_text(source + "# another\n")
    run(load(file), workers=1)
    assert written(file)["manifest.json"] != before


def test_a_source_is_pinned_by_the_digest_that_its_manifest_has(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(5))
    pin = run(load(file), workers=1)["sources"][0]["sha256"]
    run(load(file, [f"prep.source.0.sha256='{pin}'"]), workers=1)
    make_pipeline(conversations(6))
    with pytest.raises(DataError, match=pin):
        run(load(file, [f"prep.source.0.sha256='{pin}'"]), workers=1)


def test_a_template_named_for_tokens_goes_with_the_model(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    file = make_pipeline("", template='[template]\nname = "default"\nloss = { on_empty = "keep" }')
    (tmp_path / "data" / "a.jsonl").unlink()
    (tmp_path / "data" / "a.bin").write_text('{"tokens": [5, 6, 7]}\n')
    np.save(tmp_path / "data" / "a.bin.meta.npy", np.array([[0, 3]]))
    (tmp_path / "data" / "a.bin.meta.npy").rename(tmp_path / "data" / "a.bin.meta")
    file.write_text(file.read_text().replace('path = "data"', 'path = "data"\nmap = "none"'))
    run(load(file), workers=1)
    assert "<|User|>" in (load(file).home / "prep" / "tokenizer" / "chat_template.jinja").read_text()


def test_exact_decimals_are_text_in_json(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(5), "[prep.eval]\nfraction = 0.5")
    done = CliRunner().invoke(main, ["prep", str(file), "--json", "--workers", "1"], catch_exceptions=False)
    assert json.loads(done.stdout)["settings"]["prep"]["eval"]["fraction"] == "0.5"
