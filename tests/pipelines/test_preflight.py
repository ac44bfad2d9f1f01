import json
from pathlib import Path

import pytest

from pipelines.config import load
from pipelines.preflight import preflight

TEXT = """\
schema_version = 1
[run]
name = "demo"
work_dir = "work"
[model]
name_or_path = "model"
[tokenizer]
name_or_path = "tok"
[[prep.source]]
name = "chat"
path = "data"
files = ["*.jsonl", "**/*.bin"]
[prep.order]
file = "order.txt"
[prep.pack]
capacity = 64
[train]
global_batch_size = 1
optimizer.lr = 1e-3
[export]
targets = ["hf", "turbomind"]
eval.file = "held-out.jsonl"
turbomind.tp = 4
"""
CONFIG = {
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where everything that TEXT names is as it should be."""
    for name in ("model/config.json", "tok/tokenizer.json", "data/deep/a.bin", "order.txt", "held-out.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def found(folder: Path, text: str = TEXT, *overrides: str) -> list[str]:
    (folder / "x.toml").write_text(text)
    return [line.replace(f"{folder}/", "") for line in preflight(load(folder / "x.toml", overrides))]


def test_nothing_is_found_where_all_is_there(folder: Path) -> None:
    assert found(folder) == []


@pytest.mark.parametrize(
    ("gone", "complaint"),
    [
        ("tok/tokenizer.json", '8:1: tokenizer.name_or_path = "tok": neither tokenizer.json nor tokenizer.model in it'),
        ("model/config.json", '6:1: model.name_or_path = "model": no config.json in it; name a Hugging Face model'),
        ("data/deep/a.bin", '12:1: prep.source.0.files = ["*.jsonl", "**/*.bin"]: no file in data matches'),
        ("order.txt", '14:1: prep.order.file = "order.txt": no such file; write it with `packtrain order write`'),
        ("held-out.jsonl", '22:6: export.eval.file = "held-out.jsonl": no such file'),
    ],
)
def test_a_missing_file_is_found_at_the_key_that_names_it(folder: Path, gone: str, complaint: str) -> None:
    (folder / gone).unlink()
    (line,) = found(folder)
    assert line.startswith(f"x.toml:{complaint}")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ('tokenizer.name_or_path="none"', '"none": no such directory; name one with a tokenizer'),
        (
            'model.name_or_path="org/name"',
            '"org/name": no such directory; if it is a hub\'s repository, set model.source = "huggingface"',
        ),
        ('prep.source.0.path="none"', '"none": no such file or directory'),
        ('template.file="none"', '"none": no such file'),
        ('run.work_dir="order.txt/work"', '"order.txt/work": order.txt is a file; name a directory'),
    ],
)
def test_a_missing_path_of_an_override_is_found_there(folder: Path, override: str, complaint: str) -> None:
    extra = ['template.name="custom"'] if "template" in override else []
    (line,) = found(folder, TEXT, override, *extra)
    assert line.startswith(f"--set {override}: {override.partition('=')[0]} = {complaint}")


def test_an_unwritable_work_dir_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    (line,) = found(folder)
    assert line.startswith('x.toml:4:1: run.work_dir = "work": ')
    assert line.endswith(" is not writable; name a directory that is")


def test_a_document_longer_than_the_model_has_positions_is_found(folder: Path) -> None:
    (line,) = found(folder, TEXT.replace("capacity = 64", "capacity = 100"))
    assert line == (
        "x.toml:16:1: prep.pack.capacity = 100: a document may have 100 tokens, but the model's "
        "max_position_embeddings is 64; set prep.max_length = 64, or raise model.max_position_embeddings"
    )
    assert found(folder, TEXT.replace("capacity = 64", "capacity = 100"), "model.max_position_embeddings=100") == []
    assert found(folder, TEXT.replace("capacity = 64", "capacity = 100"), "prep.max_length=64") == []


def test_a_tensor_parallel_size_that_does_not_divide_the_heads_is_found(folder: Path) -> None:
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG | {"num_attention_heads": 6}))
    assert found(folder) == [
        "x.toml:23:11: export.turbomind.tp = 4: does not divide 6 attention heads (2 key-value heads); use 1 or 2"
    ]
    assert found(folder, TEXT, 'export.targets=["hf"]') == []


@pytest.mark.parametrize(("content", "finding"), [("{", "cannot be read"), ("[]", "is no JSON object")])
def test_a_broken_config_of_the_model_is_found(folder: Path, content: str, finding: str) -> None:
    (folder / "model" / "config.json").write_text(content)
    (line,) = found(folder)
    assert line.startswith('x.toml:6:1: model.name_or_path = "model": its config.json ')
    assert finding in line


def test_a_scratch_model_needs_its_type(folder: Path) -> None:
    text = TEXT.replace('[model]\nname_or_path = "model"', "[model.scratch]\nhidden_size = 8")
    assert found(folder, text) == [
        'x.toml:5:8: model.scratch: no model_type; add one, such as model_type = "llama"',
    ]


def test_several_problems_come_in_the_order_of_the_stages(folder: Path) -> None:
    (folder / "order.txt").unlink()
    (folder / "held-out.jsonl").unlink()
    keys = [line.split(": ")[1].split(" ")[0] for line in found(folder, TEXT, 'tokenizer.name_or_path="none"')]
    assert keys == ["tokenizer.name_or_path", "prep.order.file", "export.eval.file"]
