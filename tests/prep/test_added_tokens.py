"""New special tokens get the last ids in every file of a tokenizer, and text that spells them stays text."""

import json
import pickle
from pathlib import Path

import pytest

from pipelines import schema
from pipelines.artifacts import canonical_json
from pipelines.errors import ConfigError
from prep.conversation import Conversation, Message
from prep.template import Template
from prep.tokenizer import load_tokenizer
from prep.tokenizer_files import write_tokenizer_files
from tests.prep.folders import byte_level, spm, texts

NEW = ("<|turn|>", "<|done|>")
JINJA = """{%- for message in messages -%}
<|turn|>{{ message['role'] }} {% generation %}{{ message['content'] }}<|done|>{% endgeneration %}
{%- endfor -%}
{%- if add_generation_prompt -%}<|turn|>assistant {% endif -%}"""


@pytest.mark.parametrize("kind", ["json", "every file of json", "sentencepiece"])
def test_new_tokens_are_the_last_ones_for_us_and_for_transformers(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = spm(tmp_path / "model") if kind == "sentencepiece" else byte_level(tmp_path / "model")
    own = load_tokenizer(folder)
    if kind == "every file of json":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        listed = {str(id_): {"content": text, "special": True} for text, id_ in own.special_tokens.items()}
        table = {**config, "added_tokens_decoder": listed, "extra_special_tokens": list(own.special_tokens)}
        (folder / "tokenizer_config.json").write_text(json.dumps(table))
        (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": config["eos_token"]}))
        (folder / "added_tokens.json").write_text(json.dumps(dict(own.special_tokens)))
    tokenizer = load_tokenizer(folder, NEW)
    assert tokenizer.own_size == own.vocab_size
    assert list(tokenizer.added_ids) == [own.vocab_size, own.vocab_size + 1]
    assert [tokenizer.special_tokens[text] for text in NEW] == list(tokenizer.added_ids)
    assert tokenizer.vocab_size == own.vocab_size + 2
    assert tokenizer.digest != own.digest
    assert pickle.loads(pickle.dumps(tokenizer)).digest == tokenizer.digest
    for text in [*texts(), "say <|done|> now"]:  # ordinary text, and what spells a new token, as before
        assert tokenizer.encode(text) == own.encode(text)
    assert tokenizer.split("a<|done|>")[-1] == (NEW[1], tokenizer.added_ids[1])

    (tmp_path / "chat.jinja").write_text(JINJA)
    settings = schema.Template(name="custom", file=tmp_path / "chat.jinja")
    write_tokenizer_files(tokenizer, settings, tmp_path / "out", chat=True)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.convert_tokens_to_ids(list(NEW)) == list(tokenizer.added_ids)
    assert theirs.decode([*tokenizer.added_ids], skip_special_tokens=True) == ""
    template = Template(settings, tokenizer)
    said = Conversation((Message("user", "say <|done|>"), Message("assistant", "<|done|> is said")))
    tokens, loss = template.sample(said)
    assert tokens.count(tokenizer.added_ids[1]) == 2  # the template's own, not the two that were typed
    assert template.stop_tokens[0] == tokenizer.added_ids[1]
    assert tokens[-1] == tokenizer.added_ids[1]
    assert loss[-1]
    reread = load_tokenizer(tmp_path / "out")
    assert reread.encode("say <|done|> now") == own.encode("say <|done|> now")
    assert [reread.special_tokens[text] for text in NEW] == list(tokenizer.added_ids)


def test_equal_inputs_give_equal_files(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "model")
    first, again = (load_tokenizer(folder, NEW).files for _ in range(2))
    assert first == again
    assert canonical_json(json.loads(first["tokenizer.json"])["added_tokens"][-1]) == canonical_json(
        {
            "id": load_tokenizer(folder).vocab_size + 1, "content": "<|done|>", "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": True,
        }
    )  # fmt: skip


def test_a_token_that_is_there_is_refused(tmp_path: Path) -> None:
    folder = byte_level(tmp_path / "model")
    known = next(iter(load_tokenizer(folder).special_tokens))
    with pytest.raises(ConfigError, match=r"tokenizer.add_special_tokens: .* has a token '.*' already, with id"):
        load_tokenizer(folder, [known])
    with pytest.raises(ConfigError, match="has a token 'a' already"):
        load_tokenizer(folder, ["a"])
