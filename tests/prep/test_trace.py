"""Every token of finished shards is traced to its record, the characters it was made of, and their bytes."""

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config import load
from pipelines.errors import ConfigError
from pipelines.schema import Pipeline
from pipelines.shards import ShardReader
from prep import trace as module
from prep.lengths import FILE, chunk_of
from prep.run import run
from prep.trace import Tracer, lines, trace
from tests.prep.faults import RIGHT
from tests.prep.folders import byte_level, spm
from tests.prep.small import MakePipeline
from tests.prep.test_resample import FORMATS, source, tamper

TURNS = [
    {"role": "system", "content": "Be brief. \U0001f642"},
    {"role": "user", "content": ' say "Hello"\n to C:\\path, then 上海龘 '},
    {"role": "assistant", "content": "Hello Hello,\t上海 <|end|>"},
]
CHATS: list[dict[str, Any]] = [
    {"messages": TURNS},
    {"messages": [*TURNS, {"role": "user", "content": "And again?"}, {"role": "assistant", "content": "And again."}]},
    {"id": "third", "messages": TURNS[1:]},
]


def prepared(file: Path, *overrides: str) -> Pipeline:
    pipeline = load(file, overrides)
    run(pipeline, workers=1)
    return pipeline


def traces(pipeline: Pipeline) -> list[dict[str, Any]]:
    """Of every token."""
    reader = ShardReader(pipeline.home / "prep")
    tracer = Tracer(pipeline)
    return [tracer.of(pack, at) for pack in range(len(reader)) for at in range(reader[pack].tokens.size)]


def value(record: Any, name: str) -> str:
    for key in name.replace("[", ".").replace("]", "").split("."):
        record = record[int(key) if key.isdecimal() else key]
    assert isinstance(record, str)
    return record


def chats(escaped: bool) -> str:
    return "\n\n".join(json.dumps(record, ensure_ascii=escaped) for record in CHATS) + "\n"


@pytest.mark.parametrize("escaped", [False, True])
def test_every_token_of_a_chat_is_traced_to_its_characters_and_bytes(
    escaped: bool, make_pipeline: MakePipeline
) -> None:
    pipeline = prepared(make_pipeline(chats(escaped)))
    content = (pipeline.prep.source[0].path / "a.jsonl").read_bytes()
    whole = content.splitlines()
    covered: dict[tuple[int, str], set[int]] = {}
    for one in traces(pipeline):
        assert one["same"] is True, one["why"]
        record = json.loads(whole[one["record"] - 1])
        if one["field"] is None:
            assert one["rendered"]["text"] in "<|system|><|user|><|assistant|><|end|>\n"
            continue
        field = one["field"]
        assert field["text"] == value(record, field["name"])[field["begin"] : field["end"]] == one["rendered"]["text"]
        spelled = content[one["file"]["begin"] : one["file"]["end"]]
        assert json.loads(b'"' + spelled + b'"', strict=False) == field["text"]
        assert content[: one["file"]["begin"]].count(b"\n") + 1 == one["file"]["line"] == one["record"]
        covered.setdefault((one["record"], field["name"]), set()).update(range(field["begin"], field["end"]))
    contents = {
        (number * 2 + 1, f"messages[{index}].content"): set(range(len(message["content"])))
        for number, record in enumerate(CHATS)
        for index, message in enumerate(record["messages"])
    }
    assert covered == contents


@pytest.mark.parametrize("tokenizer", [byte_level, spm], ids=["byte-level", "sentencepiece"])
def test_tools_and_reasoning_are_traced_too(
    tokenizer: Callable[..., Path], make_pipeline: MakePipeline, tmp_path: Path
) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"of": "two things"}}}
    record = {
        "messages": [
            {"role": "user", "content": "What is it?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "five"},
            {"role": "assistant", "content": "It is five.", "reasoning_content": "they said five"},
        ]
    }
    tokenizer(tmp_path / "tok", config={"chat_template": RIGHT})
    file = make_pipeline(json.dumps(record) + "\n")
    found = traces(prepared(file, f'tokenizer.name_or_path="{tmp_path / "tok"}"'))
    assert all(one["same"] for one in found)
    by_field: dict[str, list[str]] = {}
    for one in found:
        if one["field"]:
            by_field.setdefault(one["field"]["name"], []).append(one["field"]["text"])
    assert {name: "".join(texts) for name, texts in by_field.items()} == {
        "messages[0].content": "What is it?",
        "messages[1].tool_calls[0].function.name": "add",
        "messages[1].tool_calls[0].function.arguments.of": "two things",
        "messages[2].content": "five",
        "messages[3].content": "It is five.",
        "messages[3].reasoning_content": "they said five",
    }


@pytest.mark.parametrize("pack", ["capacity = 64", 'capacity = 29\nstrategy = "concat_split"'])
@pytest.mark.parametrize("form", FORMATS)
def test_tokens_of_every_format_are_traced_also_where_samples_are_cut(form: str, pack: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"text": f"Document {number} " + "and so on " * (number % 3 + 1)} for number in range(8)]
    FORMATS[form](tmp_path / "data" / "a", rows)
    pipeline = prepared(source(tmp_path, "none" if form == "ftdp" else "pretrain", pack=pack))
    found = traces(pipeline)
    assert all(one["same"] for one in found), next(one["why"] for one in found if not one["same"])
    for one in found[::7]:
        if form in ("jsonl", "text", "ftdp") and one["text"] != "<|end|>":
            content = Path(one["where"]).read_bytes()[one["file"]["begin"] : one["file"]["end"]]
            assert content.decode().lstrip("-") == (str(one["id"]) if form == "ftdp" else one["field"]["text"])
        if form not in ("ftdp",) and one["field"]:
            assert one["field"]["text"] == one["rendered"]["text"] == one["text"]


