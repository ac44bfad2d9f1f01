"""What shards hold is derived again from the data, and whatever differs is named."""

import csv
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.artifacts import FileRecord, Json, Manifest
from pipelines.cli import main
from pipelines.config import load
from pipelines.errors import CheckError, DataError
from pipelines.schema import Pipeline
from pipelines.shards import Packs, read_shard, write_shard
from prep.encoder import Encoder
from prep.formats import columnar, ftdp, lines
from prep.preview import Wanted, show_packs
from prep.resample import resample, summary
from prep.run import run
from prep.trace import trace
from tests.prep.small import LINE, TOKENIZER, MakePipeline, conversations

EVERY = 1_000_000
"""More than there are."""


def prepared(file: Path) -> Pipeline:
    pipeline = load(file)
    run(pipeline, workers=1)
    return pipeline


def test_every_sample_is_derived_again_to_the_same_tokens(make_pipeline: MakePipeline) -> None:
    pipeline = load(make_pipeline(conversations(40), "[prep.eval]\nfraction = 0.2"))
    facts = run(pipeline, workers=1)
    result = resample(pipeline, EVERY)
    assert facts["eval"]["segments"] > 0
    assert result == {
        "samples": 40,
        "segments": 40,
        "tokens": facts["tokens"] + facts["eval"]["tokens"],
        "files": 1,
    }
    assert summary(result).startswith("40 of 40 segments derived again from 1 input files: ")


Rows = list[dict[str, Any]]


def write_jsonl(path: Path, rows: Rows) -> None:
    path.with_suffix(".jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")


def write_json(path: Path, rows: Rows) -> None:
    path.with_suffix(".json").write_text(json.dumps(rows))


def write_csv(path: Path, rows: Rows) -> None:
    with path.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def write_text(path: Path, rows: Rows) -> None:
    path.with_suffix(".txt").write_text("".join(row["text"].replace("\n", " ") + "\n\n" for row in rows))


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path.with_suffix(".parquet"), row_group_size=7)


def write_ftdp(path: Path, rows: Rows) -> None:
    offsets, at = [], 0
    with path.with_suffix(".bin").open("wb") as file:
        for row in rows:
            tokens = [token if place % 3 else -token for place, token in enumerate(row["text"].encode())]
            offsets.append((at, len(tokens)))
            at += file.write(json.dumps({"tokens": tokens}).encode() + b"\n")
    with Path(f"{path.with_suffix('.bin')}.meta").open("wb") as file:
        np.save(file, np.array(offsets, np.int64))


ROWS = [{"text": f"Document {number} " + "and so on " * (number % 9 + 1)} for number in range(50)]


def source(folder: Path, record_map: str, more: str = "", pack: str = "capacity = 256") -> Path:
    file = folder / "run.toml"
    file.write_text(
        f'schema_version = 1\n[run]\nname = "r"\n[model.scratch]\nmodel_type = "llama"\n'
        f'[tokenizer]\nname_or_path = "{TOKENIZER}"\n[template]\nname = "none"\n[prep]\n{more}\n'
        f'[[prep.source]]\nname = "a"\npath = "data"\nmap = "{record_map}"\n[prep.pack]\n{pack}\n'
        f'[prep.order]\nmode = "scan"\n'
    )
    return file


