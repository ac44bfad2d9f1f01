"""Each comparison sees the damage it is there for: a written export is changed behind the exporter's back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from export.hf import Model, write_hf
from export.verify import verify_hf
from pipelines.checkpoints import Checkpoint
from pipelines.errors import CheckError
from pipelines.probes import Probe, Probes
from pipelines.schema import ExportVerify
from tests.export.tiny import LLAMA, PROBES, random_tensors, write_checkpoint


def model(folder: Path, config: dict[str, Any] = LLAMA, **how: Any) -> Model:
    checkpoint = write_checkpoint(folder / "step-00000001", config, random_tensors(config), **how)
    return Model.of(Checkpoint(checkpoint), "float32")


def hf(folder: Path, config: dict[str, Any] = LLAMA, **how: Any) -> tuple[Model, Path]:
    exported, out = model(folder, config, **how), folder / "hf"
    out.mkdir()
    write_hf(exported, out, 10**9)
    return exported, out


def change_tensor(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_undamaged_export_passes_and_says_what_was_compared(tmp_path: Path) -> None:
    exported, folder = hf(tmp_path)
    assert verify_hf(exported, folder, ExportVerify(greedy_tokens=5)) == {
        "tensors_equal": 21,
        "prompts_equal": 2,
        "greedy": {"prompts": 2, "tokens": 5, "max_abs_diff": 0.0},
    }


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda t: t["model.norm.weight"].__setitem__(3, 2.0), r"model\.norm\.weight differs .* in 1 of 128 numbers"),
        (lambda t: t.pop("lm_head.weight"), "20 of 21 tensors"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), r"extra is F32\[3\]"),
        (
            lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(np.float16)}),
            r"norm\.weight is F16",
        ),
    ],
)
def test_weights_that_are_not_the_checkpoints_are_found(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], finding: str
) -> None:
    exported, folder = hf(tmp_path)
    change_tensor(folder, change)
    with pytest.raises(CheckError, match=finding):
        verify_hf(exported, folder, ExportVerify())


def test_a_config_that_computes_something_else_is_found(tmp_path: Path) -> None:
    exported, folder = hf(tmp_path)
    change_json(
        folder / "config.json", rope_theta=10000.0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
    )
    with pytest.raises(
        CheckError, match=r"its logits are up to \S+ from the checkpoint's, export\.verify\.max_abs_diff = 0"
    ):
        verify_hf(exported, folder, ExportVerify())


def test_another_continuation_is_found_even_where_the_logits_may_differ(tmp_path: Path) -> None:
    exported, folder = hf(tmp_path)
    change_json(folder / "config.json", rms_norm_eps=10.0)
    with pytest.raises(CheckError, match="continues a probe prompt otherwise"):
        verify_hf(exported, folder, ExportVerify(max_abs_diff=1e9))


def test_a_tensor_that_was_written_as_computed_is_not_computed_again(tmp_path: Path) -> None:
    exported = model(tmp_path)
    (tmp_path / "hf").mkdir()
    written = write_hf(exported, tmp_path / "hf", 100_000)
    with patch.object(exported.weights, "read", side_effect=AssertionError):
        assert verify_hf(exported, tmp_path / "hf", ExportVerify(), written)["tensors_equal"] == 21
    path = sorted((tmp_path / "hf").glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckError, match=rf"{path.name}: .* differs from the checkpoint in 1 of"):
        verify_hf(exported, tmp_path / "hf", ExportVerify(), written)


def test_a_missing_tensor_is_found_by_transformers_as_well(tmp_path: Path) -> None:
    exported, folder = hf(tmp_path, LLAMA | {"tie_word_embeddings": True})
    change_json(folder / "config.json", tie_word_embeddings=False)
    with pytest.raises(CheckError, match=r"Transformers finds missing keys: lm_head\.weight"):
        verify_hf(exported, folder, ExportVerify())


def test_prompts_that_differ_from_prep_are_found_with_their_place(tmp_path: Path) -> None:
    ids = list(PROBES.probes[0].prompt_ids)
    ids[2] += 1
    exported, folder = hf(tmp_path, probes=Probes([2], [Probe(PROBES.probes[0].messages, ids)]))
    with pytest.raises(CheckError, match="other prompts than were trained on, first at token 2 of "):
        verify_hf(exported, folder, ExportVerify())


def test_a_prompt_that_is_only_longer_is_found_too(tmp_path: Path) -> None:
    probe = Probe(PROBES.probes[0].messages, [*PROBES.probes[0].prompt_ids, 5])
    exported, folder = hf(tmp_path, probes=Probes([2], [probe]))
    with pytest.raises(CheckError, match=f"first at token {len(probe.prompt_ids) - 1} of "):
        verify_hf(exported, folder, ExportVerify())


def test_a_model_without_probes_continues_plain_numbers(tmp_path: Path) -> None:
    exported, folder = hf(tmp_path, probes=Probes())
    found = verify_hf(exported, folder, ExportVerify(greedy_tokens=3))
    assert (found["prompts_equal"], found["greedy"]["prompts"]) == (0, 1)


def test_no_greedy_tokens_compares_none(tmp_path: Path) -> None:
    exported, folder = hf(tmp_path)
    assert "greedy" not in verify_hf(exported, folder, ExportVerify(greedy_tokens=0))
