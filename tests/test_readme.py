"""The commands that the README and the quickstart's page show, run as they stand there, on a tiny model."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from prep.conversation import Json
from tests.export.tiny import LLAMA
from tests.prep.test_resample import write_ftdp
from tests.test_documentation import DOCS, ROOT, blocks

QUICKSTART = ROOT / "pipelines" / "quickstart"

pytestmark = pytest.mark.slow


def shown(page: Path) -> tuple[str, list[list[str]]]:
    """The page's whole pipeline, small, and its commands about my-sft.toml."""
    found = blocks(page)
    [toml] = [text for language, text in found if language == "toml" and "schema_version" in text]
    [lines] = [text for language, text in found if language == "sh" and "packtrain prep my-sft.toml\n" in text]
    small = re.sub(r"(global_batch_size += )16", r"\g<1>2", re.sub(r"(capacity += )8192", r"\g<1>256", toml))
    assert small != toml
    calls = [shlex.split(line, comments=True) for line in lines.splitlines()]
    return small, [call[1:] for call in calls if call[0] == "packtrain"]


def write_files(folder: Path) -> None:
    """The model and the data that the pages name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = folder / "models" / "Llama-3.2-1B"
    keys: dict[str, Json] = {**LLAMA, "num_hidden_layers": 1, "vocab_size": 532}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**keys)).save_pretrained(model)
    for file in (QUICKSTART / "tokenizer").iterdir():
        shutil.copy(file, model)
    turns = [("user", "Which is an animal?"), ("assistant", "The fish.")]
    chat = json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]})
    for place in ("data/chats/a.jsonl", "data/chats.jsonl"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(f"{chat}\n" * 80)
    (folder / "data" / "train").mkdir()
    write_ftdp(folder / "data" / "train" / "a", [{"text": f"Document {number}"} for number in range(80)])


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "quickstart.md"], ids=lambda page: page.name)
def test_the_commands_shown_for_a_run_of_ones_own_do_what_they_say(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    toml, calls = shown(page)
    if page.name != "README.md":  # whose training and export are the same
        calls = [call for call in calls if call[0] not in ("train", "export", "chat")]
    (tmp_path / "my-sft.toml").write_text(toml)
    write_files(tmp_path)
    for call in calls:
        if call == ["verify", "work/my-sft", "work/other"]:
            shutil.copytree("work/my-sft", "work/other")
        answer = CliRunner().invoke(main, call, input="Which is an animal?\n")
        assert answer.exit_code == 0, f"{' '.join(call)}\n{answer.output}\n{answer.exception!r}"
    assert {call[0] for call in calls} >= {"order", "check", "preview", "prep", "plan"}
    assert (tmp_path / "work" / "my-sft" / "prep" / "manifest.json").is_file()
