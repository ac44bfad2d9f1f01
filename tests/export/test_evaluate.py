"""Exact answers, counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from export.evaluate import BATCH, BATCH_TOKENS, Question, answers, batches, evaluate, read_questions
from export.hf import Model, write_hf
from pipelines.checkpoints import Checkpoint
from pipelines.errors import DataError
from tests.export.tiny import LLAMA, random_tensors, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model whose answers are noise, but always the same noise, and of many lengths."""
    base = tmp_path_factory.mktemp("evaluate")
    tensors = random_tensors(LLAMA)
    tensors["lm_head.weight"][2] += 0.05  # the stop token, so that some answers end early
    checkpoint = write_checkpoint(base / "step-00000001", LLAMA, tensors)
    out = base / "hf"
    out.mkdir()
    write_hf(Model.of(Checkpoint(checkpoint), "float32"), out, 10**9)
    return out


def slowly(folder: Path, messages: list[dict[str, Any]], max_new_tokens: int) -> str:
    """The answer with one prompt at a time and the whole text again for every token."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    start = len(ids)
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 2:
                break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


def test_batches_answer_as_one_prompt_at_a_time(folder: Path) -> None:
    prompts = [[{"role": "user", "content": text}] for text in ("a", "你好", "long " * 20, "b" * 7, "?", "x y z")]
    found = answers(folder, prompts, 12)
    assert found == [slowly(folder, prompt, 12) for prompt in prompts]
    assert len({len(answer) for answer in found}) > 1


def test_accuracy_is_counted_over_all_and_by_task(folder: Path) -> None:
    prompts = [[{"role": "user", "content": text}] for text in "abcd"]
    right = answers(folder, prompts, 6)
    questions = [
        Question(prompts[0], right[0], "copy"),
        Question(prompts[1], right[1] + "!", "copy"),
        Question(prompts[2], right[2], "add"),
        Question(prompts[3], right[3] + "!", None),
    ]
    result = evaluate(folder, questions, 6)
    assert (result["accuracy"], result["right"], result["of"]) == (0.5, 2, 4)
    assert result["by_task"] == {
        "add": {"accuracy": 1.0, "right": 1, "of": 1},
        "copy": {"accuracy": 0.5, "right": 1, "of": 2},
    }
    assert [(one["found"], one["right"]) for one in result["answers"]] == list(zip(right, [1, 0, 1, 0], strict=True))


@given(lengths=st.lists(st.integers(1, 3000), max_size=300), new=st.integers(1, 64))
def test_every_prompt_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int], new: int) -> None:
    found = list(batches(lengths, new))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= BATCH
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + new) <= BATCH_TOKENS


def test_the_last_message_is_what_is_expected(tmp_path: Path) -> None:
    turns = [("system", "s"), ("user", "u"), ("assistant", " answer\n")]
    messages = [{"role": role, "content": content} for role, content in turns]
    record = {"messages": messages, "task": "t"}
    path = tmp_path / "e.jsonl"
    path.write_text(json.dumps(record) + "\n\n" + json.dumps(record | {"task": None}) + "\n")
    first, second = read_questions(path)
    assert first == Question(messages[:2], "answer", "t")
    assert second.task is None


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"messages": []}',
        '{"messages": [{"role": "assistant", "content": "to nobody"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}',
        '{"prompt": "a"}',
    ],
)
def test_a_line_that_is_no_conversation_is_named(tmp_path: Path, line: str) -> None:
    good = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    (tmp_path / "e.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(DataError, match=r"e\.jsonl:2: not a conversation \("):
        read_questions(tmp_path / "e.jsonl")


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"e\.jsonl: no conversations"):
        read_questions(tmp_path / "e.jsonl")
