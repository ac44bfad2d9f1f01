"""Every command that the README and docs/ show is run as it stands there, or stands below with the reason why not."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from prep.conversation import Json
from tests.export.tiny import LLAMA
from tests.pipelines.families import FAMILIES, write_model
from tests.prep.test_resample import write_ftdp
from tests.test_documentation import DOCS, ROOT, blocks

README = ROOT / "README.md"
SHOWN = [README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
QUICKSTART = ROOT / "pipelines" / "quickstart"
CONFIGS = ROOT / "tests" / "pipelines" / "migrate" / "configs"
MODEL = "models/Llama-3.2-1B"

NOT_RUN: Mapping[str, str] = {
    r"make (prep train export|test|docs)$": "CI runs it on a fresh clone (.ci/run)",
    r"make chat$": "it talks to the run of `make`; `packtrain chat` talks to those here",
    r"make check$": "it runs the tests, this one among them",
    r"make (faults|fuzz)\b": "it takes minutes to a night; tests/faults and tests/fuzz run their drivers",
    r"make (pins|audit|versions)$": "it asks a package index; tests/versions have its parts",
    r"make bench-": "it measures for minutes, and beside trainers that it installs",
    r"make .*\bpicture\b": "it trains for minutes and needs Chromium",
    r"pip install ": "it needs a package index; tests/pipelines/test_packaging.py installs the wheel",
    r"RAY_ADDRESS=head:6379 ": "it needs a Ray cluster; tests/prep/executors/test_ray.py has one of this machine",
    r"export SBATCH_|packtrain prep .* \| sh$": "it needs Slurm; tests/prep/executors/test_slurm.py has the tasks",
    r"torchrun .*--nnodes 2 |NPROC_PER_NODE=8 NNODES=2 ": "it needs two machines; tests/train/test_launch.py has them",
    r"deepspeed ": "its launcher wants GPUs or several machines; tests/train/test_launch.py starts it for a CPU",
    r"srun ": "it needs Slurm; tests/train/test_examples.py stands for it",
    r'eval "\$\(packtrain completion zsh\)"|packtrain completion fish \|': "tests/pipelines/test_completion.py "
    "runs these scripts where their shells are",
    r"strace |grep AF_INET": "tests/hostile/test_offline.py watches every command with strace",
}
"""Commands by their beginning, and where else they are tried."""

ENDS: Mapping[str, int] = {
    "packtrain verify work/a work/b": 4,
    "packtrain verify work/a/train/checkpoints/step-00000500 work/b/train/checkpoints/step-00000500": 4,
    """packtrain prep my-sft.toml --set 'prep.executor="slurm"'""": 75,
}
"""Exit codes other than 0, as the pages say beside the commands."""

SMALLER = {"--nproc-per-node 8": "--nproc-per-node 2", "step-00000500": "step-00000002"}
"""What a command names that is smaller here."""

OURS = ("packtrain ", "torchrun ", 'eval "$(packtrain ', "git ")
"""What is run: in this process, or by bash."""


def commands(page: Path) -> list[str]:
    """The lines that a page shows as typed, without their comments."""
    found = []
    for language, text in blocks(page):
        lines = re.sub(r"\\\n\s*", "", text).splitlines()
        if language == "console":
            lines = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        if language in ("sh", "bash", "console"):
            found += [re.sub(r"(^|\s+)# .*$", "", line).strip() for line in lines]
    return [command for command in found if command]


def why_not(command: str) -> str | None:
    """The reason of a command that is not run."""
    return next((why for beginning, why in NOT_RUN.items() if re.match(beginning, command)), None)


PAGES = {page.name: commands(page) for page in SHOWN}
RUN = [name for name, lines in PAGES.items() if any(why_not(line) is None for line in lines)]


def test_a_command_that_is_not_run_has_its_reason_and_every_reason_its_command() -> None:
    lines = [line for shown in PAGES.values() for line in shown]
    assert len(lines) > 130
    for beginning in NOT_RUN:
        assert any(re.match(beginning, line) for line in lines), f"{beginning}: on no page; remove it"
    assert ENDS.keys() | {command for _, command in BETWEEN} <= set(lines)
    assert BEFORE.keys() | {name for name, _ in BETWEEN} <= set(RUN)
    for line in lines:
        assert why_not(line) or line.startswith(OURS), f"{line}: give a reason in NOT_RUN, or let it be run"


@pytest.mark.parametrize("page", SHOWN, ids=lambda page: page.name)
def test_commands_stand_in_blocks_that_are_known_as_such(page: Path) -> None:
    for language, text in blocks(page):
        if language in ("sh", "bash"):
            subprocess.run(["bash", "-n", "-c", text], check=True)
        elif language != "console":
            assert not re.search(r"^\s*(\$ )?(packtrain|make) ", text, re.MULTILINE), f"{text}\nis no block of sh"


# What is there before a page's commands, and what its reader does between them.


def write_files(folder: Path) -> None:
    """The model and the data that the pages name."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model = folder / MODEL
    sizes = {"num_hidden_layers": 1, "vocab_size": 532, "intermediate_size": 256, "max_position_embeddings": 32_768}
    keys: dict[str, Json] = {**LLAMA, **sizes}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**keys)).save_pretrained(model)
    shutil.copytree(QUICKSTART / "tokenizer", model, dirs_exist_ok=True)
    lines = "".join(talk(number) for number in range(1300))
    for place in ("data/chats/a.jsonl", "data/chats.jsonl"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(lines)
    (folder / "data" / "train").mkdir()
    write_ftdp(folder / "data" / "train" / "a", [{"text": f"Document {number}"} for number in range(600)])


def talk(number: int) -> str:
    turns = [("user", f"Which is an animal, {number}?"), ("assistant", "The fish. " * (1 + number % 4))]
    return json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n"


def write_toml(page: Path, folder: Path) -> None:
    """The whole pipeline that a page shows, small."""
    [text] = [text for language, text in blocks(page) if language == "toml" and "schema_version" in text]
    small = re.sub(r"(capacity += )8192", r"\g<1>512", text)
    small = re.sub(r"(global_batch_size += )16", r"\g<1>2\nmax_steps = 2", small)
    assert (small.count("= 512"), small.count("max_steps")) == (1, 1)
    (folder / "my-sft.toml").write_text(small + "\n[prep]\nworkers = 1\neval.fraction = 0.1\n")


def without(folder: Path, *places: str) -> None:
    """Take away files and folders."""
    for place in places:
        path = folder / place
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def changed(file: Path, *changes: tuple[str, str]) -> None:
    """Change what each pattern finds, once or more."""
    text = file.read_text(encoding="utf-8")
    for pattern, instead in changes:
        text, count = re.subn(pattern, instead, text)
        assert count, pattern
    file.write_text(text, encoding="utf-8")


def other_run(folder: Path) -> None:
    shutil.copytree(folder / "work" / "my-sft", folder / "work" / "other")


def fresh_repository(folder: Path) -> None:
    without(folder, "data_order.txt", "work")
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)


