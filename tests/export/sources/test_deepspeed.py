"""DeepSpeed's checkpoints: every stage on any number of ranks gives the whole weights, and what is broken is named."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.sources import deepspeed, universal
from export.sources.foreign import find
from export.sources.found import Found
from pipelines.errors import CheckError, DataError
from pipelines.file_ranges import FileRanges
from tests.export.sources.zero import small_tensors, write_zero
from tests.export.tiny import Tensors


def read(found: Found) -> Tensors:
    ranges = FileRanges()
    return {name: one.read(ranges, 0, one.size).reshape(one.shape) for name, one in found.tensors.items()}


def opened(folder: Path) -> Found:
    found = deepspeed.find(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_float32_weights_of_all_ranks_are_the_tensors(tmp_path: Path, stage: int, ranks: int) -> None:
    tensors = small_tensors()
    groups = [["a.weight", "c.weight"], ["b.weight"]]
    inner = write_zero(tmp_path, tensors, stage=stage, ranks=ranks, groups=groups, prefix="bf16_")
    for folder in (tmp_path, inner):
        found = opened(folder)
        assert found.step == 7
        assert found.format.startswith(f"DeepSpeed ZeRO {stage}")
        values = read(found)
        assert values.keys() == tensors.keys()
        for name, tensor in tensors.items():
            np.testing.assert_array_equal(values[name], tensor)


def test_any_range_is_what_the_whole_has_there(tmp_path: Path) -> None:
    tensors = small_tensors()
    write_zero(tmp_path, tensors, stage=3, ranks=3)
    found, ranges, flat = opened(tmp_path), FileRanges(), tensors["a.weight"].reshape(-1)
    for start in range(flat.size):
        for stop in range(start, flat.size + 1, 5):
            part = found.tensors["a.weight"].read(ranges, start, stop)
            np.testing.assert_array_equal(part, flat[start:stop])


@pytest.mark.parametrize("stage", [2, 3])
def test_what_was_not_trained_and_what_is_tied_is_there_once(tmp_path: Path, stage: int) -> None:
    tensors = small_tensors()
    write_zero(tmp_path, tensors, stage=stage, ranks=2, frozen=["c.weight"], shared={"d.weight": "a.weight"})
    found = opened(tmp_path)
    assert found.aliases == {"d.weight": "a.weight"}
    np.testing.assert_array_equal(read(found)["c.weight"], tensors["c.weight"])


def rewrite(path: Path, change: Callable[[Any], object]) -> None:
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


OPTIMIZER, MODEL = "zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_missing_rank_is_named(tmp_path: Path, stage: int, rank: int) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=stage, ranks=3)
    path = inner / OPTIMIZER.replace("rank_1", f"rank_{rank}")
    path.unlink()
    with pytest.raises(CheckError, match=rf"{path.name}: missing, and holds a part of every weight"):
        opened(tmp_path)


def test_a_missing_model_file_is_named(tmp_path: Path) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=3, ranks=2)
    (inner / MODEL).unlink()
    with pytest.raises(CheckError, match=f"{MODEL}: missing"):
        opened(tmp_path)


def test_all_optimizer_files_missing_is_not_a_checkpoint_without(tmp_path: Path) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=2, ranks=2)
    for path in inner.glob("*_optim_states.pt"):
        path.unlink()
    with pytest.raises(CheckError, match=r"zero_pp_rank_0_mp_rank_00_optim_states.pt: missing"):
        opened(tmp_path)


def test_files_of_more_ranks_than_were_are_found(tmp_path: Path) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=3, ranks=2)
    for kind in ("optim", "model"):
        shutil.copy(
            inner / f"zero_pp_rank_1_mp_rank_00_{kind}_states.pt", inner / f"zero_pp_rank_2_mp_rank_00_{kind}_states.pt"
        )
    with pytest.raises(CheckError, match=r"was saved by 2 ranks, but files of 3 lie here"):
        opened(tmp_path)


@pytest.mark.parametrize("kind", ["optim", "model"])
def test_ranks_of_other_steps_are_found(tmp_path: Path, kind: str) -> None:
    inner = write_zero(tmp_path / "a", small_tensors(), stage=3, ranks=2)
    other = write_zero(tmp_path / "b", small_tensors(), stage=3, ranks=2, step=8)
    name = f"zero_pp_rank_1_mp_rank_00_{kind}_states.pt"
    shutil.copy(other / name, inner / name)
    with pytest.raises(CheckError, match=r"step 8.*rank 0's.* of (step )?7"):
        opened(tmp_path / "a")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = write_zero(tmp_path, small_tensors(), stage=3, ranks=2) / OPTIMIZER
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckError, match=f"{OPTIMIZER}: cut short"):
        opened(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
def test_shapes_that_the_ranks_do_not_fill_are_found(tmp_path: Path, stage: int) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=stage, ranks=2)
    for path in inner.glob("*model_states.pt"):
        rewrite(path, lambda state: state["param_shapes"][0].update({"c.weight": torch.Size([3, 20])}))
    with pytest.raises(CheckError, match=r"ask for|hold"):
        opened(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["param_shapes"].pop(),
        lambda state: state["param_shapes"].append({}),
        lambda state: state.update(param_shapes=[]),
    ],
)
def test_groups_that_the_shapes_leave_out_do_not_come_rounded_from_the_module(
    tmp_path: Path, change: Callable[[Any], object]
) -> None:
    tensors = small_tensors()
    inner = write_zero(tmp_path, tensors, stage=2, groups=[["a.weight", "c.weight"], ["b.weight"]])
    rewrite(inner / "mp_rank_00_model_states.pt", change)
    with pytest.raises(CheckError, match=r"holds 2 groups of weights, the shapes in global_step7 are of [013]; "):
        opened(tmp_path)


@pytest.mark.parametrize("shapes", [[3], [{"a.weight": ["x"]}], [{"a.weight": None}]])
def test_values_of_other_kinds_than_they_have_to_be_are_damage(tmp_path: Path, shapes: Any) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=2)
    rewrite(inner / "mp_rank_00_model_states.pt", lambda state: state.update(param_shapes=shapes))
    with pytest.raises(CheckError, match="what its files say of the weights does not fit together"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("zero_pp_rank_0_mp_rank_01_optim_states.pt", "tensor-parallel ranks"),
        ("layer_03-model_00-model_states.pt", "pipeline stages"),
        ("layer_03-model_states.pt", "pipeline stages"),
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "experts in files of their own"),
        ("expp_rank_0_mp_rank_00_optim_states.pt", "expert-parallel ranks"),
    ],
)
def test_other_cuts_are_refused_by_name(tmp_path: Path, name: str, finding: str) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=2)
    (inner / name).write_bytes(b"")
    with pytest.raises(DataError, match=f"{name}: the checkpoint .*{finding}, which is not read"):
        opened(tmp_path)


def test_groups_that_are_cut_over_other_ranks_are_refused(tmp_path: Path) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=2)
    for path in inner.glob("*_optim_states.pt"):
        rewrite(path, lambda state: state["optimizer_state_dict"].update(partition_count=[2, 1]))
    with pytest.raises(DataError, match="experts are cut over fewer ranks"):
        opened(tmp_path)


def test_latest_that_names_nothing_is_found(tmp_path: Path) -> None:
    write_zero(tmp_path, small_tensors(), stage=2)
    (tmp_path / "latest").write_text("global_step9")
    with pytest.raises(CheckError, match=r"global_step9: .*latest names it, and there are no"):
        opened(tmp_path)


def test_a_universal_checkpoint_beside_one_of_another_step_is_not_taken_for_the_latest(tmp_path: Path) -> None:
    inner = write_zero(tmp_path, small_tensors(), stage=1, step=8)
    universal_of(tmp_path / "global_step7_universal", small_tensors())
    state = torch.load(inner / "mp_rank_00_model_states.pt", weights_only=False)
    torch.save(state | {"global_steps": 7}, tmp_path / "global_step7_universal" / "mp_rank_00_model_states.pt")
    (tmp_path / "latest_universal").write_text("global_step7_universal")
    with pytest.raises(DataError, match=r"latest_universal names step 7, latest names step 8; name .*7_universal or "):
        find(tmp_path)
    rewrite(inner / "mp_rank_00_model_states.pt", lambda content: content.update(global_steps=7))
    assert find(tmp_path).format == "DeepSpeed universal"


@pytest.mark.parametrize("latest", ["global_step9", "", "..", "a/b", "x" * 5000])
@pytest.mark.parametrize("name", ["latest", "latest_universal"])
def test_files_that_name_no_checkpoint_are_found(tmp_path: Path, name: str, latest: str) -> None:
    (tmp_path / name).write_text(latest)
    with pytest.raises(CheckError, match=r"names it, and there|cannot be read"):
        find(tmp_path)


def universal_of(folder: Path, tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        (folder / "zero" / name).mkdir(parents=True)
        torch.save({"param": torch.from_numpy(tensor)}, folder / "zero" / name / "fp32.pt")


def test_a_universal_checkpoint_is_its_files(tmp_path: Path) -> None:
    tensors = small_tensors()
    for name, tensor in tensors.items():
        folder = tmp_path / "zero" / name
        folder.mkdir(parents=True)
        whole = torch.from_numpy(tensor)
        torch.save({"param": whole, "cat_dim": 0} if name == "a.weight" else whole.reshape(-1), folder / "fp32.pt")
        torch.save(whole.reshape(-1) * 0, folder / "exp_avg.pt")
    found = universal.find(tmp_path)
    assert found is not None
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read(found)[name].reshape(-1), tensor.reshape(-1))
    (tmp_path / "zero" / "b.weight" / "fp32.pt").unlink()
    with pytest.raises(CheckError, match=r"b\.weight/fp32\.pt: missing"):
        universal.find(tmp_path)
