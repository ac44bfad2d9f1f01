"""The command line: help without heavy imports, errors as single lines with their exit codes, the ready recipes."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.config import load

ROOT = Path(__file__).parents[2]
RECIPES = sorted([*(ROOT / "pipelines").glob("*.toml"), *(ROOT / "pipelines" / "ready").glob("*.toml")])


def packtrain(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def commands(group: click.Group = main, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, hidden ones as well, by its words."""
    yield above, group
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*above, name))
        else:
            yield (*above, name), command


def test_every_command_has_help_that_loads_nothing_but_click() -> None:
    code = (
        "import sys\nbefore = set(sys.modules)\nfrom pipelines.cli import main\n"
        f"for words in {[words for words, _ in commands()]}:\n"
        "    main([*words, '--help'], standalone_mode=False)\n"
        "print('loaded', *sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert answer.count("Usage:") == len(list(commands())) >= 25
    loaded = set(answer.splitlines()[-1].split()[1:]) - sys.stdlib_module_names
    assert loaded <= {"pipelines", "click", "__mp_main__"}, "--help has to answer at once"


def test_every_command_prints_json_and_says_what_it_is_for() -> None:
    for words, command in commands():
        assert command.help, words
        if not isinstance(command, click.Group):
            assert "--json" in {name for option in command.params for name in option.opts}, words


def test_prep_and_the_checks_never_import_torch() -> None:
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None, deepspeed=None, peft=None)\n"
        "import pipelines.cli, pipelines.config, pipelines.golden, pipelines.provenance, pipelines.recipes\n"
        "import prep.run, prep.lint, prep.order, prep.preview, prep.quickstart, prep.bpe, train.fit"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def imports(path: Path) -> set[str]:
    """Top-level packages imported at module level, outside TYPE_CHECKING and function bodies."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def all_imports(path: Path) -> set[str]:
    """Packages imported anywhere in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("stage", ["prep", "train", "export"])
def test_a_stage_imports_no_other_stage(stage: str) -> None:
    others = {"prep", "train", "export"} - {stage}
    for path in (ROOT / stage).rglob("*.py"):
        assert not all_imports(path) & others, path


def test_pipelines_imports_a_stage_only_inside_a_command() -> None:
    stages = {"prep", "train", "export"}
    for path in (ROOT / "pipelines").rglob("*.py"):
        found = imports(path) if path.parent.name == "commands" else all_imports(path)
        assert not found & stages, path


def test_prep_and_pipelines_have_no_use_for_torch() -> None:
    for folder in ("prep", "pipelines"):
        for path in (ROOT / folder).rglob("*.py"):
            found = all_imports(path) & {"torch", "transformers", "deepspeed", "peft"}
            # Prompts are for export and training: Transformers renders them, in a process of its own and without torch.
            assert found <= ({"transformers"} if path.name == "prompt.py" else set()), path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prep", "missing.toml"], 2, "missing.toml"),
        (["prep"], 2, " prep [OPTIONS] FILE\nTry '"),
        (["prep", "a.toml", "--plan", "--part", "0/2"], 2, "--plan and --part exclude each other"),
        (["init", "nonsense"], 2, "no such recipe; `packtrain recipes`"),
        (["verify", "."], 3, "no manifest.json here or below"),
    ],
)
def test_a_users_error_is_one_line_with_its_exit_code(
    tmp_path: Path, arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = packtrain(*arguments)
    assert answer.returncode == code
    assert message in answer.stderr
    assert "Traceback" not in answer.stderr


def test_every_problem_of_a_file_is_shown_on_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('schema_version = 1\n[run]\nnam = "x"\n[prep.pack]\ncapasity = 3\n')
    lines = packtrain("check", tmp_path / "a.toml").stderr.splitlines()
    assert any(":3:1: run.nam" in line and "'name'" in line for line in lines)
    assert any(":5:1: prep.pack.capasity" in line and "'capacity'" in line for line in lines)


def test_an_interrupt_exits_75() -> None:
    @main.command(name="interrupted-in-a-test")
    def interrupted() -> None:
        raise KeyboardInterrupt

    try:
        assert CliRunner().invoke(main, ["interrupted-in-a-test"]).exit_code == 75
    finally:
        del main.commands["interrupted-in-a-test"]


def test_recipes_are_listed_with_what_they_do() -> None:
    found = json.loads(CliRunner().invoke(main, ["recipes", "--json"]).output)["recipes"]
    assert set(found) == {path.stem for path in RECIPES}
    assert all(found.values())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_read_without_complaint(path: Path) -> None:
    assert load(path).run.name


def test_init_writes_a_recipe_that_passes_its_check_and_touches_nothing_the_second_time(tmp_path: Path) -> None:
    assert packtrain("init", "quickstart", tmp_path).returncode == 0
    checked = packtrain("check", tmp_path / "quickstart.toml")
    assert checked.returncode == 0, checked.stderr
    page = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
    [shown] = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    assert set(shown.splitlines()[1:]) - {"..."} <= set(checked.stdout.splitlines())
    again = packtrain("init", "quickstart", tmp_path)
    assert (again.returncode, "nothing to do" in again.stdout) == (0, True)


def test_init_refuses_to_overwrite_a_file_of_another_content(tmp_path: Path) -> None:
    (tmp_path / "quickstart.toml").write_text("mine")
    answer = packtrain("init", "quickstart", tmp_path)
    assert answer.returncode == 2
    assert "exists with another content" in answer.stderr
    assert (tmp_path / "quickstart.toml").read_text() == "mine"


def test_env_tells_versions_without_importing_them() -> None:
    found = json.loads(CliRunner().invoke(main, ["env", "--json"]).output)
    assert found["packages"]["base"]["numba"]


def readme_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_pipeline_of_the_readme_is_read_without_complaint(tmp_path: Path) -> None:
    [text] = readme_blocks("toml")
    (tmp_path / "my-sft.toml").write_text(text)
    assert load(tmp_path / "my-sft.toml").export.targets == ["hf", "turbomind"]
