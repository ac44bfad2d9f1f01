"""A model is what Transformers loads from the same directory, bit for bit, however it is shared out among ranks."""

import gc
import json
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pipelines.errors import ConfigError, DataError, PacktrainError
from tests.train.ranks import run_on_ranks
from tests.train.runs import LLAMA, VOCABULARY, pipeline
from train.attention import PackedAttention
from train.engine import Engine
from train.fragments import pieces, set_masters
from train.launch import process_group
from train.launchers import Ranks, launch_of
from train.model import build_model, hollow_model
from train.sequence_parallel import SequenceParallelAttention, init_sequence_parallel
from train.stored_tensors import StoredTensors

PREP = {"vocab_size": VOCABULARY, "max_token_id": VOCABULARY - 1}
TOKENS = torch.tensor([[5, 40, 17, 17, 3, 29, 11, 2, 33]])
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
SMALL = {key: value for key, value in LLAMA.items() if key not in ("model_type", "tie_word_embeddings")}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, "rope_parameters": LLAMA3_ROPE},
    "gemma": {**SMALL, "head_dim": 8},  # scales its embeddings, and ties them
    "mistral": {**SMALL, "sliding_window": 5},
    "qwen2": SMALL,
    "phi": {**SMALL, "partial_rotary_factor": 0.5},
    "gpt_neox": {**SMALL, "rotary_pct": 0.5},
    "deepseek_v3": {  # experts that are stored one by one, and a buffer that is stored
        **SMALL,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
    "gpt2": {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}


def write_model(folder: Path, kind: str, keys: dict[str, Any], **how: Any) -> Path:
    """A directory as Transformers writes it, in several files, with numbers unlike any initial ones."""
    torch.manual_seed(11)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **keys), dtype=torch.bfloat16)
    with torch.no_grad():
        for tensor in (*model.parameters(), *(model.get_buffer(name) for name in stored_buffers(model))):
            tensor.add_(torch.randn_like(tensor) * 0.1)
    model.save_pretrained(folder, **{"max_shard_size": "20KB", **how})
    return folder


def stored_buffers(model: nn.Module) -> list[str]:
    return sorted(model.state_dict().keys() & dict(model.named_buffers()).keys())


