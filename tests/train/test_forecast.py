"""`packtrain plan`: steps, batches, memory and time of a training, before it runs."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import pipelines.memory
from pipelines.artifacts import Manifest
from pipelines.cli import main
from pipelines.errors import ConfigError
from pipelines.gpus import gpu
from tests.train.runs import CAPACITY, LLAMA, VOCABULARY, pipeline, write_prep, write_toml
from train.forecast import MEMORY_ERROR, Assumed, forecast
from train.forecast_text import text
from train.plan import Plan

H100 = gpu("H100")


def finished(folder: Path, **facts: Any) -> Path:
    """A work directory whose prep is finished, with the facts that a plan reads."""
    prep = folder / "tiny" / "prep"
    write_prep(prep, packs=10)
    manifest = Manifest.read(prep)
    assert manifest is not None
    told = {"tokens": 380, "loss_tokens": 190, "samples": 38, **facts}
    Manifest(**{**vars(manifest), "facts": {**manifest.facts, **told}}).write(prep)
    return folder


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["plan", *map(str, arguments)])


def test_steps_and_epochs_are_those_of_training(tmp_path: Path) -> None:
    plan = Plan.of(pipeline(finished(tmp_path), max_epochs=3))
    found = forecast(plan.pipeline, Assumed(ranks=2))
    assert found["steps"] == {"total": plan.total_steps, "epochs": 2.8, "tokens": 1064, "loss_tokens": 532}
    assert found["data"] == {"from": "prep", "packs": 10, "tokens": 380, "loss_tokens": 190, "samples": 38}
    assert found["batch"] == {"packs": 4, "tokens": 4 * CAPACITY}
    assert found["ranks"]["micro_batches"] == 2


def test_before_prep_only_what_is_known_is_said(tmp_path: Path) -> None:
    found = forecast(pipeline(tmp_path), Assumed(ranks=1))
    assert found["steps"]["total"] is None
    assert found["data"]["from"] is None
    assert "unknown until prep has finished" in text(found)
    assert forecast(pipeline(tmp_path), Assumed(ranks=1, packs=10))["steps"]["total"] == 2
    assert forecast(pipeline(tmp_path, max_steps=7), Assumed(ranks=1))["steps"]["total"] == 7


def test_it_refuses_what_training_refuses_in_the_same_words(tmp_path: Path) -> None:
    odd = pipeline(finished(tmp_path), parallel={"sequence_parallel_size": 3})
    with pytest.raises(ConfigError) as trained:
        Plan.of(odd).check_ranks(8)
    with pytest.raises(ConfigError) as planned:
        forecast(odd, Assumed(ranks=8))
    assert str(planned.value) == str(trained.value)
    with pytest.raises(ConfigError, match="prep held nothing out"):
        forecast(pipeline(tmp_path, eval={"steps": 5}), Assumed(ranks=1))
    with pytest.raises(ConfigError, match="do not fill one optimizer step"):
        forecast(pipeline(tmp_path, global_batch_size=64), Assumed(ranks=1))
    four_bits = pipeline(tmp_path, model={"scratch": LLAMA, "quantization": {}})
    with pytest.raises(ConfigError, match="weights of 4 bits cannot be trained"):
        forecast(four_bits, Assumed(ranks=1))
    long = pipeline(tmp_path, model={"scratch": {**LLAMA, "max_position_embeddings": 8}})
    with pytest.raises(ConfigError, match="max_position_embeddings is 8"):
        forecast(long, Assumed(ranks=1))


def test_ranks_are_those_that_train_would_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert forecast(pipeline(tmp_path), Assumed())["ranks"]["total"] == 1
    assert forecast(pipeline(tmp_path, nproc_per_node=4), Assumed(nodes=3))["ranks"]["total"] == 12
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert forecast(pipeline(tmp_path), Assumed(nodes=2))["ranks"]["total"] == 4


def test_learning_rate_and_events_have_their_steps(tmp_path: Path) -> None:
    schedule = {"type": "wsd", "warmup_steps": 10, "decay_ratio": 0.5}
    asked = pipeline(tmp_path, max_steps=100, scheduler=schedule, checkpoint={"save_steps": 30})
    found = forecast(asked, Assumed(ranks=1))["events"]
    assert found["saves"] == 4
    assert [mark["step"] for mark in found["learning_rate"]] == [1, 11, 55, 100]
    assert found["learning_rate"][1]["lr"] == pytest.approx(0.01)


def test_time_follows_peak_and_share_and_costs_money(tmp_path: Path) -> None:
    asked = pipeline(finished(tmp_path))
    one = forecast(asked, Assumed(ranks=1, gpu=H100, mfu=0.2, price=2.0))["time"]
    two = forecast(asked, Assumed(ranks=1, gpu=H100, mfu=0.4))["time"]
    assert one["seconds"] == pytest.approx(2 * two["seconds"])
    assert one["gpu_hours"] == pytest.approx(one["seconds"] * 2 / 3600)
    assert one["cost"] == pytest.approx(2 * one["gpu_hours"])
    assert forecast(asked, Assumed(ranks=1))["time"] is None


def test_an_unknown_model_is_asked_of_the_meta_device(tmp_path: Path) -> None:
    keys = {
        "model_type": "bloom", "vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 6,
    }  # fmt: skip
    found = forecast(pipeline(tmp_path, model={"scratch": keys}), Assumed(ranks=1))
    assert found["model"]["source"] == "meta device"
    assert found["model"]["parameters"] == 59_040
    assert any("no closed form for bloom models" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "H100000"], "--gpu H100000: not in the table"),
        (["--ranks", "2", "--layouts"], "--layouts: of which GPU?"),
        (["--ranks", "2", "--nodes", "2"], "--nodes and --ranks exclude each other"),
        (["--set", "train.parallel.sequence_parallel_size=3", "--ranks", "4"], "does not divide the 4 ranks"),
    ],
)
def test_a_wrong_question_is_one_line(tmp_path: Path, arguments: Sequence[str], message: str) -> None:
    answer = run(write_toml(tmp_path), *arguments)
    assert answer.exit_code == 2
    assert message in answer.output
    assert len(answer.output.splitlines()) == 1 or answer.output.startswith("Usage:")


def test_a_file_is_needed() -> None:
    assert "Missing argument 'FILE'" in run().output


def test_no_data_and_no_torch_are_needed(tmp_path: Path) -> None:
    path = write_toml(tmp_path)
    code = (
        "import sys; sys.modules.update(torch=None, transformers=None)\n"
        "from click.testing import CliRunner; from pipelines.cli import main\n"
        f"answer = CliRunner().invoke(main, ['plan', {str(path)!r}, '--ranks', '64', '--gpu-memory-gb', '80', "
        "'--capacity', '64', '--layouts', '--json'])\n"
        "assert answer.exit_code == 0, (answer.output, answer.exception)\nprint(answer.output)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(answer.stdout)
    assert found["layout"]["prep.pack.capacity"] == 64
    assert all(one["fits"] for one in found["layouts"])


def test_the_memory_model_has_the_sizes_that_training_takes() -> None:
    from train import chunked_loss, engine, tiled_mlp

    assert pipelines.memory.LOGITS_AT_ONCE == chunked_loss.LOGITS_AT_ONCE
    assert pipelines.memory.ROWS_ON_A_CPU == chunked_loss.ROWS_ON_A_CPU
    assert pipelines.memory.BUCKET_ELEMENTS == engine.BUCKET_ELEMENTS
    assert pipelines.memory.FEWEST_TOKENS_OF_A_TILE == tiled_mlp.FEWEST_TOKENS


def test_the_error_that_is_said_is_the_one_that_was_measured() -> None:
    measured = json.loads((Path(__file__).parents[2] / "bench" / "results" / "plan.json").read_bytes())["figures"]
    errors = [100 * (one["ratio"] - 1) for one in measured if one["unit"] == "MB"]
    low, high = (int(part) for part in MEMORY_ERROR.split("CPU ")[1].split(" %")[0].split(" to "))
    assert low - 1 < min(errors)
    assert max(errors) <= high
    assert all(one["met"] for one in measured if one["target"])


def test_what_was_measured_is_estimated_as_it_was_then(tmp_path: Path) -> None:
    """Whoever changes a part of the estimate measures again, or the error that is said is of another estimate."""
    from bench.estimates import CASES, estimate

    measured = json.loads((Path(__file__).parents[2] / "bench" / "results" / "plan.json").read_bytes())["figures"]
    told = {one["what"]: one["value"] for one in measured if one["unit"] == "MB"}
    for name, value in told.items():
        assert estimate(CASES[name], tmp_path)["total"] / 2**20 == pytest.approx(value, rel=1e-6), name
