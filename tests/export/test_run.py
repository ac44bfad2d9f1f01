"""The stage: what it writes, when it does nothing, and how it refuses."""

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import export.plan
from export.run import facts, run, summary
from pipelines.artifacts import MANIFEST, Manifest, exclusive
from pipelines.errors import CheckError, ConfigError, DataError, MachineError, PacktrainError
from pipelines.probes import Probes
from pipelines.provenance import verify
from tests.export.tiny import LLAMA, complete, pipeline, random_tensors, write_checkpoint, write_run

BOTH = ["hf", "turbomind"]


def digests(folder: Path) -> dict[str, str]:
    manifest = Manifest.read(folder)
    assert manifest is not None
    return {record.path: record.sha256 for record in manifest.files}


def test_plain_transformers_loads_the_trained_weights(tmp_path: Path) -> None:
    _, tensors = write_run(tmp_path, ranks=3)
    run(pipeline(tmp_path, hf={"dtype": "bfloat16", "max_shard_size": 100_000}))
    folder = tmp_path / "work" / "tiny" / "export" / "hf"
    assert len(list(folder.glob("*.safetensors"))) > 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    state = model.state_dict()
    assert set(state) == set(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(state[name], torch.from_numpy(tensor).to(torch.bfloat16))
    assert model.generation_config.eos_token_id == 2
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids == [3 + ord("a")]


def test_the_card_says_what_the_files_show_and_its_example_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    run(pipeline(tmp_path))
    card = (tmp_path / "work" / "tiny" / "export" / "hf" / "README.md").read_text()
    assert "# LlamaForCausalLM, 232,832 parameters" in card
    assert "3 optimizer steps over 24 packs" in card
    assert str(tmp_path) not in card
    example = card.split("```python\n")[1].split("```")[0]
    exec(example, {"folder": tmp_path / "work" / "tiny" / "export" / "hf"})
    assert capsys.readouterr().out.startswith("<|im_start|>user\nHello<|im_end|>")


def test_tied_embeddings_are_stored_once_and_loaded_twice(tmp_path: Path) -> None:
    write_run(tmp_path, LLAMA | {"tie_word_embeddings": True})
    run(pipeline(tmp_path))
    folder = tmp_path / "work" / "tiny" / "export" / "hf"
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_same_checkpoint_gives_the_same_bytes_anywhere(tmp_path: Path) -> None:
    found = []
    for name, ranks in (("a", 1), ("b", 1)):
        (tmp_path / name).mkdir()
        write_run(tmp_path / name, ranks=ranks)
        run(pipeline(tmp_path / name, targets=BOTH))
        home = tmp_path / name / "work" / "tiny" / "export"
        found.append({**digests(home), MANIFEST: (home / MANIFEST).read_text()})
    assert found[0] == found[1]


def test_every_file_is_listed_and_leads_back_to_the_checkpoint(tmp_path: Path) -> None:
    checkpoint, _ = write_run(tmp_path)
    run(pipeline(tmp_path, targets=BOTH))
    home = tmp_path / "work" / "tiny" / "export"
    there = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert set(digests(home)) == there - {MANIFEST, ".lock"}
    assert [one.kind for one in verify(home)] == ["checkpoint", "export"]
    parent = Manifest.read(checkpoint)
    assert parent is not None
    for folder in (home, home / "hf", home / "turbomind"):
        manifest = Manifest.read(folder)
        assert manifest is not None
        assert manifest.parents == {"checkpoint": parent.identity}


def test_a_second_run_does_nothing_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_run(tmp_path)
    run(pipeline(tmp_path))
    path = tmp_path / "work" / "tiny" / "export" / "hf" / "model.safetensors"
    written = path.stat().st_mtime_ns
    with caplog.at_level(logging.INFO):
        caplog.clear()
        run(pipeline(tmp_path))
    assert path.stat().st_mtime_ns == written
    assert "nothing to do" in caplog.text


def test_only_what_is_missing_or_changed_is_written_again(tmp_path: Path) -> None:
    write_run(tmp_path)
    run(pipeline(tmp_path, targets=BOTH))
    home = tmp_path / "work" / "tiny" / "export"
    before = (home / "hf" / MANIFEST).stat().st_mtime_ns
    (home / "turbomind" / "config.json").write_text("{}")
    run(pipeline(tmp_path, targets=BOTH))
    assert json.loads((home / "turbomind" / "config.json").read_text())["model_type"] == "llama"
    assert (home / "hf" / MANIFEST).stat().st_mtime_ns == before
    weights = home / "hf" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # which its size does not tell
    (home / MANIFEST).unlink()
    run(pipeline(tmp_path, targets=BOTH))
    assert weights.read_bytes() == content
    run(pipeline(tmp_path, targets=BOTH, hf={"dtype": "float16"}))
    assert (home / "hf" / MANIFEST).stat().st_mtime_ns != before


def test_another_library_version_is_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path)
    run(pipeline(tmp_path))
    assert export.plan.Plan.of(pipeline(tmp_path)).is_done()
    monkeypatch.setattr(export.plan, "version", lambda name: "99" if name == "transformers" else "1")
    assert not export.plan.Plan.of(pipeline(tmp_path)).is_done()


