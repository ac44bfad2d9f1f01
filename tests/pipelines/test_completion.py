"""The shells' completion, by the protocol that click's scripts speak."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main

HEAVY = {"torch", "transformers", "pyarrow", "deepspeed", "numba", "tokenizers"}


def complete(*words: str) -> list[str]:
    """What bash is offered for the last of these words, and the modules that were loaded for it."""
    code = (
        "import sys\nfrom pipelines.cli import main\n"
        "try:\n    main(prog_name='packtrain')\nfinally:\n"
        "    print('loaded', *{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    environment = {
        **os.environ, "_PACKTRAIN_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(["packtrain", *words]), "COMP_CWORD": str(len(words)),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    loaded = done.stderr.splitlines()[-1].split()
    assert loaded[0] == "loaded", done.stderr
    assert not HEAVY & set(loaded)
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["tra"], "plain,train"),
        (["init", "qwen3-8b-l"], "plain,qwen3-8b-lora-2k"),
        (["recipes", "ql"], "plain,qlora"),
        (["prep", "my"], "file,my"),  # the shell completes files itself
        (["prep", "conv"], "plain,convert"),
        (["prep", "--pl"], "plain,--plan"),
        (["export", "to-int"], "plain,to-internevo"),
        (["plan", "my.toml", "--gpu", "h200"], "plain,H200"),
        (["train", "my.toml", "--set", "prep.pack.cap"], "plain,prep.pack.capacity="),
        (["check", "my.toml", "--set", 'prep.pack.strategy=\\"co'], 'plain,prep.pack.strategy="concat_split"'),
        (["verify", "a", "--j"], "plain,--json"),
    ],
)
def test_what_is_typed_is_completed_without_loading_a_stage(words: list[str], offered: str) -> None:
    assert offered in complete(*words)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_the_command(shell: str, tmp_path: Path) -> None:
    answer = CliRunner().invoke(main, ["completion", shell])
    assert answer.exit_code == 0
    assert f"_PACKTRAIN_COMPLETE={shell}_complete" in answer.output
    (tmp_path / "script").write_text(answer.output)
    if shutil.which(shell):
        subprocess.run([shell, "-n", tmp_path / "script"], check=True)


ASKED = {
    "bash": 'eval "$(packtrain completion bash)"; COMP_WORDS=(packtrain export to-int); COMP_CWORD=2\n'
    '_packtrain_completion packtrain 2> /dev/null; echo "${COMPREPLY[@]}"',
    "fish": "packtrain completion fish | source; complete -C 'packtrain export to-int'",
}
"""zsh completes only on a terminal."""


@pytest.mark.parametrize("shell", ASKED)
def test_a_shell_completes_by_it(shell: str, tmp_path: Path) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    command = tmp_path / "packtrain"
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); from pipelines.cli import main; "
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}main(prog_name=\'packtrain\')" "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run([shell, "-c", ASKED[shell]], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "to-internevo", done.stderr


def test_another_shell_is_refused() -> None:
    answer = CliRunner().invoke(main, ["completion", "powershell"])
    assert answer.exit_code == 2
    assert "'bash', 'zsh', 'fish'" in answer.output