def test_a_compressed_file_is_traced_in_its_content(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(chats(False))
    plain = file.parent / "data" / "a.jsonl"
    content = plain.read_bytes()
    Path(f"{plain}.gz").write_bytes(gzip.compress(content))
    plain.unlink()
    one = trace(prepared(file), 0, 3)
    assert content[one["file"]["begin"] : one["file"]["end"]].decode() == one["field"]["text"]


def test_a_file_that_changed_is_said(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(chats(False))
    pipeline = prepared(file)
    data = file.parent / "data" / "a.jsonl"
    content = data.read_text()
    first = next(at for at in range(9) if trace(pipeline, 0, at)["field"])
    where = trace(pipeline, 0, first)
    data.write_text(content + "\n")  # behind all records
    one = trace(pipeline, 0, first)
    assert (one["same"], one["field"]) == (True, where["field"])
    assert "changed since prep read it, but not in this record" in one["why"]
    assert "changed since" in lines(one)[-1]
    data.write_text(content.replace("brief", "BRIEF"))
    changed = [one for one in traces(pipeline) if not one["same"]]
    assert {one["record"] for one in changed} == {1, 3}
    assert "changed since prep read it; token " in changed[0]["why"]
    assert lines(changed[0])[-1].startswith("not the same: ")
    data.write_text("")
    assert "has 0 records now; it changed since prep read it" in trace(pipeline, 0, 0)["why"]
    data.rename(data.with_name("b.jsonl"))
    gone = trace(pipeline, 0, first)
    assert (gone["same"], gone["record"], gone["path"]) == (None, where["record"], "a.jsonl")
    assert "it is not among the inputs now" in gone["why"]


def test_a_shard_that_is_not_what_the_record_gives_is_said(make_pipeline: MakePipeline) -> None:
    pipeline = prepared(make_pipeline(chats(False)))
    tamper(pipeline, lambda packs: replace(packs, loss_mask=packs.loss_mask ^ np.uint8(2)))
    one = trace(pipeline, 0, 5)
    assert (one["same"], one["field"]) == (False, None)
    assert "token 1 of the segment is trained in the shard, and otherwise again; verify the shards" in one["why"]
    tamper(pipeline, lambda packs: replace(packs, tokens=np.minimum(packs.tokens ^ 1, packs.tokens.max())))
    assert "token 0 of the segment is 0 in the shard, and 1 made again" in trace(pipeline, 0, 5)["why"]


def test_other_settings_are_said_and_the_record_is_told_all_the_same(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(chats(False))
    prepared(file)
    one = trace(load(file, ["run.seed=7"]), 0, 0)
    assert one["same"] is None
    assert "run.seed is 7" in one["why"]
    assert one["source"] == "a"
    assert "not checked: " in lines(one)[-1]


def test_no_record_is_read_that_is_not_asked_for(make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = prepared(make_pipeline(chats(False)))
    folder = pipeline.home / "prep"
    assert chunk_of(folder, 0, 4) == (0, len(chats(False).encode()), 0)
    assert chunk_of(folder, 0, 5) is chunk_of(folder, 1, 0) is chunk_of(folder / "shards", 0, 0) is None
    with_it = trace(pipeline, 0, 5)
    (folder / FILE).unlink()
    assert trace(pipeline, 0, 5) == with_it
    monkeypatch.setattr(module, "count_records", None)
    with pytest.raises(TypeError):
        trace(pipeline, 0, 5)
    shutil.rmtree(folder)
    pipeline = prepared(make_pipeline(chats(False)))
    assert trace(pipeline, 0, 5) == with_it  # by what prep kept, without counting


def test_a_token_that_is_not_there_is_an_error(make_pipeline: MakePipeline) -> None:
    pipeline = prepared(make_pipeline(chats(False)))
    size = ShardReader(pipeline.home / "prep")[0].tokens.size
    with pytest.raises(ConfigError, match=r"pack 1: .* has the packs 0 to 0"):
        trace(pipeline, 1, 0)
    with pytest.raises(ConfigError, match=f"token {size}: pack 0 has the tokens 0 to {size - 1}"):
        trace(pipeline, 0, size)
