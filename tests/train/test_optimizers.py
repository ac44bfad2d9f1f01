"""Optimizers by name: right in parts, resumable, or refused."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError, ConfigError, MachineError
from pipelines.keys import schema_keys
from tests.train.conftest import SETTINGS, STEPS
from tests.train.ranks import run_on_ranks
from tests.train.reference import train_alone
from tests.train.runs import LLAMA, checkpoints, pipeline, rows, same, share
from tests.train.test_run import undo
from train.optimizers import make_optimizer
from train.run import run

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"options": {"amsgrad": True}},
    "adam": {},
    "adamax": {},
    "nadam": {},
    "radam": {},
    "sgd": {"options": {"momentum": 0.9, "nesterov": True}},
    "rmsprop": {"options": {"momentum": 0.5, "centered": True}},
    "adagrad": {},
    "adadelta": {},
    "asgd": {},
    "rprop": {"weight_decay": 0},
    "lion": {},
    "muon": {},
    "python:tests.train.test_optimizers:Signs": {"options": {"share": 0.5}},
}
"""With what each keeps besides its defaults."""


class Signs(torch.optim.Optimizer):
    """Steps by the sign of a running mean, and counts with a plain integer."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, share: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "share": share})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["count"] = state.get("count", 0) + 1
                    assert type(state["count"]) is int
                    state.setdefault("mean", torch.zeros_like(parameter)).lerp_(parameter.grad, group["share"])
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(state["mean"].sign(), alpha=group["lr"] / 10)


class Halves(torch.optim.Optimizer):
    """Keeps numbers of half precision."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["mean"] = parameter.grad.half()
                parameter.sub_(parameter.grad)


class Rows(torch.optim.Optimizer):
    """Keeps one number for each row, and steps by it."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                norms = self.state[parameter].setdefault("norms", torch.zeros_like(parameter[..., :1]))
                norms += parameter.grad.norm(dim=-1, keepdim=True)
                parameter.sub_(parameter.grad / norms.clamp(min=1e-6), alpha=group["lr"])