def plain(folder: Path) -> Any:
    """The model as Transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def assert_same(found: Any, expected: Any, *, bits: bool = True) -> None:
    """Logits, and without ZeRO every number of the model."""
    for name, buffer in expected.named_buffers():
        assert torch.equal(found.get_buffer(name), buffer), name
    if bits:
        expected_parameters = dict(expected.named_parameters())
        assert [name for name, _ in found.named_parameters()] == list(expected_parameters)
        for name, parameter in found.named_parameters():
            assert torch.equal(parameter, expected_parameters[name]), name
    found.set_attn_implementation("sdpa")  # one document alone
    found.eval()
    expected.eval()
    with torch.no_grad():
        assert torch.equal(found(input_ids=TOKENS).logits, expected(input_ids=TOKENS).logits)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_the_one_that_transformers_loads(kind: str, tmp_path: Path) -> None:
    PackedAttention("sdpa").register()
    folder = write_model(tmp_path / "model", kind, MODELS[kind])
    expected = plain(folder)
    found = build_model(pipeline(tmp_path, model={"name_or_path": str(folder)}), PREP)
    assert_same(found, expected)
    assert found.config.dtype == expected.config.dtype
    assert found.generation_config.to_dict() == expected.generation_config.to_dict()


@pytest.mark.parametrize("kind", ["llama", "gemma", "deepseek_v3", "gpt2"])
def test_random_weights_are_those_that_transformers_draws(kind: str, tmp_path: Path) -> None:
    PackedAttention("sdpa").register()
    settings = pipeline(tmp_path, model={"scratch": {"model_type": kind, **MODELS[kind]}})
    torch.manual_seed(settings.run.seed)
    expected = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **MODELS[kind]), attn_implementation="sdpa")
    assert_same(build_model(settings, PREP), expected)


@contextmanager
def engine(folder: Path, model: dict[str, Any], stage: int, **train: Any) -> Iterator[Engine]:
    settings = pipeline(folder, model=model, deepspeed={"zero_stage": stage}, **train)
    attention = SequenceParallelAttention(init_sequence_parallel(1), "sdpa", strict=False)
    attention.register()
    hollow, initial = hollow_model(settings, PREP)
    assert settings.train is not None
    made = Engine(hollow, settings.train, settings, attention, initial)
    set_masters(made, initial)
    yield made


def load_on_a_rank(folder: Path) -> None:
    ranks = launch_of(os.environ)
    assert isinstance(ranks, Ranks)
    with process_group(ranks):
        for kind in MODELS:
            expected = plain(folder / kind)
            for stage in (0, 2, 3) if kind == "deepseek_v3" else (3,):
                with engine(folder, {"name_or_path": str(folder / kind)}, stage) as made:
                    assert_same(made.model, expected, bits=stage < 3)
        for stage in (2, 3):  # masters keep what the half-precision copy loses
            with engine(folder, {"name_or_path": str(folder / "full")}, stage, precision="bf16") as made:
                expected = dict(plain(folder / "full").named_parameters())
                for piece in pieces(made):
                    whole = expected[piece.name].detach().view(-1)
                    assert torch.equal(piece.tensors["parameter"], whole[piece.start : piece.stop]), piece.name
        scratch = {"scratch": LLAMA}
        torch.manual_seed(7)
        drawn = AutoModelForCausalLM.from_config(
            AutoConfig.for_model("llama", **{key: value for key, value in LLAMA.items() if key != "model_type"}),
            attn_implementation="sdpa",
        )
        with engine(folder, scratch, 3) as made:
            assert_same(made.model, drawn, bits=False)
        check_frozen(folder / "full")
        check_bounds(folder / "full")


def check_frozen(folder: Path) -> None:
    """Below an adapter, ZeRO 3 shares out the weights as well, and they are those of the files."""
    expected = dict(plain(folder).named_parameters())
    rank = torch.distributed.get_rank()
    with engine(folder.parent, {"name_or_path": str(folder), "lora": {"r": 2}}, 3, precision="bf16") as made:
        frozen: dict[str, Any] = {name: one for name, one in made.model.named_parameters() if not one.requires_grad}
        assert len(frozen) == len(expected)
        for name, parameter in frozen.items():
            whole = expected[name.replace(".base_layer.", ".")].detach().bfloat16().view(-1)
            share = parameter.ds_tensor.numel()
            assert share == -(-whole.numel() // 2), name
            stretch = whole[rank * share : (rank + 1) * share]
            assert torch.equal(parameter.ds_tensor[: stretch.numel()], stretch), name


def check_bounds(folder: Path) -> None:
    """What this rank holds while ZeRO 3 shares out a model: its share, and one tensor."""
    stored = load_shapes(folder)
    share, largest = 4 * sum(-(-size // 2) for size in stored), 4 * max(stored)
    before, found, reads = live_bytes(), [], []
    read = StoredTensors.read

    def watched(self: StoredTensors, name: str, start: int, stop: int) -> Tensor:
        reads.append(stop - start)
        found.append(live_bytes() - before)
        return read(self, name, start, stop)

    StoredTensors.read = watched  # type: ignore[method-assign]
    try:
        with engine(folder.parent, {"name_or_path": str(folder)}, 3):
            pass
    finally:
        StoredTensors.read = read  # type: ignore[method-assign]
    assert sum(reads) * 4 <= share
    assert max(reads) * 4 <= -(-largest // 2)
    slack = 4 * 2000  # of buffers and shells
    assert max(found) <= share + largest + slack, (max(found), share, largest)


def load_shapes(folder: Path) -> list[int]:
    return [tensor.numel() for path in folder.glob("*.safetensors") for tensor in load_file(path).values()]


def live_bytes() -> int:
    gc.collect()
    storages = {
        storage.data_ptr(): storage.nbytes()
        for one in gc.get_objects()
        if isinstance(one, Tensor) and one.device.type == "cpu"
        for storage in (
            one.untyped_storage(),
            *(s.untyped_storage() for s in [getattr(one, "ds_tensor", None)] if s is not None),
        )
    }
    return sum(storages.values())


@pytest.mark.slow
def test_ranks_load_what_transformers_loads_and_hold_no_more_than_their_share(tmp_path: Path) -> None:
    for kind, keys in MODELS.items():
        write_model(tmp_path / kind, kind, keys)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SMALL), dtype=torch.float32)
    model.save_pretrained(tmp_path / "full")
    assert run_on_ranks(2, load_on_a_rank, tmp_path) == [0, 0]


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A whole model directory of several files, that a test may damage."""
    PackedAttention("sdpa").register()
    return write_model(tmp_path / "model", "llama", MODELS["llama"])


def settings_for(folder: Path, **model: Any) -> Any:
    return pipeline(folder.parent, model={"name_or_path": str(folder), **model})


def shard_of(folder: Path, name: str) -> Path:
    weight_map = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    return folder / str(weight_map[name])


def change(folder: Path, name: str, tensor: Tensor | None) -> None:
    """Put another tensor, or none, in the place of one."""
    path = shard_of(folder, name)
    tensors = {key: one for key, one in load_file(path).items() if key != name}
    save_file(tensors if tensor is None else {**tensors, name: tensor}, path)


NAME = "model.layers.1.mlp.up_proj.weight"


def lose_shard(folder: Path) -> None:
    shard_of(folder, NAME).unlink()