FORMATS = {
    "jsonl": write_jsonl,
    "json": write_json,
    "csv": write_csv,
    "text": write_text,
    "parquet": write_parquet,
    "ftdp": write_ftdp,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("count", [7, EVERY])
def test_records_are_found_in_every_format_and_every_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr(lines, "CHUNK_BYTES", 700)
    monkeypatch.setattr(ftdp, "CHUNK_BYTES", 900)
    monkeypatch.setattr(columnar, "ROWS", 10)
    (tmp_path / "data").mkdir()
    for part in range(3):
        FORMATS[name](tmp_path / "data" / f"part-{part}", ROWS[part:])
    pipeline = prepared(source(tmp_path, "none" if name == "ftdp" else "pretrain"))
    result = resample(pipeline, count)
    assert result["samples"] == min(count, 147)
    assert result["files"] == 3


@pytest.mark.parametrize("overlength", ["split", "truncate_left", "truncate_right"])
def test_pieces_of_overlong_records_are_derived_as_they_were_cut(tmp_path: Path, overlength: str) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a", ROWS)
    pipeline = prepared(source(tmp_path, "pretrain", f'max_length = 20\noverlength = "{overlength}"\nmin_length = 3'))
    result = resample(pipeline, EVERY)
    assert result["samples"] >= 50


@pytest.mark.parametrize("shuffle", ["hash", "xtuner"])
@pytest.mark.parametrize("attention", ["", "cross_sample_attention = true\nattention_window = 5"])
def test_samples_cut_by_concat_split_are_derived_again(tmp_path: Path, shuffle: str, attention: str) -> None:
    (tmp_path / "data").mkdir()
    write_jsonl(tmp_path / "data" / "a", ROWS)
    file = source(tmp_path, "pretrain", pack=f'capacity = 24\nstrategy = "concat_split"\n{attention}')
    file.write_text(file.read_text() + f'shuffle = "{shuffle}"\n')
    result = resample(prepared(file), EVERY)
    assert result["samples"] == result["segments"] > 90


def test_only_the_chosen_records_are_tokenized(make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = prepared(make_pipeline(conversations(60)))
    tokenized: list[int] = []
    encode = Encoder.encode

    def counted(self: Encoder, batch: Iterable[tuple[int, Mapping[str, Json]]], *rest: Any) -> Any:
        batch = list(batch)
        tokenized.extend(number for number, _ in batch)
        return encode(self, batch, *rest)

    monkeypatch.setattr(Encoder, "encode", counted)
    assert resample(pipeline, 5)["samples"] == 5
    assert len(tokenized) == 5


def test_skipped_and_dropped_records_keep_their_numbers(make_pipeline: MakePipeline) -> None:
    content = conversations(3) + "{\n\n" + LINE.format("long " * 300) + conversations(4)
    options = 'on_bad_record = "skip"\nmax_bad_fraction = 0.5\noverlength = "drop"'
    assert resample(prepared(make_pipeline(content, options)), EVERY)["samples"] == 7


def tamper(pipeline: Pipeline, change: Callable[[Packs], Packs]) -> None:
    """Change the first shard, and its digest with it."""
    path = pipeline.home / "prep" / "shards" / "shard-00000.arrow"
    packs = read_shard(path)
    copy = replace(packs, **{name: value.copy() for name, value in vars(packs).items()})
    write_shard(path, change(copy))
    manifest = Manifest.read(path.parents[1])
    assert manifest is not None
    files = [FileRecord.of(path.parents[1], path.parents[1] / one.path) for one in manifest.files]
    replace(manifest, files=files).write(path.parents[1])


def test_a_damaged_shard_is_named_before_any_record_is_read(make_pipeline: MakePipeline) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))
    path = pipeline.home / "prep" / "shards" / "shard-00000.arrow"
    content = bytearray(path.read_bytes())
    content[content.index(read_shard(path).tokens.tobytes())] ^= 1
    path.write_bytes(content)
    shutil.rmtree(pipeline.prep.source[0].path)
    works: list[Callable[[], object]] = [lambda: resample(pipeline, EVERY), lambda: trace(pipeline, 0, 0)]
    for work in works:
        with pytest.raises(CheckError, match=r"shard-00000\.arrow: SHA-256 differs"):
            work()
    tokenizer = pipeline.home / "prep" / "tokenizer" / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b"1", b"2", 1))
    wanted = Wanted(count=1, colour=False, lines=9, width=80, page=None)
    works = [lambda: trace(pipeline, 0, 0), lambda: show_packs(pipeline, [0], None, "train", wanted)]
    for work in works:
        with pytest.raises(CheckError, match=r"tokenizer\.json: SHA-256 differs"):
            work()


def test_another_token_is_named_with_its_place_and_both_texts(make_pipeline: MakePipeline) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))

    def change(packs: Packs) -> Packs:
        packs.tokens[int(packs.lengths[0]) + 3] ^= 1
        return packs

    tamper(pipeline, change)
    finding = (
        r"shards/shard-00000\.arrow: pack 0, segment 1, from .*data/a\.jsonl:\d \(source 'a'\): token 3 of \d+ in the "
        r'shard is \d+ in ".*wosd.*", and derived again, of \d+, it is \d+ in ".*word.*"; run `packtrain prep` again'
    )
    with pytest.raises(CheckError, match=finding):
        resample(pipeline, EVERY)


def test_another_target_is_named(make_pipeline: MakePipeline) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))

    def change(packs: Packs) -> Packs:
        packs.loss_mask[0] ^= 2
        return packs

    tamper(pipeline, change)
    with pytest.raises(CheckError, match=r"token 1, \".*\", is a target in the shard, and none derived again"):
        resample(pipeline, EVERY)


def test_a_sample_of_another_length_is_named(make_pipeline: MakePipeline) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))

    def change(packs: Packs) -> Packs:
        packs.lengths[0] += 1
        packs.lengths[1] -= 1
        return packs

    tamper(pipeline, change)
    with pytest.raises(CheckError, match=r"segment 0, .*derived again, of \d+, it is missing behind \".*\";"):
        resample(pipeline, EVERY)


def test_a_shard_that_names_no_input_is_refused(make_pipeline: MakePipeline) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))

    def change(packs: Packs) -> Packs:
        packs.file[2] = 1
        return packs

    tamper(pipeline, change)
    with pytest.raises(DataError, match=r"shard-00000\.arrow: names an input that manifest\.json does not list"):
        resample(pipeline, EVERY)


def test_a_record_that_is_not_there_is_named(make_pipeline: MakePipeline) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))

    def change(packs: Packs) -> Packs:
        packs.record[2] = 5
        return packs

    tamper(pipeline, change)
    with pytest.raises(CheckError, match=r"segment 2, .*a\.jsonl:6 .*there is no sample in record 6 of 5 now"):
        resample(pipeline, EVERY)