def succeed(*commands: str) -> None:
    for command in commands:
        answer = CliRunner().invoke(main, shlex.split(command))
        assert answer.exit_code == 0, f"{command}\n{answer.output}\n{answer.exception!r}"


def two_runs(folder: Path) -> None:
    """Runs a and b, the same but for the learning rate."""
    for name, rate in (("a", "2e-5"), ("b", "1e-3")):
        shutil.copytree(folder / "work" / "my-sft" / "prep", folder / "work" / name / "prep")
        succeed(f"train my-sft.toml --set run.name='\"{name}\"' --set train.optimizer.lr={rate}")


def quickstart(folder: Path) -> None:
    succeed("init quickstart .", "order write quickstart.toml")


def two_pipelines(folder: Path) -> None:
    """The quickstart, whose data a plan needs not, and the page's own long.toml."""
    shutil.copy(ROOT / "pipelines" / "quickstart.toml", folder)
    shutil.copytree(QUICKSTART / "tokenizer", folder / "quickstart" / "tokenizer")
    [text] = [text for language, text in blocks(DOCS / "plan.md") if language == "toml"]
    (folder / "long.toml").write_text(text)


def less_of_the_quickstart(folder: Path) -> None:
    """Two steps on 4,000 tokens, of the few conversations that `run_page` has it make."""
    changed(
        folder / "my-run" / "quickstart.toml",
        ("max_length = 512", "max_length = 512\nworkers = 1"),
        ("total = 1_200_000", "total = 4_000"),
        (r"global_batch_size = 1 ", "max_steps = 2\nglobal_batch_size = 1 "),
        ("min_accuracy = 0.9", "min_accuracy = 0.0"),
    )
    succeed("order write my-run/quickstart.toml")


def pipeline_of_the_quickstarts_page(folder: Path) -> None:
    write_toml(DOCS / "quickstart.md", folder)
    without(folder, "data_order.txt", "work/my-sft")


def data_of_a_recipe(folder: Path) -> None:
    """A tiny Qwen 3 in the place of the hub's, and the reader's conversations."""
    write_model(FAMILIES["Qwen 3"], folder / "my-run" / "model")
    changed(folder / "my-run" / "model" / "config.json", (r'("max_position_embeddings": )\d+', r"\g<1>2048"))
    shutil.copytree(folder / "data" / "chats", folder / "my-run" / "data" / "chats")
    changed(
        folder / "my-run" / "qwen3-8b-lora-2k.toml",
        (r"source += .huggingface.", 'source = "local"'),
        ("Qwen/Qwen3-8B", "model"),
        (r"global_batch_size += 64", "max_steps = 2\nglobal_batch_size = 1"),
    )


def internevo_checkpoint(step: str) -> Callable[[Path], None]:
    """A checkpoint as InternEvo saves it at a step."""

    def prepare(folder: Path) -> None:
        succeed(f"export to-internevo {MODEL} ckpt/{step}")

    return prepare


