"""The report of a run that the three stages made: it finds what they write."""

import json

import pytest

from export.run import run as export
from pipelines.config import load
from pipelines.report.page import page
from pipelines.report.run import Run
from pipelines.report.verdict import facts
from prep.run import run as prep
from tests.export.tiny import LLAMA, write_tokenizer
from tests.pipelines.report.test_page import Page
from train.run import run as train

pytestmark = pytest.mark.slow

TOML = """
schema_version = 1
[run]
name = "whole"
[tokenizer]
name_or_path = "tokenizer"
[template]
name = "qwen_chat"
[prep]
overlength = "drop"
max_length = 128
[prep.order]
mode = "write"
[prep.eval]
fraction = 0.2
[prep.pack]
capacity = 256
scope = "global"
[[prep.source]]
name = "chat"
path = "chat.jsonl"
weight = 3
[[prep.source]]
name = "books"
path = "books.jsonl"
weight = 1
[train]
global_batch_size = 2
max_steps = 3
precision = "fp32"
[train.optimizer]
lr = 1e-3
[train.eval]
steps = 2
prompts = ["say 1"]
max_new_tokens = 4
[export.hf]
dtype = "float32"
[export.verify]
greedy_tokens = 4
[export.eval]
file = "questions.jsonl"
max_new_tokens = 4
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("report")
    write_tokenizer(folder / "tokenizer")
    for name, count in (("chat", 60), ("books", 40), ("questions", 2)):
        answers = [f"{name} {number}" * (1 + (number == 7) * 20) for number in range(count)]
        talks = [[{"role": "user", "content": "say"}, {"role": "assistant", "content": answer}] for answer in answers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    keys = {key: value for key, value in LLAMA.items() if key not in ("architectures", "dtype", "transformers_version")}
    sizes = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items() if not isinstance(value, dict))
    (folder / "whole.toml").write_text(f"{TOML}[model.scratch]\n{sizes}")
    pipeline = load(folder / "whole.toml")
    prep(pipeline, workers=1)
    train(pipeline)
    export(pipeline)
    return Run.open(pipeline.home)


def test_it_finds_what_the_stages_write(run: Run) -> None:
    found = facts(run)
    assert all(stage["finished"] for stage in found["stages"].values()), found["stages"]
    unknown = {key for key, value in found["headline"].items() if value in (None, [])}
    assert unknown == {"mfu"}  # of a CPU, whose peak is not known
    assert found["warnings"] == ["2 records: overlong, dropped"]
    assert [one["kind"] for one in found["artefacts"]] == ["export", "hf", "checkpoint", "prep"]
    assert run.prep is not None
    assert int(run.lengths.all.sum()) == run.prep.facts["segments"]


def test_its_page_has_words_for_all_of_it(run: Run) -> None:
    text = Page(page(run).decode()).text
    for words in (
        "Loss by source", "Held-out loss by source", "Answers over time", "say 1", "75.00%", "overlong, dropped",
        "1 x CPU", "equal bit for bit", "rendered to the same tokens", "of 4 tokens the same, logits 0 apart at most",
        "of 2 answers are exactly as expected", "train.global_batch_size",
    ):  # fmt: skip
        assert words in text, words
    assert "not here" not in text
