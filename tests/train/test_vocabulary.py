"""New tokens get rows: the mean of those in use, the same however a model is read, and only where they are trained."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.errors import ConfigError, DataError
from pipelines.schema import Pipeline
from tests.train.runs import LLAMA, VOCABULARY, pipeline
from train.attention import PackedAttention
from train.model import build_model, hollow_model

PLAIN = {"vocab_size": VOCABULARY, "max_token_id": VOCABULARY - 1}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture(autouse=True)
def attention() -> None:
    PackedAttention("sdpa").register()


def facts(own: int, *added: str) -> dict[str, Any]:
    """Of a prep output whose tokenizer had `own` tokens before some were added."""
    ids = {text: own + index for index, text in enumerate(added)}
    return {"vocab_size": own + len(ids), "max_token_id": own, "own_vocab_size": own, "added_tokens": ids}


def written(folder: Path, *, tied: bool) -> dict[str, Any]:
    """A model on disk in bfloat16, as [model] names it."""
    model = build_model(pipeline(folder, model={"scratch": {**LLAMA, "tie_word_embeddings": tied}}), PLAIN)
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    return {"name_or_path": str(folder / "model")}


def with_tokenizer(folder: Path, model: dict[str, Any], **tokenizer: Any) -> Pipeline:
    found = pipeline(folder, model=model)
    return found.model_copy(update={"tokenizer": found.tokenizer.model_copy(update=tokenizer)})


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_are_the_mean_of_those_in_use_and_the_others_stay(tied: bool, tmp_path: Path) -> None:
    model = written(tmp_path, tied=tied)
    before = build_model(pipeline(tmp_path, model=model), PLAIN)
    # 45 tokens of its own: two new ones take spare rows, the third is the last row, and the next multiple of 32 is 64.
    own = with_tokenizer(tmp_path, model, pad_vocab_multiple=32)
    grown = build_model(own, facts(45, "<a>", "<b>", "<c>", "<d>"))
    assert grown.config.vocab_size == grown.vocab_size == 64
    assert grown.lm_head.out_features == grown.get_input_embeddings().num_embeddings == 64
    assert (grown.lm_head.weight is grown.get_input_embeddings().weight) == tied
    for name in (EMBEDDING, HEAD):
        old, new = (one.get_parameter(name).detach() for one in (before, grown))
        mean = old[:45].double().mean(0).float()
        assert torch.equal(new[:45], old[:45])
        assert torch.allclose(new[45:], mean.expand(64 - 45, -1), rtol=0, atol=1e-8)
        assert (new[45:] == new[45]).all()


def test_rows_are_read_in_any_stretch(tmp_path: Path) -> None:
    model = written(tmp_path, tied=False)
    own = with_tokenizer(tmp_path, model, pad_vocab_multiple=8)
    whole = build_model(own, facts(46, "<a>", "<b>", "<c>")).get_parameter(EMBEDDING).detach().reshape(-1)
    _, initial = hollow_model(own, facts(46, "<a>", "<b>", "<c>"))
    size = whole.numel()
    assert size == 56 * 32
    for start, stop in (
        (0, 5),
        (1400, 1540),
        (46 * 32 - 1, 46 * 32 + 1),
        (47 * 32, 50 * 32),
        (1600, size),
        (size, size),
    ):
        assert torch.equal(initial.read(EMBEDDING, start, stop).float(), whole[start:stop])
    assert initial.read("model.norm.weight", 32, 32).numel() == 0  # a rank's share of what is smaller than the ranks


def test_spare_rows_that_no_token_has_stay(tmp_path: Path) -> None:
    model = written(tmp_path, tied=False)
    before = build_model(pipeline(tmp_path, model=model), PLAIN).get_parameter(EMBEDDING)
    after = build_model(pipeline(tmp_path, model=model), facts(40, "<a>")).get_parameter(EMBEDDING)
    assert torch.equal(after[41:], before[41:])
    assert not torch.equal(after[40], before[40])


def test_without_new_tokens_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = written(tmp_path, tied=True)
    assert build_model(with_tokenizer(tmp_path, model, pad_vocab_multiple=16), PLAIN).config.vocab_size == VOCABULARY


def test_a_model_from_scratch_has_the_padded_rows_from_the_start(tmp_path: Path) -> None:
    sizes = {key: value for key, value in LLAMA.items() if key != "vocab_size"}
    model = build_model(with_tokenizer(tmp_path, {"scratch": sizes}, pad_vocab_multiple=32), facts(45, "<a>", "<b>"))
    assert model.config.vocab_size == 64
    assert not torch.equal(model.get_parameter(EMBEDDING)[45], model.get_parameter(EMBEDDING)[46])


def test_an_adapter_trains_the_embedding_whole_or_is_refused(tmp_path: Path) -> None:
    model = written(tmp_path, tied=False)
    own = facts(VOCABULARY, "<a>")
    with pytest.raises(
        ConfigError, match=r'modules_to_save = .*lm_head, whose new rows .*set it to ."embed_tokens", "lm_'
    ):
        build_model(pipeline(tmp_path, model={**model, "lora": {"modules_to_save": ["embed_tokens"]}}), own)
    lora = {"modules_to_save": ["embed_tokens", "lm_head"], "r": 2}
    adapted = build_model(pipeline(tmp_path, model={**model, "lora": lora}), own)
    trained = {name: one for name, one in adapted.named_parameters() if one.requires_grad}
    assert trained["model.embed_tokens.modules_to_save.default.weight"].shape == (49, 32)
    assert trained["lm_head.modules_to_save.default.weight"].shape == (49, 32)
    whole = build_model(pipeline(tmp_path, model=model), own)
    for name in ("model.embed_tokens", "lm_head"):
        mine = trained[f"{name}.modules_to_save.default.weight"]
        assert torch.equal(mine, whole.get_parameter(f"{name}.weight"))


def test_what_cannot_grow_is_refused(tmp_path: Path) -> None:
    model = written(tmp_path, tied=True)
    with pytest.raises(DataError, match="has 60 tokens of its own, but the model embeds 48"):
        build_model(pipeline(tmp_path, model=model), facts(60, "<a>"))
    own = with_tokenizer(tmp_path, {"scratch": LLAMA}, pad_vocab_multiple=32)
    with pytest.raises(ConfigError, match="vocab_size = 48, but the tokenizer table asks for 64 rows"):
        build_model(own, PLAIN)
