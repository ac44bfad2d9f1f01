"""An export can be checked again, at any time, from its directory or its pipeline."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from pipelines.artifacts import FileRecord, Manifest
from pipelines.checkpoints import step_folder
from pipelines.cli import main
from tests.export.adapted import write_adapted_run
from tests.export.test_adapter import LORA
from tests.export.tiny import LLAMA, random_tensors, write_checkpoint, write_run
from tests.least import least

TOML = f"""{least(512)}
[model]
{{model}}
[tokenizer]
name_or_path = "tokenizer"
[export]
targets = {{targets}}
"""
SCRATCH = 'scratch = { model_type = "llama" }'


def packtrain(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def exported(folder: Path, *given: str, targets: str = '["hf", "turbomind"]', model: str = SCRATCH) -> Path:
    """An export by the command line; returns the pipeline's file."""
    path = folder / "tiny.toml"
    path.write_text(TOML.format(targets=targets, model=model))
    done = packtrain("export", path, *given)
    assert done.exit_code == 0, done.output
    return path


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def change(folder: Path, **numbers: Any) -> None:
    """Give a tensor's first number of an exported directory another value, with a manifest that agrees."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name, value in numbers.items():
        tensors[name.replace("__", ".")].reshape(-1)[:1] = value
    save_file(tensors, path, {"format": "pt"})
    for home, inside in ((folder, ""), (folder.parent, "hf/")):
        manifest = Manifest.read(home)
        assert manifest is not None
        changed = [
            FileRecord.of(home, home / record.path)
            if record.path in (f"{inside}model.safetensors", f"{inside}manifest.json")
            else record
            for record in manifest.files
        ]
        Manifest(**{**vars(manifest), "files": changed}).write(home)


def test_finished_export_passes_again_from_its_file_and_its_directories(tmp_path: Path) -> None:
    write_run(tmp_path)
    path, home = exported(tmp_path, "--set", "export.hf.dtype='bfloat16'"), tmp_path / "work/tiny/export"
    before = files(tmp_path)
    for place in (home, home / "hf"):
        done = packtrain("export", "verify", place, "--json")
        assert done.exit_code == 0, done.output
        assert '"tensors_equal": 21' in done.output
        assert '"max_abs_diff": 0.0' in done.output
    # Training went on since; what was exported is compared with the checkpoint that it is of.
    write_checkpoint(step_folder(tmp_path / "work/tiny/train/checkpoints", 4), LLAMA, random_tensors(LLAMA, 8))
    given = ("--set", "export.hf.dtype='bfloat16'", "--set", "export.checkpoint=4")
    other = packtrain("export", "verify", path, *given)
    assert (other.exit_code, "export: was made from checkpoint" in other.output) == (4, True)
    assert packtrain("export", "verify", home).exit_code == 0
    assert all(path.read_bytes() == content for path, content in before.items())


def test_changed_number_is_found_although_the_manifest_agrees(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = exported(tmp_path, targets='["hf"]')
    change(tmp_path / "work/tiny/export/hf", model__norm__weight=3.0)
    found = packtrain("export", "verify", path)
    assert found.exit_code == 4
    assert "model.norm.weight differs from the checkpoint in 1 of 128 numbers" in found.output


def test_merged_number_is_computed_again(tmp_path: Path) -> None:
    write_adapted_run(tmp_path, LORA)
    model = 'name_or_path = "base"\nlora = { r = 4, lora_alpha = 8 }'
    path = exported(tmp_path, targets='["hf", "adapter"]', model=model)
    assert packtrain("export", "verify", path).exit_code == 0
    change(tmp_path / "work/tiny/export/hf", model__layers__0__self_attn__q_proj__weight=3.0)
    assert "q_proj.weight differs from the checkpoint in 1 of" in packtrain("export", "verify", path).output


def test_changed_file_settings_and_place_are_each_named(tmp_path: Path) -> None:
    checkpoint, _ = write_run(tmp_path)
    path, home = exported(tmp_path, targets='["hf"]'), tmp_path / "work/tiny/export"
    other = packtrain("export", "verify", path, "--set", "export.hf.dtype='float16'")
    assert (other.exit_code, "is F32[259, 128]; export again" in other.output) == (4, True)
    fewer = packtrain("export", "verify", path, "--set", "export.targets=['hf', 'turbomind']")
    assert (fewer.exit_code, "holds hf, this pipeline's targets are hf, turbomind" in fewer.output) == (4, True)
    (home / "hf/config.json").write_text("{}")
    damaged = packtrain("export", "verify", home)
    assert (damaged.exit_code, "config.json: 2 bytes, manifest.json says" in damaged.output) == (4, True)
    (home / "run.json").unlink()
    unknown = packtrain("export", "verify", home / "hf")
    assert (unknown.exit_code, "holds no run.json that names the pipeline" in unknown.output) == (3, True)
    (home / "manifest.json").unlink()
    assert "no finished export; run `packtrain export`" in packtrain("export", "verify", path).output
    assert checkpoint.is_dir()


def test_nothing_loads_a_model_without_greedy_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    for place in ("export.verify.load_folder", "export.verify.load_tensors", "export.turbomind.verify.load_tensors"):
        monkeypatch.setattr(place, load)
    path = exported(tmp_path, "--set", "export.verify.greedy_tokens=0")
    assert packtrain("export", "verify", path, "--set", "export.verify.greedy_tokens=0").exit_code == 0
    assert isinstance(packtrain("export", "verify", path).exception, AssertionError)  # with them, it would
