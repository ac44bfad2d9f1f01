"""What DeepSpeed and PyTorch save from two ranks, as their own tools read it: the same numbers, bit for bit."""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from export.run import run
from export.sources import deepspeed, universal
from export.sources.found import Found
from export.sources.torch_file import Record, TensorPlace, load
from pipelines.errors import CheckError, DataError
from tests.export.sources.test_deepspeed import read, rewrite
from tests.export.tiny import LLAMA, pipeline, shapes, write_tokenizer
from tests.train.ranks import run_on_ranks

pytestmark = pytest.mark.slow

CONFIG = LLAMA | {"tie_word_embeddings": True, "num_hidden_layers": 1}
CASES: dict[str, dict[str, Any]] = {
    "one": {"zero_optimization": {"stage": 1}},
    "one-bf16-alone": {"zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp32"}},
    "two": {"zero_optimization": {"stage": 2}},
    "two-dealt": {"zero_optimization": {"stage": 2, "round_robin_gradients": True}},
    "three": {
        "zero_optimization": {"stage": 3, "sub_group_size": 20000, "stage3_param_persistence_threshold": 100},
        "zero_force_ds_cpu_optimizer": False,
    },
}


def model_of(frozen: bool) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIG), dtype=torch.float32)
    if frozen:
        model.model.layers[0].mlp.up_proj.requires_grad_(False)
    return model


def save_all(folder: str) -> None:
    import deepspeed as library

    library.init_distributed("gloo", verbose=False)
    for case in CASES:
        save_with_deepspeed(library, folder, case)
    save_with_pytorch(folder)
    torch.distributed.barrier()


def save_with_deepspeed(library: Any, folder: str, case: str) -> None:
    model = model_of(frozen=case in ("two", "three"))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [one for one in trained if one.ndim > 1]},
        {"params": [one for one in trained if one.ndim < 2], "weight_decay": 0.0},
    ]
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_allow_untested_optimizer": True,
        **CASES[case],
    }
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    engine, *_ = library.initialize(model=model, optimizer=optimizer, config=config)
    ids = torch.arange(16).reshape(1, 16)
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    engine.save_checkpoint(f"{folder}/{case}")


def save_with_pytorch(folder: str) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    state = model_of(frozen=False).state_dict()
    cut = {
        name: distribute_tensor(tensor, mesh, [Shard(1 if ".down_proj." in name else 0)])
        if "o_proj" not in name
        else tensor
        for name, tensor in state.items()
    }
    optimizer = {"state": {f"{name}.exp_avg": tensor for name, tensor in cut.items()}}
    save({"model": cut, "optimizer": optimizer, "step": 5}, checkpoint_id=f"{folder}/fsdp")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    assert run_on_ranks(2, save_all, str(folder)) == [0, 0]
    return folder


def by_deepspeed(folder: Path) -> dict[str, torch.Tensor]:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return get_fp32_state_dict_from_zero_checkpoint(str(folder))  # type: ignore[no-any-return]


def opened(folder: Path) -> Found:
    found = deepspeed.find(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("case", ["one", "two", "two-dealt", "three"])
def test_numbers_are_those_of_zero_to_fp32(saved: Path, case: str) -> None:
    theirs, ours = by_deepspeed(saved / case), read(opened(saved / case))
    assert theirs.keys() - ours.keys() == {"lm_head.weight"}  # tied, and here once
    assert opened(saved / case).step == 1
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name].detach().float().numpy(), err_msg=name)


def test_what_zero_to_fp32_refuses_has_the_numbers_of_the_same_step(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"not a zero checkpoint"):
        by_deepspeed(saved / "one-bf16-alone")
    found, same = read(opened(saved / "one-bf16-alone")), read(opened(saved / "one"))
    for name, values in found.items():
        np.testing.assert_allclose(values, same[name], rtol=0, atol=1e-5, err_msg=name)