class Whole(torch.optim.Optimizer):
    """Divides a gradient by its norm."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(parameter.grad / parameter.grad.norm(), alpha=group["lr"])


def settings(name: str) -> dict[str, Any]:
    table = {"lr": Decimal("0.01"), "weight_decay": Decimal("0.1"), "type": name, **OPTIMIZERS[name]}
    return {**SETTINGS, "optimizer": table}


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.slow
def test_optimizer_steps_parts_as_the_whole_and_resumes_exactly(
    name: str, stage: int, tmp_path: Path, shards: Path
) -> None:
    alone = train_alone(pipeline(share(shards, tmp_path / "alone"), **settings(name)), STEPS)
    whole, halves = share(shards, tmp_path / "whole"), share(shards, tmp_path / "halves")
    how = {**settings(name), "deepspeed": {"zero_stage": stage}}
    run(pipeline(whole, **how))
    run(pipeline(halves, **how))
    undo(halves, 2)
    run(pipeline(halves, **how))
    assert same(halves, whole)
    found = rows(whole)
    if name not in ("rprop", "lion") and not name.startswith("python"):  # they go by signs, which rounding turns over
        np.testing.assert_allclose([row["loss"] for row in found], alone.losses, rtol=2e-4)
    np.testing.assert_allclose([row["loss"] for row in found][:2], alone.losses[:2], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sgd", "nadam", "adagrad"])
def test_optimizer_continues_on_other_ranks_under_another_zero_stage(name: str, tmp_path: Path, shards: Path) -> None:
    alone = train_alone(pipeline(share(shards, tmp_path / "alone"), **settings(name)), STEPS)
    folder = share(shards, tmp_path / "work")
    assert run_on_ranks(2, run, pipeline(folder, **settings(name), deepspeed={"zero_stage": 3})) == [0, 0]
    undo(folder, 2)
    assert run_on_ranks(3, run, pipeline(folder, **settings(name), deepspeed={"zero_stage": 1})) == [0, 0, 0]
    undo(folder, 4)
    run(pipeline(folder, **settings(name), deepspeed={"zero_stage": 0}))
    np.testing.assert_allclose([row["loss"] for row in rows(folder)], alone.losses, rtol=1e-4)


def test_checkpoint_has_the_optimizers_state_by_its_own_names(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    run(pipeline(folder, **settings("nadam"), deepspeed={"zero_stage": 2}))
    facts = Checkpoint(checkpoints(folder)[-1]).manifest.facts
    assert facts["kinds"] == ["exp_avg", "exp_avg_sq"]
    assert facts["optimizer"].keys() == {"step", "mu_product"}


WIDE = {"scratch": {**LLAMA, "hidden_size": 64, "intermediate_size": 96}}
"""With matrices of more than 4096 elements, below which bitsandbytes keeps 32 bits."""


@pytest.mark.parametrize(
    ("name", "stage"),
    [("adamw_8bit", 0), ("paged_adamw_8bit", 2), ("lion_8bit", 1), ("paged_adamw_32bit", 3), ("paged_lion_32bit", 2)],
)
@pytest.mark.slow
def test_optimizer_of_bitsandbytes_follows_pytorchs_and_resumes_exactly(
    name: str, stage: int, tmp_path: Path, shards: Path
) -> None:
    plain = "lion" if "lion" in name else "adamw"
    here, whole, halves = (share(shards, tmp_path / folder) for folder in ("here", "whole", "halves"))
    table = {"lr": Decimal("0.001"), "weight_decay": Decimal("0.1")}
    how = {**SETTINGS, "model": WIDE, "deepspeed": {"zero_stage": stage}}
    run(pipeline(here, **how | {"optimizer": {**table, "type": plain}}))
    how["optimizer"] = {**table, "type": name}
    run(pipeline(whole, **how))
    run(pipeline(halves, **how))
    undo(halves, 2)
    run(pipeline(halves, **how))
    assert same(halves, whole)
    blocks = [state_file(folder) for folder in (whole, halves)]
    assert blocks[0] == blocks[1]
    assert any(key.startswith("block/") for key in blocks[0]) == name.endswith("8bit")
    losses, expected = ([row["loss"] for row in rows(folder)] for folder in (whole, here))
    np.testing.assert_allclose(losses, expected, rtol=1e-4 if name.endswith("32bit") else 0.01)


def state_file(folder: Path) -> dict[str, bytes]:
    """The state of one rank in a run's last checkpoint, by key."""
    with safe_open(checkpoints(folder)[-1] / "state-00000-of-00001.safetensors", framework="numpy") as file:
        return {key: file.get_tensor(key).tobytes() for key in file.keys()}  # noqa: SIM118 (not a mapping)


def test_state_in_blocks_is_refused_where_the_parameters_are_cut_otherwise(tmp_path: Path, shards: Path) -> None:
    folder = share(shards, tmp_path / "work")
    how = {**settings("rprop"), "model": WIDE, "optimizer": {"type": "adamw_8bit", "lr": Decimal("0.001")}}
    run(pipeline(folder, deepspeed={"zero_stage": 2}, **how))
    undo(folder, 4)
    with pytest.raises(
        CheckError, match=r"fits only the layout that wrote it, 1 ranks with zero_stage = 2; .* train\.load_from"
    ):
        run(pipeline(folder, deepspeed={"zero_stage": 0}, **how))
    run(pipeline(folder, deepspeed={"zero_stage": 1}, **how))  # which cuts them as 2 does


@pytest.mark.parametrize("name", ["adafactor", "python:tests.train.test_optimizers:Rows"])
def test_state_of_whole_matrices_resumes_exactly(name: str, tmp_path: Path, shards: Path) -> None:
    whole, halves = share(shards, tmp_path / "whole"), share(shards, tmp_path / "halves")
    how = {**SETTINGS, "optimizer": {"type": name, "lr": Decimal("0.01")}}
    run(pipeline(whole, **how))
    run(pipeline(halves, **how))
    undo(halves, 2)
    run(pipeline(halves, **how))
    assert same(halves, whole)
    assert state_file(halves) == state_file(whole)