def lose_promised(folder: Path) -> None:
    change(folder, NAME, None)


def lose(folder: Path) -> None:
    change(folder, NAME, None)
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_bytes())
    del content["weight_map"][NAME]
    index.write_text(json.dumps(content))


def cut(folder: Path) -> None:
    path = shard_of(folder, NAME)
    path.write_bytes(path.read_bytes()[:-10])


def cut_header(folder: Path) -> None:
    path = shard_of(folder, NAME)
    path.write_bytes(path.read_bytes()[:20])


def reshape(folder: Path) -> None:
    change(folder, NAME, torch.zeros(7, 32, dtype=torch.bfloat16))


def pack(folder: Path) -> None:
    change(folder, NAME, torch.zeros(48, 32).to(torch.float8_e4m3fn))


def write_twice(folder: Path) -> None:
    other = next(path for path in folder.glob("model-*") if path != shard_of(folder, NAME))
    save_file({**load_file(other), NAME: torch.zeros(48, 32)}, other)


def declare_quantized(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "fp8"}}))


def lose_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


DAMAGED: list[tuple[Any, type[PacktrainError], str]] = [
    (lose_shard, DataError, r"model-\d+-of-\d+.safetensors: not there, though model's index names it"),
    (lose_promised, DataError, rf"model-\d+-of-\d+.safetensors: holds no {NAME}, though the index says so"),
    (lose, DataError, rf"{NAME} is in none of its weight files, and nothing is made up"),
    (cut, DataError, r"model-\d+-of-\d+.safetensors: cannot be read \(.* ends at byte \d+, the file at \d+\)"),
    (cut_header, DataError, r"model-\d+-of-\d+.safetensors: cannot be read \(no header where one has to be\)"),
    (reshape, DataError, rf"{NAME} has shape \[7, 32\] in its weight files, its config.json asks for \[48, 32\]"),
    (pack, DataError, rf"{NAME} is stored as F8_E4M3, which cannot be trained; use the unquantized model"),
    (write_twice, DataError, r"which model-\d+-of-\d+.safetensors holds as well"),
    (declare_quantized, ConfigError, r"name_or_path = .*: its weights are quantized \(fp8\), which cannot be trained"),
    (lose_weights, DataError, r"no model.safetensors, nor an index of several; download the model's weights"),
]


@pytest.mark.parametrize(("damage", "kind", "message"), DAMAGED, ids=[one[0].__name__ for one in DAMAGED])
def test_a_damaged_directory_is_refused(damage: Any, kind: type[PacktrainError], message: str, stored: Path) -> None:
    damage(stored)
    with pytest.raises(kind, match=message) as refusal:
        build_model(settings_for(stored), PREP)
    assert "\n" not in str(refusal.value)


def test_what_is_stored_beyond_the_model_is_said(stored: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = shard_of(stored, NAME)
    save_file({**load_file(path), "model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}, path)
    build_model(settings_for(stored), PREP)
    assert "model.layers.2.mlp.up_proj.weight is in its weight files, but not of a LlamaForCausalLM" in caplog.text


def test_one_matrix_that_is_stored_as_two_has_to_be_one(tmp_path: Path) -> None:
    PackedAttention("sdpa").register()
    folder = write_model(tmp_path / "model", "gemma", MODELS["gemma"], max_shard_size="1GB")
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, folder / "model.safetensors")
    model = build_model(settings_for(folder), PREP)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert_same(model, plain(folder))
    save_file({**tensors, "lm_head.weight": embedding + 1}, folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"says that lm_head.weight is model.embed_tokens.weight, but its files hold"):
        build_model(settings_for(folder), PREP)


class Malicious:
    """What a pickle can hold: a call that is made when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_bin_files_are_read_only_when_asked_for_and_never_run(stored: Path, tmp_path: Path) -> None:
    expected, marker = plain(stored), tmp_path / "ran"
    state = {name: tensor.to(torch.bfloat16) for name, tensor in expected.state_dict().items()}
    lose_weights(stored)
    torch.save(state, stored / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r'are .bin files only; set model.weights_format = "safetensors_or_bin"'):
        build_model(settings_for(stored), PREP)
    allowed = settings_for(stored, weights_format="safetensors_or_bin")
    assert_same(build_model(allowed, PREP), expected)
    torch.save({**state, NAME: Malicious(marker)}, stored / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model.bin: holds more than weights, which is never run"):
        build_model(allowed, PREP)
    (stored / "pytorch_model.bin").write_bytes(pickle.dumps({NAME: Malicious(marker)}))
    with pytest.raises(DataError, match=r"pytorch_model.bin: (holds more|cannot be read)"):
        build_model(allowed, PREP)
    assert not marker.exists()
    (stored / "pytorch_model.bin").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"pytorch_model.bin: cannot be read"):
        build_model(allowed, PREP)
