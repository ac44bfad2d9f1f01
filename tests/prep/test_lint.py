"""`packtrain check`: what it tells about a pipeline, and what it finds before any work."""

import json
from pathlib import Path

import pytest

from pipelines.config import load
from pipelines.errors import CheckError, ConfigError, DataError
from prep.lint import lint
from tests.prep.folders import byte_level
from tests.prep.small import MakePipeline, conversations
from tests.prep.test_rendering import CHAT, pipeline_file
from tests.prep.test_template import CHATML


def test_a_sound_pipeline_is_told_in_words(make_pipeline: MakePipeline) -> None:
    found = lint(load(make_pipeline(conversations(5))))
    assert [*found] == ["tokenizer", "data order", "template", "source a"]
    assert found["data order"] == "1 files"
    assert found["template"].startswith("prompts are served as they are trained (a question, Chinese,")
    assert found["source a"].startswith("5 first samples of ")


def test_a_source_with_a_template_of_its_own_is_told_to_be_served_otherwise(tmp_path: Path) -> None:
    file = pipeline_file(tmp_path, "", 'template = "mistral"', 'map = "pretrain"\ntemplate = "none"')
    for name, record in (("a", CHAT), ("b", CHAT), ("c", {"text": "some text"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    found = lint(load(file))
    assert found["template of b"].startswith("not the one that is exported; prompts are served")
    assert found["template of c"].startswith("prompts are served as they are trained (text, Chinese)")
    assert "template of a" not in found


def test_a_template_whose_answers_do_not_end_fails_the_check(tmp_path: Path) -> None:
    endless = CHATML.replace(" + '<|im_end|>' -}}{%- endgeneration -%}", " -}}{%- endgeneration -%}{{- '\\n' -}}")
    tokenizer = byte_level(tmp_path / "tokenizer", config={"chat_template": endless})
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + "\n")
    with pytest.raises(CheckError, match="the answer should end with"):
        lint(load(pipeline_file(tmp_path, "", tokenizer=tokenizer)))


def test_an_unknown_template_and_a_faulty_record_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(ConfigError, match=r'run\.toml:\d+:\d+: prep\.source\.0\.template = "x": no such template'):
        lint(load(pipeline_file(tmp_path, 'template = "x"')))
    with pytest.raises(DataError, match=r"a\.jsonl:1: messages: expected at least one message"):
        lint(load(pipeline_file(tmp_path, "")))