@pytest.mark.parametrize(
    ("line", "finding"),
    [
        ("", "there is no sample in record 4 of 6 now"),
        ("{", "the record is faulty now: not valid JSON"),
        (LINE.format("long " * 300).strip(), r"gives no sample that begins at token 0 now \(overlong, dropped\)"),
    ],
)
def test_a_record_that_gives_no_sample_is_named(make_pipeline: MakePipeline, line: str, finding: str) -> None:
    options = 'on_bad_record = "skip"\nmax_bad_fraction = 0.5\noverlength = "drop"'
    pipeline = prepared(make_pipeline(conversations(3) + line + "\n" + conversations(2), options))

    def change(packs: Packs) -> Packs:
        packs.record[1] = 3
        return packs

    tamper(pipeline, change)
    with pytest.raises(CheckError, match=f"segment 1, .*a\\.jsonl:4 .*: .*{finding}"):
        resample(pipeline, EVERY)


def test_a_changed_input_is_named_first(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))
    (tmp_path / "data" / "a.jsonl").write_text(conversations(5).replace("word", "Word"))
    with pytest.raises(CheckError, match=r"data/a\.jsonl: changed since prep read it; restore it"):
        resample(pipeline, EVERY)


def test_a_change_that_keeps_size_and_time_is_named_where_it_makes_a_difference(
    make_pipeline: MakePipeline, tmp_path: Path
) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))
    path = tmp_path / "data" / "a.jsonl"
    state = path.stat()
    path.write_text(conversations(5).replace("word", "Word"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(CheckError, match=r"data/a\.jsonl: changed since prep read it"):
        resample(pipeline, EVERY)


def test_a_file_that_cannot_be_read_to_its_end_any_more_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_json(tmp_path / "data" / "a", ROWS)
    pipeline = prepared(source(tmp_path, "pretrain"))
    path = tmp_path / "data" / "a.json"
    state, content = path.stat(), path.read_text()
    path.write_text(content[:-200] + " " * 200)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(CheckError, match=r"data/a\.json: changed since prep read it"):
        resample(pipeline, EVERY)


def test_another_number_of_sources_is_named(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(5))
    prepared(file)
    file.write_text(file.read_text() + '[[prep.source]]\nname = "b"\npath = "data"\n')
    with pytest.raises(CheckError, match=r"the number of prep\.source is 2, and was 1 when the shards"):
        resample(load(file), EVERY)


def test_a_missing_input_is_named(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = prepared(make_pipeline(conversations(5)))
    (tmp_path / "data" / "a.jsonl").rename(tmp_path / "data" / "b.jsonl")
    with pytest.raises(CheckError, match=r"a/a\.jsonl: the shards in .* are made from it, and it is not among"):
        resample(pipeline, EVERY)


def test_an_input_that_is_read_otherwise_is_named(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(5))
    prepared(file)
    file.write_text(file.read_text().replace('path = "data"', 'path = "data/a.jsonl"\nformat = "text"'))
    with pytest.raises(CheckError, match=r"a\.jsonl: is read as text here, and was read as jsonl; set format in"):
        resample(load(file), EVERY)


@pytest.mark.parametrize(
    ("override", "finding"),
    [
        ("prep.min_length=3", r"prep\.min_length is 3, and was 0 when the shards in .* were written; set it back"),
        ("prep.pack.capacity=128", r"prep\.pack\.capacity is 128, and was 256"),
        ("template.system='Be brief.'", r'template\.system is "Be brief\.", and was ""'),
        ("run.seed=7", r"run\.seed is 7, and was \d+"),
        ("template.loss.roles=['user']", r'template\.loss\.roles\.0 is "user", and was "assistant"'),
    ],
)
def test_another_setting_is_named(make_pipeline: MakePipeline, override: str, finding: str) -> None:
    file = make_pipeline(conversations(5))
    prepared(file)
    with pytest.raises(CheckError, match=finding):
        resample(load(file, [override]), EVERY)


def test_another_tokenizer_is_named(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    file = make_pipeline(conversations(5))
    prepared(file)
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    with (tmp_path / "tokenizer" / "chat_template.jinja").open("a") as template:
        template.write(" ")
    file.write_text(file.read_text().replace(str(TOKENIZER), "tokenizer"))
    with pytest.raises(CheckError, match=r"differs from the tokenizer that the shards in .* were written with"):
        resample(load(file), EVERY)


def test_without_shards_there_is_nothing_to_compare(make_pipeline: MakePipeline) -> None:
    with pytest.raises(DataError, match="no finished prep output here"):
        resample(load(make_pipeline(conversations(5))), 1)


def test_the_command_says_what_it_compared_and_exits_4_at_a_difference(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(5))
    prepared(file)
    answer = CliRunner().invoke(main, ["prep", "verify", str(file), "--resample", "3", "--json"])
    assert answer.exit_code == 0
    assert json.loads(answer.output)["samples"] == 3
    answer = CliRunner().invoke(main, ["prep", "verify", str(file), "--resample", "3", "--set", "prep.min_length=2"])
    assert answer.exit_code == 4
    assert "prep.min_length is 2" in answer.stderr
