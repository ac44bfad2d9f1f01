"""The check of templates: what they make of probes, and what is found where training and serving would differ."""

from pathlib import Path
from typing import Any

import pytest

from pipelines import schema
from pipelines.errors import ConfigError
from prep.named_template import layouts
from prep.template_check import Findings, check_template
from prep.tokenizer import load_tokenizer
from tests.prep.faults import BROKEN_TEMPLATES, RIGHT, TEMPLATE_FAULTS, UNMARKED, TemplateFault
from tests.prep.folders import SPECIAL as USUAL
from tests.prep.folders import byte_level
from tests.prep.test_named_template import SPECIAL
from tests.prep.test_template import AGENTS, CHATML, QUICKSTART, WITHOUT_BLOCKS


def checked(folder: Path, source: str = RIGHT, special: Any = SPECIAL, config: Any = None, **settings: Any) -> Findings:
    """Findings of a template with a byte-level tokenizer that begins texts with BOS."""
    byte_level(folder, special=special, bos=True, config={"chat_template": source, **(config or {})})
    return check_template(schema.Template(**settings), load_tokenizer(folder))


def kinds(found: Findings) -> list[str]:
    return [one.kind for one in found.findings]


@pytest.mark.parametrize("source", [RIGHT, UNMARKED])
def test_a_right_template_has_no_findings_and_a_form_for_everything(source: str, tmp_path: Path) -> None:
    found = checked(tmp_path, source, special=USUAL)
    assert (found.findings, found.other, found.refused, len(found.same)) == ([], [], [], 9)
    assert str(found).endswith("tools, a tool call, reasoning); one BOS")


@pytest.mark.parametrize("fault", TEMPLATE_FAULTS, ids=lambda fault: f"{fault.kind}: {fault.what}")
def test_a_known_fault_is_found(fault: TemplateFault, tmp_path: Path) -> None:
    found = checked(tmp_path, fault.source, fault.special, fault.config, **fault.settings)
    assert fault.kind in kinds(found), (kinds(found), str(found))


@pytest.mark.parametrize("source", [RIGHT, UNMARKED])
def test_parts_of_answers_that_are_not_to_be_trained_are_no_finding(source: str, tmp_path: Path) -> None:
    assert checked(tmp_path, source, special=USUAL, loss={"reasoning": False, "tool_calls": False}).findings == []
    assert checked(tmp_path, source, special=USUAL, loss={"turns": "last"}).findings == []


@pytest.mark.parametrize("what", BROKEN_TEMPLATES)
def test_a_template_that_cannot_be_used_is_found(what: str, tmp_path: Path) -> None:
    source, words = BROKEN_TEMPLATES[what]
    with pytest.raises(ConfigError, match=words):
        checked(tmp_path, source)


@pytest.mark.parametrize("source", [CHATML, WITHOUT_BLOCKS, *AGENTS, "{{- tools | tojson if tools -}}" + AGENTS[0]])
def test_usual_chat_templates_serve_what_they_train(source: str, tmp_path: Path) -> None:
    found = checked(tmp_path, source)
    assert found.other == []
    assert {*kinds(found)} <= {"no-bos"}
    assert {"a question", "Chinese", "an empty system message", "several turns"} <= {*found.same}
    assert ("a tool call" in found.refused) == ("tools" not in source)
    assert not found.begins


def test_every_named_template_serves_what_it_trains_but_for_a_question_that_ends_with_a_space(tmp_path: Path) -> None:
    byte_level(tmp_path, special=SPECIAL, bos=True)
    tokenizer = load_tokenizer(tmp_path)
    for name in layouts():
        found = check_template(schema.Template(name=name), tokenizer)
        spaced = ["sample-differs", "served-differs-later"]
        assert (name, kinds(found)) == (name, spaced if name == "deepseek_v2" else [])
        assert not any(one.is_error for one in found.findings)
        assert {"a question", "Chinese", "an empty system message"} <= {*found.same}
        assert {"tools", "a tool call", "reasoning"} <= {*found.refused}
    assert found.begins


def test_the_template_of_the_quickstart_has_no_findings() -> None:
    assert check_template(schema.Template(), load_tokenizer(QUICKSTART)).findings == []


def test_plain_text_begins_with_one_bos_and_ends_with_eos(tmp_path: Path) -> None:
    assert str(checked(tmp_path, name="none")) == "prompts are served as they are trained (text, Chinese); one BOS"
    assert kinds(checked(tmp_path, name="none")) == []
    assert not checked(tmp_path, name="none", bos="never").begins
    assert kinds(checked(tmp_path, name="none", eos="never")) == ["end-missing"]


def test_a_special_token_that_swallows_whitespace_is_served_otherwise(tmp_path: Path) -> None:
    byte_level(tmp_path, special=USUAL, config={"chat_template": RIGHT.replace("role'] + '\\n'", "role'] + '<unk>'")
               .replace("assistant\\n'", "assistant<unk>'")}, bos=True)  # fmt: skip
    file = tmp_path / "tokenizer.json"
    plain, swallowing = '"rstrip": false', '"rstrip": true'
    text = file.read_text()
    assert plain in text
    file.write_text(text.replace(plain, swallowing, 1))  # of <unk>, the first
    found = check_template(schema.Template(), load_tokenizer(tmp_path))
    assert kinds(found) == ["served-differs-later"]
    assert "a special token swallow whitespace" in found.findings[0].text