def test_the_newest_checkpoint_is_taken_unless_a_step_is_named(tmp_path: Path) -> None:
    for step, seed in ((3, 1), (12, 2)):
        checkpoint, tensors = write_run(tmp_path, step=step, seed=seed)
        complete(checkpoint, tensors, step)
    home = tmp_path / "work" / "tiny" / "export"
    for wanted, seed in (("latest", 2), (3, 1), (12, 2)):
        run(pipeline(tmp_path, checkpoint=wanted))
        stored = load_file(home / "hf" / "model.safetensors")["model.norm.weight"]
        np.testing.assert_array_equal(stored, random_tensors(LLAMA, seed)["model.norm.weight"])


def test_the_models_number_format_holds_where_the_export_names_none(tmp_path: Path) -> None:
    write_run(tmp_path, LLAMA | {"dtype": "float16"})
    run(pipeline(tmp_path))
    folder = tmp_path / "work" / "tiny" / "export" / "hf"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"


def evaluation(folder: Path, *lines: Any) -> Path:
    path = folder / "heldout.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def question(content: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **more}


def test_accuracy_is_measured_recorded_and_demanded(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = evaluation(tmp_path, question("a", "impossible", task="hard"), question("b", "impossible"))
    settings: dict[str, Any] = {"file": str(path), "max_new_tokens": 4}
    run(pipeline(tmp_path, eval=settings))
    home = tmp_path / "work" / "tiny" / "export"
    result = json.loads((home / "eval.json").read_text())
    assert (result["right"], result["of"], result["by_task"]["hard"]["of"]) == (0, 2, 1)
    assert [one["expected"] for one in result["answers"]] == ["impossible", "impossible"]
    demanding = pipeline(tmp_path, eval={**settings, "min_accuracy": 0.5})
    for _ in range(2):  # nothing is remembered that would let it pass
        with pytest.raises(
            CheckError, match=r"eval\.json: 0 of 2 answers are exact, 0\.0%; .* asks for 50\.0%"
        ) as caught:
            run(demanding)
        assert caught.value.exit_code == 4
    run(pipeline(tmp_path))
    assert not (home / "eval.json").exists()


def test_a_changed_evaluation_file_is_asked_again(tmp_path: Path) -> None:
    write_run(tmp_path)
    settings = {"file": str(evaluation(tmp_path, question("a", "x"))), "max_new_tokens": 2}
    run(pipeline(tmp_path, eval=settings))
    evaluation(tmp_path, question("a", "x"), question("b", "y"))
    run(pipeline(tmp_path, eval=settings))
    assert facts(pipeline(tmp_path, eval=settings))["accuracy"]["of"] == 2


def refusal(folder: Path, **settings: Any) -> PacktrainError:
    """The error that an export ends with; it is one line and nothing that looks finished is left."""
    with pytest.raises(PacktrainError) as caught:
        run(pipeline(folder, **settings))
    assert "\n" not in str(caught.value)
    home = folder / "work" / "tiny" / "export"
    assert not (home / MANIFEST).exists()
    assert not (home / "hf" / MANIFEST).exists()
    assert not list(home.glob(".*.tmp")) if home.exists() else True
    return caught.value


def test_without_a_checkpoint_the_command_to_run_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert isinstance(error, DataError)
    assert "no finished checkpoint; run `packtrain train`" in str(error)


def test_a_half_written_checkpoint_is_not_seen(tmp_path: Path) -> None:
    checkpoint, _ = write_run(tmp_path)
    (checkpoint / MANIFEST).unlink()
    assert "no finished checkpoint" in str(refusal(tmp_path))


def test_a_step_that_is_not_there_is_answered_with_those_that_are(tmp_path: Path) -> None:
    write_run(tmp_path)
    error = refusal(tmp_path, checkpoint=4)
    assert "export.checkpoint = 4: no such step; the finished ones are 3" in str(error)


def test_one_changed_bit_in_the_checkpoint_is_found(tmp_path: Path) -> None:
    checkpoint, _ = write_run(tmp_path, ranks=2)
    path = checkpoint / "state-00001-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = refusal(tmp_path)
    assert isinstance(error, CheckError)
    assert "state-00001-of-00002.safetensors: SHA-256 differs" in str(error)


def test_a_checkpoint_that_changes_while_it_is_exported_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = write_run(tmp_path)
    path = next(folder.glob("*.safetensors"))
    content = path.read_bytes()

    def touched(*_: Any) -> dict[str, Any]:
        with path.open("r+b") as file:  # where it lies
            file.write(content)
        return {}

    def changed(*_: Any) -> dict[str, Any]:
        with path.open("r+b") as file:
            file.seek(int.from_bytes(content[:8], "little") + 16)
            file.write(bytes([content[file.tell()] ^ 1]))
        return {}

    monkeypatch.setattr("export.run.check_target", touched)
    run(pipeline(tmp_path))
    shutil.rmtree(tmp_path / "work" / "tiny" / "export")
    monkeypatch.setattr("export.run.check_target", changed)
    with pytest.raises(CheckError, match=rf"{path.name}: SHA-256 differs"):
        run(pipeline(tmp_path))
    assert not (tmp_path / "work" / "tiny" / "export" / "hf").exists()


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_an_incomplete_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    checkpoint, _ = write_run(tmp_path, ranks=2)
    path = checkpoint / "state-00000-of-00002.safetensors"
    path.unlink() if damage == "missing" else path.write_bytes(path.read_bytes()[:-100])
    error = refusal(tmp_path)
    assert isinstance(error, CheckError)
    assert "state-00000-of-00002.safetensors" in str(error)


def test_a_fragment_that_no_rank_saved_is_missed(tmp_path: Path) -> None:
    checkpoint, tensors = write_run(tmp_path, ranks=2)
    (checkpoint / "state-00001-of-00002.safetensors").unlink()
    complete(checkpoint, tensors)
    assert "the checkpoint is incomplete" in str(refusal(tmp_path))


def test_a_model_that_turbomind_cannot_serve_is_refused_before_work(tmp_path: Path) -> None:
    write_run(tmp_path, LLAMA | {"architectures": ["Qwen3ForCausalLM"]})
    error = refusal(tmp_path, targets=BOTH)
    assert isinstance(error, ConfigError)
    assert str(error).startswith('export.targets = ["hf", "turbomind"]: no TurboMind folder for Qwen3ForCausalLM')
    assert not (tmp_path / "work" / "tiny" / "export" / "hf").exists()


def test_tensor_parallelism_that_does_not_divide_the_heads_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    error = refusal(tmp_path, targets=["turbomind"], turbomind={"tp": 4})
    assert str(error) == "export.turbomind.tp = 4: does not divide 2 attention heads (1 key-value heads); use 1 or 2"


def test_files_of_others_in_the_destination_stop_it(tmp_path: Path) -> None:
    write_run(tmp_path)
    mine = tmp_path / "work" / "tiny" / "export" / "hf" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    error = refusal(tmp_path)
    assert isinstance(error, ConfigError)
    assert "thesis.tex: not written by an export" in str(error)
    assert mine.read_text() == "years of work"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "work" / "tiny" / "export").touch()
    with pytest.raises(MachineError, match="export: cannot be written") as caught:
        run(pipeline(tmp_path))
    assert caught.value.exit_code == 5


