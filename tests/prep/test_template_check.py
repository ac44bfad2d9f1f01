"""The check of templates: what they make of probes, and what is found where training and serving would differ."""

from pathlib import Path
from typing import Any

import pytest

from pipelines import schema
from pipelines.errors import CheckError
from prep.named_template import layouts
from prep.template_check import Findings, check_template
from prep.tokenizer import load_tokenizer
from tests.prep.folders import byte_level
from tests.prep.test_named_template import SPECIAL
from tests.prep.test_template import AGENTS, CHATML, WITHOUT_BLOCKS


def checked(folder: Path, source: str = CHATML, special: Any = SPECIAL, **settings: Any) -> Findings:
    """Findings of a template with a byte-level tokenizer that begins texts with BOS."""
    byte_level(folder, special=special, bos=True, config={"chat_template": source})
    return check_template(schema.Template(**settings), load_tokenizer(folder))


@pytest.mark.parametrize("source", [CHATML, WITHOUT_BLOCKS, *AGENTS, "{{- tools | tojson if tools -}}" + AGENTS[0]])
def test_usual_chat_templates_serve_what_they_train(source: str, tmp_path: Path) -> None:
    found = checked(tmp_path, source)
    assert found.other == []
    assert {"a question", "Chinese", "an empty system message", "several turns"} <= {*found.same}
    assert ("a tool call" in found.refused) == ("tools" not in source)
    assert not found.begins


def test_named_templates_serve_what_they_train_but_for_a_question_that_ends_with_a_space(tmp_path: Path) -> None:
    for name in layouts():
        found = checked(tmp_path, name=name)
        assert (name, bool(found.other)) == (name, name == "deepseek_v2")
        assert {"a question", "Chinese", "an empty system message"} <= {*found.same}
        assert {"tools", "a tool call"} <= {*found.refused}
    drifted = str(checked(tmp_path, name="deepseek_v2"))
    assert "served otherwise than trained: several turns, where token 11 is ' Hello', and ' ' in the prompt" in drifted
    assert drifted.endswith("no form for tools, a tool call; one BOS")


def test_plain_text_begins_with_one_bos(tmp_path: Path) -> None:
    assert str(checked(tmp_path, name="none")) == "prompts are served as they are trained (text, Chinese); one BOS"
    assert not checked(tmp_path, name="none", bos="never").begins


def test_a_second_bos_is_found(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="It says of the first: begins with <s> twice; let the template write it"):
        checked(tmp_path, "{{- bos_token -}}<s>" + CHATML)
    assert checked(tmp_path, "{{- bos_token -}}" + CHATML).begins


def test_an_answer_without_a_trained_end_is_found(tmp_path: Path) -> None:
    endless = CHATML.replace(" + '<|im_end|>' -}}{%- endgeneration -%}", " -}}{%- endgeneration -%}{{- '\\n' -}}")
    with pytest.raises(CheckError, match=r"the answer should end with .*, trained, but its last trained token is '5'"):
        checked(tmp_path / "a", endless)
    assert checked(tmp_path / "b", endless, loss={"end_of_turn": False}).same


def test_a_template_that_refuses_everything_is_found(tmp_path: Path) -> None:
    with pytest.raises(CheckError, match="template 'tokenizer' refuses every probe conversation"):
        checked(tmp_path, "{{- raise_exception('no') -}}")