def internevo_config(folder: Path) -> None:
    """The config of a run from a checkpoint, and the checkpoint."""
    shutil.copy(CONFIGS / "internevo_sft.py.txt", folder / "7b_sft.py")
    changed(folder / "7b_sft.py", ("local:/ckpts/7b/20000", "local:ckpt/20000"), ("/data/sft/tokens", "data/train"))
    without(folder, "my-sft.toml", "data_order.txt")
    internevo_checkpoint("20000")(folder)


def tokenizer_of_internevo(folder: Path) -> None:
    shutil.copytree(QUICKSTART / "tokenizer", folder / "models" / "7b_sft", dirs_exist_ok=True)


def xtuner_config(folder: Path) -> None:
    """The config of a run on tokenized data, with its model, its data and its list of files."""
    config = folder / "internlm2_7b_w_tokenized_dataset.py"
    shutil.copy(CONFIGS / "xtuner_tokenized.py.txt", config)
    changed(
        config,
        ("internlm/internlm2-7b", MODEL),
        ("/data/sft/tokens", "data/train"),
        ("/data/sft/order", "."),
        ("internlm2_chat", "phi3_chat"),
    )
    without(folder, "my-sft.toml")
    (folder / "data_order.txt").write_text("a.bin\n")


def configs(folder: Path) -> None:
    xtuner_config(folder)
    shutil.copy(CONFIGS / "internevo_sft.py.txt", folder / "7b_sft.py")
    shutil.copy(CONFIGS / "axolotl_lora.yaml", folder / "lora.yaml")
    shutil.copy(CONFIGS / "llamafactory_full.yaml", folder / "llama3_full_sft.yaml")


BEFORE: Mapping[str, Callable[[Path], None]] = {
    "check.md": quickstart,
    "ci.md": fresh_repository,
    "export.md": internevo_checkpoint("5000"),
    "from-internevo.md": internevo_config,
    "from-xtuner.md": xtuner_config,
    "launching.md": lambda folder: without(folder, "work/my-sft/train", "work/my-sft/export"),
    "migrate.md": configs,
    "plan.md": two_pipelines,
    "scaling.md": lambda folder: without(folder, "work"),
}
BETWEEN: Mapping[tuple[str, str], Callable[[Path], None]] = {
    ("README.md", "packtrain verify work/my-sft work/other"): other_run,
    ("ci.md", "packtrain verify work/a work/b"): two_runs,
    ("from-internevo.md", "packtrain order write my-sft.toml"): tokenizer_of_internevo,
    ("quickstart.md", "packtrain check my-run/quickstart.toml"): less_of_the_quickstart,
    ("quickstart.md", "packtrain order write my-sft.toml"): pipeline_of_the_quickstarts_page,
    ("recipes.md", "packtrain order write my-run/qwen3-8b-lora-2k.toml"): data_of_a_recipe,
}


@pytest.fixture(scope="module")
def readme(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the README's commands were run: a whole run, my-sft."""
    folder = tmp_path_factory.mktemp("docs") / "README.md"
    folder.mkdir()
    write_files(folder)
    write_toml(README, folder)
    with pytest.MonkeyPatch.context() as patch:
        run_page("README.md", folder, patch)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUN)
def test_the_commands_of_a_page_do_what_they_say(
    name: str, readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "README.md":
        return  # they were run for all
    folder = tmp_path / name
    shutil.copytree(readme, folder)
    run_page(name, folder, monkeypatch)


def run_page(name: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Run a page's commands in their order, in a folder."""
    import torch

    patch.setattr("prep.quickstart.files.CONVERSATIONS", 400)  # of 45,000
    patch.setenv("CUDA_VISIBLE_DEVICES", "")
    patch.setattr("torch.cuda.is_available", lambda: False)
    patch.setattr("torch.cuda.device_count", lambda: 0)
    patch.setattr("torch.nn.functional.linear", torch._C._nn.linear)  # after ZeRO 3 DeepSpeed's own would stay
    patch.chdir(folder)
    if prepare := BEFORE.get(name):
        prepare(folder)
    for command in PAGES[name]:
        if why_not(command):
            continue
        if act := BETWEEN.get((name, command)):
            act(folder)
        code, output = run(command, folder, patch)
        expected = ENDS.get(command, 0)
        assert code == expected, f"{name}: {command}\n{output}"


def run(command: str, folder: Path, patch: pytest.MonkeyPatch) -> tuple[int, str]:
    """Exit code and output: in this process where it is a command of ours alone, so that imports are paid once."""
    for shown, here in SMALLER.items():
        command = command.replace(shown, here)
    words = shlex.split(command)
    if words[0] != "packtrain" or set(words) & {"|", "&&", ";"}:
        return run_in_bash(command, folder)
    patch.setattr("sys.argv", words)
    answer = CliRunner().invoke(main, words[1:], input="Which is an animal?\n")
    return answer.exit_code, f"{answer.output}\n{answer.exception!r}"


def run_in_bash(command: str, folder: Path) -> tuple[int, str]:
    """The same, as a terminal has it, with `packtrain` on the path."""
    program = folder.parent / "bin" / "packtrain"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m pipelines "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    shell = ["bash", "-e", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr
