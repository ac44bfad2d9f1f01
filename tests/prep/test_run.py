"""The prep stage as a whole: the same bytes however it is run, and one clear line for everything that is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.artifacts import Manifest
from pipelines.config import load
from pipelines.errors import DataError, MachineError
from pipelines.shards import ShardReader
from prep.formats import lines
from prep.run import run, summary
from prep.tokenizer import load_tokenizer
from tests.prep.small import LINE, TOKENIZER, MakePipeline, conversations, written


def test_packs_hold_every_sample_once_with_the_loss_on_the_answers(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(50))
    facts = run(load(file), workers=1)
    tokenizer = load_tokenizer(TOKENIZER)
    found = {}
    for pack in ShardReader(load(file).home / "prep"):
        for begin, end, record in zip(pack.cu_seqlens, pack.cu_seqlens[1:], pack.record, strict=False):
            ids, loss = pack.tokens[begin:end], pack.loss[begin:end]
            found[int(record)] = (tokenizer.decode(ids.tolist()), tokenizer.decode(ids[loss].tolist()))
    assert sorted(found) == list(range(50))
    for record, (text, trained) in found.items():
        words = f"word {record} " * (record % 4 + 1)
        assert text == f"<|user|>{words}?<|end|><|assistant|>{words}!<|end|>"
        assert trained == f"{words}!<|end|>"
    assert facts["samples"] == 50
    assert "100.00% of the mix" in summary(facts)


def test_worker_count_and_chunk_scheduling_change_no_byte(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 1500)
    file = make_pipeline(conversations(100))
    run(load(file), workers=1)
    once = written(file)
    (load(file).home / "prep" / "manifest.json").unlink()
    run(load(file), workers=3)
    assert written(file) == once


def test_tokens_behind_the_last_full_pack_are_counted_and_shares_are_of_the_mix(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(50))
    keys = ['prep.pack.strategy="concat_split"', "prep.pack.drop_last=true", "prep.pack.capacity=100"]
    facts = run(load(file, keys), workers=1)
    left_out = facts["sources"][0]["tokens"] - facts["tokens"]
    assert facts["tokens"] == 100 * facts["packs"]
    assert 0 < left_out < 100
    assert f"left out: {left_out} tokens" in summary(facts)
    assert "100.00% of the mix" in summary(facts)


def test_a_second_run_does_nothing(make_pipeline: MakePipeline, caplog: pytest.LogCaptureFixture) -> None:
    file = make_pipeline(conversations(5))
    run(load(file), workers=1)
    stamp = (load(file).home / "prep" / "manifest.json").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        run(load(file), workers=1)
    assert "nothing to do" in caplog.text
    assert (load(file).home / "prep" / "manifest.json").stat().st_mtime_ns == stamp


def test_changed_data_is_prepared_again(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(5))
    assert run(load(file), workers=1)["samples"] == 5
    make_pipeline(conversations(7))
    assert run(load(file), workers=1)["samples"] == 7


def test_a_template_file_counts_by_its_text_and_not_by_its_place(
    make_pipeline: MakePipeline, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = (TOKENIZER / "chat_template.jinja").read_text(encoding="utf-8")

    def prepared(name: str, text: str) -> int:
        (tmp_path / name).write_text(text, encoding="utf-8")
        template = f'[template]\nname = "custom"\nfile = "{name}"'
        return int(run(load(make_pipeline(conversations(3), template=template)), workers=1)["tokens"])

    first = prepared("one.jinja", source)
    with caplog.at_level("INFO"):
        assert prepared("same.jinja", source) == first
    assert "nothing to do" in caplog.text
    assert prepared("other.jinja", "ahead " + source) > first


def test_training_and_export_settings_leave_prep_current(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(5))
    run(load(file), workers=1)
    before = Manifest.read(load(file).home / "prep")
    file.write_text(file.read_text() + "[train]\nglobal_batch_size = 1\n[train.optimizer]\nlr = 1e-3\n")
    run(load(file), workers=1)
    assert Manifest.read(load(file).home / "prep") == before


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(25_000), "workers = 2")
    command = [sys.executable, "-m", "pipelines", "prep", str(file)]
    folder = load(file).home / "prep"
    subprocess.run(command, check=True, capture_output=True)
    whole = written(file)
    for wanted in ("chunk-", "shards"):  # while tokenizing, while writing
        (folder / "manifest.json").unlink()
        process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        while (
            process.poll() is None
            and not any(folder.glob(f".partial/*/{wanted}*"))
            and not any(folder.glob(f".partial/*/chunks/{wanted}*"))
        ):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert Manifest.read(folder) is None
        subprocess.run(command, check=True, capture_output=True)
        assert written(file) == whole


def faulty(line: str) -> str:
    return conversations(3) + line + "\n" + conversations(2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"a\.jsonl:4:2: not valid JSON"),
        ('{"messages": 3}', r"a\.jsonl:4: messages: expected"),
        ('{"messages": [{"role": "user", "content": "x"}]}', r"a\.jsonl:4: none of its \d+ tokens carries loss"),
        (LINE.format("long " * 300).strip(), r"a\.jsonl:4: \d+ tokens exceed prep\.max_length = 256"),
    ],
)
def test_a_faulty_record_is_named_and_leaves_nothing_finished(
    make_pipeline: MakePipeline, line: str, message: str
) -> None:
    file = make_pipeline(faulty(line))
    with pytest.raises(DataError, match=message):
        run(load(file), workers=1)
    assert Manifest.read(load(file).home / "prep") is None


def test_the_line_counts_through_all_chunks_and_the_first_fault_is_reported(
    make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 200)
    file = make_pipeline(conversations(10) + "\n\n{\n" + conversations(10) + "{\n")
    with pytest.raises(DataError, match=r"a\.jsonl:13:2: not valid JSON"):
        run(load(file), workers=1)


def test_skipped_records_are_listed_with_their_place(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(faulty("{") + faulty('{"messages": 3}'), 'on_bad_record = "skip"\nmax_bad_fraction = 0.5')
    facts = run(load(file), workers=1)
    rejects = (load(file).home / "prep" / "rejects.jsonl").read_text().splitlines()
    assert [(reject["path"], reject["record"], reject["byte"]) for reject in map(json.loads, rejects)] == [
        ("a.jsonl", 3, 2),
        ("a.jsonl", 9, None),
    ]
    assert (facts["samples"], facts["rejected"], facts["records"]) == (10, 2, 12)


def test_too_many_faulty_records_stop_the_run(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(faulty("{"), 'on_bad_record = "skip"')
    with pytest.raises(DataError, match=r"1 of 6 records are faulty, above.*a/a\.jsonl:4: not valid JSON"):
        run(load(file), workers=1)


@pytest.mark.parametrize(
    ("overlength", "samples", "reason"),
    [
        ("drop", 5, "overlong, dropped"),
        ("truncate_left", 6, "overlong, cut"),
        ("split", None, "overlong, split"),
    ],
)
def test_overlong_records_are_treated_as_asked_and_counted(
    make_pipeline: MakePipeline, overlength: str, samples: int | None, reason: str
) -> None:
    file = make_pipeline(faulty(LINE.format("long " * 300).strip()), f'overlength = "{overlength}"')
    facts = run(load(file), workers=1)
    assert facts["dropped"][reason] == 1
    if samples is not None:
        assert facts["samples"] == samples
    else:
        packs = list(ShardReader(load(file).home / "prep"))
        starts = np.concatenate([pack.start for pack in packs])
        assert sorted(set(starts.tolist()))[1] % 256 == 0
        assert facts["samples"] + facts["dropped"].get("without a token to train", 0) > 6


def test_empty_data_is_an_error(make_pipeline: MakePipeline) -> None:
    with pytest.raises(DataError, match="no sample to train on"):
        run(load(make_pipeline("\n\n")), workers=1)


def test_records_that_are_all_dropped_are_an_error_that_says_why(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(4), "min_length = 250")
    with pytest.raises(DataError, match=r"every record was dropped: 4 shorter than prep\.min_length"):
        run(load(file), workers=1)


def test_records_that_are_all_faulty_are_an_error_that_names_the_first(make_pipeline: MakePipeline) -> None:
    file = make_pipeline("{}\n5\n", 'on_bad_record = "skip"\nmax_bad_fraction = 1.0')
    with pytest.raises(DataError, match=r"every record was dropped: 2 faulty, of which the first is .*:1: messages: "):
        run(load(file), workers=1)


def test_a_place_that_cannot_be_written_is_an_error(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    file = make_pipeline(conversations(4))
    (tmp_path / "work").touch()
    with pytest.raises(MachineError, match="cannot be written"):
        run(load(file), workers=1)
