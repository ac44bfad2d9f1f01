"""What a run will do, known before torch is imported."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Manifest
from pipelines.checkpoints import FORMAT_VERSION, step_folder
from pipelines.errors import ConfigError, DataError
from tests.train.runs import LLAMA, pipeline, write_prep
from train.plan import Plan, packs_left


@pytest.fixture
def work(tmp_path: Path) -> Path:
    write_prep(tmp_path / "tiny" / "prep")
    return tmp_path


def checkpoint(plan: Plan, step: int) -> Path:
    """A manifest as the checkpoint of a step has it."""
    folder = step_folder(plan.checkpoints, step)
    folder.mkdir(parents=True)
    facts = {"step": step, "settings": plan.settings}
    Manifest(
        "checkpoint", FORMAT_VERSION, "c", {"prep": plan.prep.identity}, [], {"run": plan.identity, **facts}
    ).write(folder)
    return folder


@pytest.mark.parametrize(("size", "epochs", "steps"), [(4, 1, 2), (4, 2, 5), (10, 1, 1), (1, 1, 10), (7, 3, 4)])
def test_steps_never_show_a_pack_more_often_than_max_epochs(size: int, epochs: int, steps: int, work: Path) -> None:
    plan = Plan.of(pipeline(work, global_batch_size=size, max_epochs=epochs))
    assert plan.total_steps == steps
    assert steps * size <= epochs * plan.packs < (steps + 1) * size


def test_packs_that_come_behind_the_last_full_step_are_told_where_they_are_many(work: Path) -> None:
    def left(**keys: Any) -> str:
        one = pipeline(work, **keys)
        plan = Plan.of(one)
        return packs_left(one, plan.packs, plan.total_steps)

    packs = Plan.of(pipeline(work)).packs
    said = left(global_batch_size=packs // 2 + 1, max_epochs=1)
    assert f"{packs} packs give 1 step, and the last {packs - packs // 2 - 1} packs (" in said
    assert said.endswith("are trained in none; lower it, or raise train.max_epochs")
    assert left(global_batch_size=packs, max_epochs=1) == ""
    assert (packs, left(global_batch_size=8, max_epochs=1)) == (10, "")
    assert "the last 3 packs (30%) are trained in none" in left(global_batch_size=7, max_epochs=1)
    assert left(global_batch_size=packs // 2 + 1, max_epochs=1, max_steps=1) == ""


def test_max_steps_may_exceed_the_data(work: Path) -> None:
    assert Plan.of(pipeline(work, global_batch_size=64, max_steps=9)).total_steps == 9


def test_too_few_packs_for_a_step_are_an_error(work: Path) -> None:
    with pytest.raises(
        ConfigError, match="global_batch_size = 11: 1 epochs of 10 packs do not fill one optimizer step"
    ):
        Plan.of(pipeline(work, global_batch_size=11))


def test_missing_prep_output_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished prep output here; run `packtrain prep` first"):
        Plan.of(pipeline(tmp_path))


def test_missing_model_directory_is_an_error(work: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json there"):
        Plan.of(pipeline(work, model={"name_or_path": "nowhere"}))


def test_identity_is_that_of_what_is_computed(work: Path) -> None:
    mine = Plan.of(pipeline(work)).identity
    same = pipeline(work, deepspeed={"zero_stage": 3}, checkpoint={"save_steps": 1}, nproc_per_node=2)
    assert Plan.of(same).identity == mine
    assert Plan.of(pipeline(work, optimizer={"lr": Decimal("0.02")})).identity != mine
    assert Plan.of(pipeline(work, model={"scratch": {**LLAMA, "hidden_size": 64}})).identity != mine


def test_deepspeeds_own_keys_are_of_the_identity_where_they_change_numbers(work: Path) -> None:
    def of(**extra: object) -> str:
        return Plan.of(pipeline(work, deepspeed={"extra": extra})).identity

    mine = of()
    assert of(zero_optimization={"reduce_bucket_size": 5, "stage3_param_persistence_threshold": 0}) == mine
    assert of(communication_data_type="fp16", zero_optimization={"sub_group_size": 5}) != mine
    assert of(zero_optimization={"zero_quantized_gradients": True}) != mine


def test_only_complete_checkpoints_of_this_run_count(work: Path) -> None:
    plan = Plan.of(pipeline(work))
    assert plan.own_checkpoints() == []
    first, second = checkpoint(plan, 1), checkpoint(plan, 2)
    assert plan.own_checkpoints() == [first, second]
    assert plan.is_finished()
    (second / "manifest.json").unlink()
    assert plan.own_checkpoints() == [first]
    assert not plan.is_finished()


def test_damaged_manifest_is_passed_over(work: Path) -> None:
    plan = Plan.of(pipeline(work))
    first, second = checkpoint(plan, 1), checkpoint(plan, 2)
    (second / "manifest.json").write_text("{")
    assert plan.own_checkpoints() == [first]


def test_checkpoints_of_other_settings_are_not_continued(work: Path) -> None:
    checkpoint(Plan.of(pipeline(work, scheduler={"type": "linear"})), 1)
    with pytest.raises(
        ConfigError, match=r"other settings \(train.scheduler.type: linear there, cosine here\); .*--no-r"
    ):
        Plan.of(pipeline(work)).own_checkpoints()


def test_a_key_that_an_older_version_had_not_is_named(work: Path) -> None:
    plan = Plan.of(pipeline(work))
    folder = checkpoint(plan, 1)
    manifest = Manifest.read(folder)
    assert manifest is not None
    settings = {key: value for key, value in plan.settings["train"].items() if key != "precision"}
    older = {**manifest.facts, "run": "of before", "settings": {**plan.settings, "train": settings}}
    Manifest(**{**vars(manifest), "facts": older}).write(folder)
    with pytest.raises(ConfigError, match=r"settings \(train.precision: not known there, auto here\)"):
        plan.own_checkpoints()


def test_planning_does_not_import_torch() -> None:
    code = "import sys, train.run; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