def test_our_adagrad_is_pytorchs() -> None:
    weights = [nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2)]
    theirs = torch.optim.Adagrad(weights[:1], lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.1)
    ours = make(weights[1:], "adagrad", options={"lr_decay": 0.1, "initial_accumulator_value": 0.1}, weight_decay=0.1)
    for _ in range(3):
        for weight, optimizer in zip(weights, (theirs, ours), strict=True):
            weight.grad = weight.detach().cos()
            optimizer.step()
    assert torch.equal(*weights)


def test_lion_steps_by_the_sign_of_gradient_and_mean() -> None:
    weight = nn.Parameter(torch.tensor([1.0]))
    lion = make([weight], "lion", weight_decay=0.5)
    for gradient, expected, mean in (
        (2.0, 1 * 0.95 - 0.1, 0.02),  # 0.1 x 2 is above 0
        (-0.1, 0.85 * 0.95 - 0.1, 0.0188),  # so is 0.9 x 0.02 - 0.1 x 0.1
        (-0.3, 0.7075 * 0.95 + 0.1, 0.015612),  # 0.9 x 0.0188 - 0.1 x 0.3 is not
    ):
        weight.grad = torch.tensor([gradient])
        lion.step()
        assert weight.item() == pytest.approx(expected)
        assert lion.state[weight]["exp_avg"].item() == pytest.approx(mean)


def make(parameters: Any, name: str, *, stage: int = 0, **table: Any) -> torch.optim.Optimizer:
    table = {key: Decimal(str(value)) if isinstance(value, float) else value for key, value in table.items()}
    found = pipeline(Path(), optimizer={"lr": Decimal("0.1"), "type": name, **table})
    assert found.train is not None
    group = {"params": parameters, "weight_decay": found.train.optimizer.weight_decay}
    return make_optimizer([group], found.train.optimizer, found, zero_stage=stage)


def weights() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 3))]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_optimizer_that_needs_whole_matrices_is_refused_where_zero_cuts_them(stage: int) -> None:
    name = "python:tests.train.test_optimizers:Whole"
    make(weights(), name)
    with pytest.raises(ConfigError, match=rf"does not go by element, and ZeRO {stage} steps flattened parts"):
        make(weights(), name, stage=stage)


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("python:tests.train.test_optimizers:Halves", {}, "keeps mean, a Tensor that no checkpoint can hold"),
        ("lion", {"eps": 0.1}, "train.optimizer.eps.*: lion has no such setting"),
        ("muon", {"options": {"momentum": 1}}, "momentum = 1: expected 0 <= momentum < 1"),
        ("muon", {"options": {"ns_steps": 0}}, "ns_steps = 0: expected 1 to 99"),
        ("muon", {"options": {"adjust_lr_fn": "match"}}, 'adjust_lr_fn = "match": expected "match_rms_adamw" or'),
        ("sgd", {"betas": [0.8, 0.9]}, "train.optimizer.betas.*: sgd has no such setting; remove it"),
        ("rprop", {"weight_decay": 0.1}, "train.optimizer.weight_decay.*: rprop has no such setting"),
        (
            "sgd",
            {"options": {"momentun": 1}},
            "options.momentun = 1: sgd has no such setting; it has momentum, dampening",
        ),
        ("adam", {"options": {"lr": 1}}, "this file sets it by train.optimizer.lr"),
        ("sgd", {"options": {"nesterov": True}}, "Nesterov momentum requires a momentum"),
        ("python:nowhere:Adam", {}, "cannot be imported"),
        ("python:tests.train.test_optimizers:Nothing", {}, "cannot be imported"),
        ("python:tests.train.test_optimizers:weights", {}, "weights.. takes 0 positional arguments|see train.optim"),
    ],
    ids=str,
)
def test_optimizer_that_cannot_be_is_an_error(name: str, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(weights(), name, **table)


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_lion_32bit"])
def test_optimizer_of_a_missing_package_names_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim", None)
    with pytest.raises(MachineError, match="needs bitsandbytes; pip install bitsandbytes"):
        make(weights(), name)


def test_documentation_lists_every_optimizer() -> None:
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    listed = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {str(name) for name in schema_keys()["train", "optimizer", "type"].values} <= listed
