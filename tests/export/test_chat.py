"""Talking to an export, to a checkpoint, and to what cannot talk."""

import io
import shutil
from pathlib import Path
from typing import Any

import pytest

from export.chat import Speaker, chat, converse
from export.evaluate import answers
from export.run import run
from pipelines.errors import CheckError, DataError
from tests.export.tiny import pipeline, write_run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("chat")
    write_run(base)
    run(pipeline(base, targets=["hf", "turbomind"]))
    return base / "work" / "tiny"


def test_an_export_answers_as_it_is_evaluated(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "export" / "hf"
    chat(folder, prompt="hi", system="be brief", max_new_tokens=8)
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    (expected,) = answers(folder, [messages], 8)
    assert expected
    assert capsys.readouterr().out.strip() == expected


@pytest.mark.parametrize("where", ["export", "train/checkpoints/step-00000003"])
def test_a_run_and_a_checkpoint_answer_as_the_export(
    home: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    chat(home / "export" / "hf", prompt="hello", max_new_tokens=8)
    expected = capsys.readouterr().out
    chat(home / where, prompt="hello", max_new_tokens=8)
    assert capsys.readouterr().out == expected


def test_damaged_weights_are_named_and_not_asked(home: Path, tmp_path: Path) -> None:
    for where in ("export/hf", "train/checkpoints/step-00000003"):
        folder = tmp_path / where
        shutil.copytree(home / where, folder)
        path = next(folder.glob("*.safetensors"))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        with pytest.raises(CheckError, match=rf"{path.name}: SHA-256 differs"):
            Speaker(folder, 8)


def test_a_conversation_remembers_until_it_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[list[str]] = []

    def answer(messages: list[dict[str, Any]]) -> str:
        heard.append([message["content"] for message in messages])
        return f"answer {len(heard)}"

    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n/help\n/reset\nthree\n/quit\nfour\n"))
    converse(answer, [{"role": "system", "content": "s"}])
    assert heard == [["s", "one"], ["s", "one", "answer 1", "two"], ["s", "three"]]


def test_an_interrupted_answer_is_forgotten_and_the_conversation_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    heard: list[list[str]] = []

    def answer(messages: list[dict[str, Any]]) -> str:
        heard.append([message["content"] for message in messages])
        if len(heard) == 2:
            raise KeyboardInterrupt
        return f"answer {len(heard)}"

    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\nthree\n"))
    converse(answer, [])
    assert heard == [["one"], ["one", "answer 1", "two"], ["one", "answer 1", "three"]]
    assert "interrupted" in capsys.readouterr().err


def test_the_end_of_the_input_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    converse(lambda _: pytest.fail("nothing was said"), [])


def test_a_turbomind_folder_answers_as_the_export(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for target in ("hf", "turbomind"):
        chat(home / "export" / target, prompt="你好，上海", max_new_tokens=8)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1] != ""


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither an exported model nor a finished checkpoint"):
        chat(tmp_path, prompt="hi")


def test_a_model_without_a_template_is_refused(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(home / "export" / "hf", folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(CheckError, match=r"chat_template\.jinja: listed in manifest\.json but missing"):
        Speaker(folder, 8)
    (folder / "manifest.json").unlink()  # as of a model that no export wrote
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match="has no chat template"):
        Speaker(folder, 8)
