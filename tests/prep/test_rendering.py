"""Templates, system texts and columns of single sources: chats beside plain text, and what is refused before work."""

import json
from pathlib import Path

import pytest

from pipelines import schema
from pipelines.config import load
from pipelines.errors import ConfigError
from pipelines.shards import ShardReader
from prep.rendering import check_rendering, renders_chats, template_of
from prep.run import run
from prep.tokenizer import load_tokenizer
from tests.prep.small import TOKENIZER

CHAT = {"messages": [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a!"}]}


def pipeline_file(folder: Path, *sources: str, template: str = "", tokenizer: Path = TOKENIZER) -> Path:
    """A pipeline of sources named a, b ..., each with a file of its own and further keys as given."""
    tables = ""
    for name, keys in zip("abcdef", sources, strict=False):
        tables += f'[[prep.source]]\nname = "{name}"\npath = "{name}.jsonl"\n{keys}\n'
    file = folder / "run.toml"
    file.write_text(
        f'schema_version = 1\n[run]\nname = "r"\n[model.scratch]\nmodel_type = "llama"\n[tokenizer]\n'
        f'name_or_path = "{tokenizer}"\n[template]\n{template}\n[prep.pack]\ncapacity = 64\nstrategy = "none"\n'
        f'[prep.order]\nmode = "scan"\nshuffle = "none"\ninterleave = "concat"\n{tables}'
    )
    return file


def test_plain_text_lies_beside_chats_with_templates_and_system_texts_of_their_own(tmp_path: Path) -> None:
    file = pipeline_file(
        tmp_path,
        'map = "pretrain"\ntemplate = "none"\ncolumns = { text = "body" }',
        "",
        'template = "mistral"\nsystem = ""',
        'system = "Other."\ncolumns = { messages = "dialog" }',
        template='system = "Brief."',
    )
    records = ({"body": "some text"}, CHAT, CHAT, {"dialog": CHAT["messages"]})
    for name, record in zip("abcd", records, strict=True):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    pipeline = load(file)
    run(pipeline, workers=1)
    decode = load_tokenizer(TOKENIZER).decode
    packs = [
        (decode(pack.tokens.tolist()), decode(pack.tokens[pack.loss].tolist()))
        for pack in ShardReader(pipeline.home / "prep")
    ]
    assert packs == [
        ("some text<|end|>", "ome text<|end|>"),
        ("<|system|>Brief.<|end|><|user|>q?<|end|><|assistant|>a!<|end|>", "a!<|end|>"),
        ("[INST] q? [/INST]a!<|end|>\n", "a!<|end|>"),
        ("<|system|>Other.<|end|><|user|>q?<|end|><|assistant|>a!<|end|>", "a!<|end|>"),
    ]
    exported = (pipeline.home / "prep" / "tokenizer" / "chat_template.jinja").read_text()
    assert "Brief." in exported
    assert "Other." not in exported


def test_a_source_takes_from_the_template_table_what_it_does_not_say_itself() -> None:
    table = schema.Template(system="S", special_text="error", loss=schema.Loss(turns="last"))
    assert template_of(table, None, None) is table
    assert template_of(table, "zephyr", None) == table.model_copy(update={"name": "zephyr"})
    assert template_of(table, None, "") == table.model_copy(update={"system": ""})
    plain = template_of(table, "none", None)
    assert (plain.name, plain.system, plain.special_text) == ("none", "", "error")
    custom = schema.Template(name="custom", file=Path("t.jinja"))
    assert template_of(custom, None, "S").file == Path("t.jinja")
    assert template_of(custom, "tokenizer", None).file is None


@pytest.mark.parametrize(
    ("source", "template", "finding"),
    [
        ('template = "zephir"', "", r'prep\.source\.0\.template = "zephir": no such template, did you mean \'zephyr\''),
        ('template = "llama3_chat"', "", r'prep\.source\.0\.template = "llama3_chat": ends answers with .*eot_id'),
        ("", 'name = "zephir"', r'template\.name = "zephir": no such template'),
        ('system = "S"', 'name = "none"', r'prep\.source\.0\.system = "S": has no place in plain text'),
        ('map = "python:no_such_module:f"', "", r'prep\.source\.0\.map = "python:no_such_module:f": No module named'),
        ('template = "tokenizer"', 'name = "mistral"\neos = "never"',
         r'prep\.source\.0\.template = "tokenizer": a chat template itself writes BOS and EOS, and .*template\.eos'),
    ],
)  # fmt: skip
def test_what_a_source_cannot_be_rendered_with_is_cited_before_work(
    source: str, template: str, finding: str, tmp_path: Path
) -> None:
    pipeline = load(pipeline_file(tmp_path, source, template=template))
    with pytest.raises(ConfigError, match=r"run\.toml:\d+:\d+: " + finding) as caught:
        check_rendering(pipeline, load_tokenizer(TOKENIZER))
    assert len(caught.value.problems) == 1


def test_every_source_is_checked_and_each_problem_told_once(tmp_path: Path) -> None:
    pipeline = load(pipeline_file(tmp_path, 'template = "x"', "", 'map = "python:x:f"', template='name = "y"'))
    with pytest.raises(ConfigError) as caught:
        check_rendering(pipeline, load_tokenizer(TOKENIZER))
    assert len(caught.value.problems) == 3


def test_a_tokenizer_without_a_chat_template_serves_plain_text(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((TOKENIZER / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    plain = load(pipeline_file(tmp_path, 'map = "pretrain"\ntemplate = "none"', tokenizer=folder))
    assert not renders_chats(plain)
    check_rendering(plain, load_tokenizer(folder))
    mixed = load(pipeline_file(tmp_path, 'map = "pretrain"\ntemplate = "none"', "", tokenizer=folder))
    assert renders_chats(mixed)
    with pytest.raises(ConfigError, match="has no chat template; name one of"):
        check_rendering(mixed, load_tokenizer(folder))