def test_places_that_the_file_itself_says_otherwise_are_found(saved: Path, tmp_path: Path) -> None:
    inner = Path(shutil.copytree(saved / "two", tmp_path / "two")) / "global_step1"

    def swap(state: Any) -> None:
        state["param_shapes"][0] = dict(reversed(state["param_shapes"][0].items()))

    rewrite(inner / "mp_rank_00_model_states.pt", swap)
    with pytest.raises(CheckError, match=r"says that .* begins at"):
        deepspeed.find(inner)


@pytest.mark.parametrize("case", ["two", "three"])
def test_a_universal_checkpoint_has_the_same_numbers(saved: Path, tmp_path: Path, case: str) -> None:
    out = as_universal(saved / case, tmp_path)
    found, same = universal.find(out), read(opened(saved / case))
    assert found is not None
    values = read(found)
    for name in same.keys() & values.keys():
        np.testing.assert_array_equal(values[name].reshape(-1), same[name].reshape(-1), err_msg=name)
    assert len(same.keys() - values.keys()) == (1 if case == "three" else 0)  # what was not trained, left behind


def test_a_universal_checkpoint_of_wrong_numbers_is_refused(saved: Path, tmp_path: Path) -> None:
    out = as_universal(saved / "two-dealt", tmp_path)
    right, name = read(opened(saved / "two-dealt")), "model.layers.0.self_attn.o_proj.weight"
    theirs = torch.load(out / "zero" / name / "fp32.pt", weights_only=False)["param"]
    assert not np.array_equal(theirs.detach().numpy(), right[name])  # else DeepSpeed has mended it, and it may be read
    with pytest.raises(DataError, match=r"round_robin_gradients, .* name the checkpoint that it was made of"):
        universal.find(out)


def as_universal(folder: Path, tmp_path: Path) -> Path:
    """The checkpoint as DeepSpeed's own conversion has it."""
    from argparse import Namespace

    from deepspeed.checkpoint import ds_to_universal

    out = tmp_path / "universal"
    arguments = Namespace(
        input_folder=str(folder / "global_step1"),
        output_folder=str(out),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=False,
        inject_missing_state=True,
    )
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        ds_to_universal.main(arguments)
    return out


def test_what_fsdp_saves_is_exported(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fsdp"
    shutil.copytree(saved / "fsdp", folder / "pytorch_model_fsdp_0")  # as the Trainer of Transformers has it
    (folder / "config.json").write_text(json.dumps(CONFIG))
    write_tokenizer(tmp_path / "tokenizer")
    run(pipeline(tmp_path, checkpoint="fsdp", hf={"dtype": "float32"}))
    exported = load_file(tmp_path / "work" / "tiny" / "export" / "hf" / "model.safetensors")
    state = model_of(frozen=False).state_dict()
    assert exported.keys() == shapes(CONFIG).keys()
    for name, values in exported.items():
        np.testing.assert_array_equal(values, state[name].numpy(), err_msg=name)


def test_the_bench_measures_on_what_deepspeed_saves(saved: Path, tmp_path: Path) -> None:
    from bench.zero3 import write_zero3

    wanted = shapes(CONFIG)
    inner = write_zero3(tmp_path, wanted)
    theirs = by_deepspeed(tmp_path)
    for name, values in read(opened(tmp_path)).items():
        np.testing.assert_array_equal(values, theirs[name].detach().numpy())
    for path in sorted((saved / "three" / "global_step1").iterdir()):
        assert form(load(inner / path.name)) == form(load(path)), path.name


def form(content: Any, depth: int = 0) -> Any:
    """What a file is made of, but for its sizes, the parameters' names, and what the run chose."""
    if isinstance(content, dict):
        chosen = ("ds_config", "param_groups", "loss_scaler", "state", "module", "shared_params")
        kept = {key: one for key, one in content.items() if key not in chosen and not str(key).startswith("frozen_")}
        return {key: form(one, depth + 1) for key, one in kept.items()} | dict.fromkeys(content.keys() - kept.keys())
    if isinstance(content, TensorPlace):
        return content.dtype
    return [type(content).__name__, *content.args] if isinstance(content, Record) else type(content).__name__