def test_too_large_a_number_for_float16_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint, tensors = write_run(tmp_path)
    shutil.rmtree(checkpoint)
    tensors["model.norm.weight"][4] = 1e6
    write_checkpoint(checkpoint, LLAMA, tensors)
    assert "model.norm.weight holds 1e+06, beyond the range of float16" in str(
        refusal(tmp_path, hf={"dtype": "float16"})
    )


def test_an_evaluation_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert "export.eval.file" in str(refusal(tmp_path, eval={"file": "nowhere.jsonl"}))


def test_an_evaluation_without_a_model_to_ask_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = evaluation(tmp_path, question("a", "x"))
    assert 'add "hf"' in str(refusal(tmp_path, targets=["turbomind"], eval={"file": str(path)}))


def test_a_damaged_evaluation_file_stops_it_before_work(tmp_path: Path) -> None:
    write_run(tmp_path)
    path = evaluation(tmp_path, question("a", "x"), {"messages": []})
    assert "heldout.jsonl:2: not a conversation" in str(refusal(tmp_path, eval={"file": str(path)}))
    assert not (tmp_path / "work" / "tiny" / "export" / "hf").exists()


def test_a_model_without_a_chat_template_cannot_be_asked(tmp_path: Path) -> None:
    checkpoint, tensors = write_run(tmp_path, probes=Probes())
    (checkpoint / "tokenizer" / "chat_template.jinja").unlink()
    complete(checkpoint, tensors)
    path = evaluation(tmp_path, question("a", "x"))
    assert "export.eval: the model has no chat template" in str(refusal(tmp_path, eval={"file": str(path)}))
    run(pipeline(tmp_path))
    assert "apply_chat_template" not in (tmp_path / "work" / "tiny" / "export" / "hf" / "README.md").read_text()


