"""Prompts as token ids."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from pipelines.errors import CheckError, ConfigError
from pipelines.probes import Probe, Probes
from prep.tokenizer import load_tokenizer
from tests.train.runs import pipeline, share
from tests.train.talks import MODEL, write_chat_prep
from train.plan import Plan
from train.questions import Questions


def questions(folder: Path, prompts: list[str], *, positions: int = 64, **table: Any) -> Questions:
    plan = Plan.of(pipeline(folder, model=MODEL, eval={"prompts": prompts, **table}))
    return Questions(plan, AutoConfig.for_model(**MODEL["scratch"] | {"max_position_embeddings": positions}))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat")
    return share(write_chat_prep(folder / "prep"), folder / "work")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    return share(write_chat_prep(folder / "prep", template="none"), folder / "work")


def test_prompts_are_rendered_as_prep_renders_them(chat: Path) -> None:
    found = questions(chat, ["请用一句话介绍上海。"], max_new_tokens=8)
    probes = {len(probe.messages): probe for probe in Probes.read(chat / "tiny/prep/tokenizer").probes[:2]}
    assert found.all[0].ids == list(probes[1].prompt_ids)
    assert found.all[0].room == 8
    with_system = questions(chat, ["Name a colour."], system="Answer briefly.")
    (expected,) = [
        probe for probe in Probes.read(chat / "tiny/prep/tokenizer").probes if probe.messages[0]["role"] == "system"
    ]
    assert with_system.all[0].ids == list(expected.prompt_ids)


def test_plain_text_is_gone_on_from(plain: Path) -> None:
    tokenizer = load_tokenizer(plain / "tiny/prep/tokenizer")
    assert questions(plain, ["Once upon"]).all[0].ids == tokenizer.encode("Once upon")


def test_answers_end_where_the_model_does(chat: Path) -> None:
    (question,) = questions(chat, ["Hello!"], positions=40).all
    assert question.room == 40 - len(question.ids)


def test_what_cannot_be_asked_is_refused(chat: Path, plain: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.eval\.prompts\.1 = .*: holds the special token '<\|im_end\|>'"):
        questions(chat, ["fine", "a<|im_end|>b"])
    with pytest.raises(ConfigError, match=r"prompts\.0.* tokens, and the model has 9 positions.*; shorten it"):
        questions(chat, ["Hello!"], positions=9)
    with pytest.raises(ConfigError, match=r"train\.eval\.system = .*: has no place in plain text; remove it"):
        questions(plain, ["Once"], system="Be brief.")


def test_a_template_without_a_form_for_it_is_named(tmp_path: Path) -> None:
    write_chat_prep(tmp_path / "prep")
    template = tmp_path / "prep" / "tokenizer" / "chat_template.jinja"
    template.write_text("{{- raise_exception('no system message') -}}")
    Probes([1]).write(template.parent)
    with pytest.raises(ConfigError, match=r"train\.eval\.system = .*: the template refuses it \(no system message\)"):
        questions(share(tmp_path / "prep", tmp_path / "work"), ["Hello!"], system="Be brief.")


def test_a_tokenizer_that_would_be_served_otherwise_is_refused(tmp_path: Path) -> None:
    write_chat_prep(tmp_path / "prep")
    Probes([1], [Probe([{"role": "user", "content": "x"}], [1, 2])]).write(tmp_path / "prep" / "tokenizer")
    with pytest.raises(CheckError, match="other prompts than were trained on, first at token 1"):
        questions(share(tmp_path / "prep", tmp_path / "work"), ["Hello!"])