def test_a_refusal_leaves_an_earlier_export_as_it_is(tmp_path: Path) -> None:
    checkpoint, tensors = write_run(tmp_path)
    run(pipeline(tmp_path))
    home = tmp_path / "work" / "tiny" / "export"
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    (checkpoint / "state-00000-of-00001.safetensors").write_bytes(b"torn")
    complete(checkpoint, tensors, step=4)
    with pytest.raises(CheckError, match="cannot be read"):
        run(pipeline(tmp_path))
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


def test_a_run_of_another_process_is_waited_for(tmp_path: Path) -> None:
    write_run(tmp_path)
    with exclusive(tmp_path / "work" / "tiny" / "export"):
        assert refusal(tmp_path).exit_code == 6


def test_the_summary_says_where_things_are_and_how_to_talk(tmp_path: Path) -> None:
    write_run(tmp_path)
    prep = tmp_path / "work" / "tiny" / "prep"
    prep.mkdir()
    Manifest("prep", 1, "p", {}, [], {"packs": 1234, "capacity": 512, "fill": 0.98765}).write(prep)
    path = evaluation(tmp_path, question("a", "x", task="copy"))
    settings = pipeline(tmp_path, targets=BOTH, eval={"file": str(path), "max_new_tokens": 2})
    run(settings)
    home = tmp_path / "work" / "tiny" / "export"
    assert summary(settings).splitlines() == [
        "packing    1,234 packs of 512 tokens, 98.77% full",
        "training   loss 5.5000 before, 2.2500 after 3 steps",
        "accuracy   0.0%: 0 of 1 held-out prompts answered exactly by the exported model",
        "           copy    0.0% of 1",
        f"hf         {home / 'hf'}",
        f"turbomind  {home / 'turbomind'}",
        f"talk to it: packtrain chat {home / 'hf'}",
    ]
    assert facts(settings)["loss"] == {"first": 5.5, "last": 2.25}


def test_a_current_export_does_not_wait_for_torch() -> None:
    code = "import sys, export.run; sys.exit(any(name in sys.modules for name in ('torch', 'transformers')))"
    subprocess.run([sys.executable, "-c", code], check=True)
