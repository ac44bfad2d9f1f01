"""How often the exported model gives exactly the expected answer, measured with plain Transformers alone."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from export.language_model import load_folder
from pipelines.artifacts import Json
from pipelines.errors import CheckError, DataError
from pipelines.progress import progress_bar
from pipelines.prompt import Prompts
from pipelines.schema import ExportEval
from pipelines.template_process import TemplateFault

log = logging.getLogger(__name__)

BATCH = 128
"""Prompts answered at once, and"""
BATCH_TOKENS = 16_384
"""tokens in them at most, padding and answers included."""


@dataclass(frozen=True)
class Question:
    """A conversation up to the answer that is expected."""

    messages: Sequence[Mapping[str, Any]]
    expected: str
    task: str | None
    """Kind of question; accuracy is also given by kind."""


def read_questions(path: Path) -> list[Question]:
    """The evaluation file: one object a line, `messages` as OpenAI writes them and an optional `task`.

    Raises:
        DataError: naming the line.
    """
    questions: list[Question] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                *messages, answer = record["messages"]
                if answer["role"] != "assistant" or not isinstance(answer["content"], str) or not messages:
                    raise ValueError("the last message is not an assistant's answer to others")
                questions.append(Question(messages, answer["content"].strip(), record.get("task")))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not a conversation ({error}); "
                    'expected {"messages": [..., {"role": "assistant", "content": "the answer"}]}'
                ) from error
    if not questions:
        raise DataError(f"{path}: no conversations; remove [export.eval], or name another file")
    return questions


def evaluate(folder: Path, questions: Sequence[Question], max_new_tokens: int) -> Json:
    """Ask the model exported to `folder`; returns accuracy, accuracy by task, and every answer.

    The prompt is the exported chat template's, decoding is greedy and ends at the exported stop tokens.
    """
    found = answers(folder, [question.messages for question in questions], max_new_tokens)
    right = [answer == question.expected for answer, question in zip(found, questions, strict=True)]
    tasks = sorted({question.task for question in questions if question.task is not None})
    by_task = {
        task: _accuracy([ok for ok, question in zip(right, questions, strict=True) if question.task == task])
        for task in tasks
    }
    return {
        **_accuracy(right),
        "by_task": by_task,
        "answers": [
            {
                "messages": [dict(message) for message in question.messages],
                "task": question.task,
                "expected": question.expected,
                "found": answer,
                "right": ok,
            }
            for question, answer, ok in zip(questions, found, right, strict=True)
        ],
    }


def answers(folder: Path, prompts: Sequence[Sequence[Mapping[str, Any]]], max_new_tokens: int) -> list[str]:
    """The greedy answer to each conversation, stripped, in the order given."""
    model = load_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    by_template = Prompts(tokenizer, f"{folder}: the chat template")
    try:
        ids = [by_template.ids(messages) for messages in prompts]
    except TemplateFault as fault:
        raise DataError(f"{folder}: the chat template refuses a prompt: {fault.message}") from fault
    found = [""] * len(ids)
    with progress_bar("answering", len(ids), "prompt") as progress:
        for batch in batches([len(prompt) for prompt in ids], max_new_tokens):
            for index, answer in zip(batch, _generate(model, [ids[i] for i in batch], max_new_tokens), strict=True):
                found[index] = tokenizer.decode(answer, skip_special_tokens=True).strip()
            progress(len(batch))
    return found


def batches(lengths: Sequence[int], max_new_tokens: int) -> Iterator[list[int]]:
    """Prompts to answer together, the longest first and similar lengths side by side, so that little is padding.

    Args:
        lengths: [prompts] tokens.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = BATCH_TOKENS // (lengths[batch[0]] + max_new_tokens) if batch else 1
        if len(batch) >= min(BATCH, max(room, 1)):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def _generate(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
    longest = max(map(len, prompts))
    pad = model.generation_config.pad_token_id or 0
    ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_k=None,
        top_p=None,
    )
    return [row[longest:].tolist() for row in output]


def refuse_low_accuracy(result: Json, table: ExportEval, where: Path) -> None:
    """
    Raises:
        CheckError: if accuracy is below export.eval.min_accuracy.
    """
    if result["accuracy"] < table.min_accuracy:
        raise CheckError(
            f"{where}: {result['right']} of {result['of']} answers are exact, {result['accuracy']:.1%}; "
            f"export.eval.min_accuracy asks for {table.min_accuracy:.1%}, so train longer or on more"
        )


def _accuracy(right: Sequence[bool]) -> dict[str, Json]:
    return {"accuracy": sum(right) / len(right), "right": sum(right), "of": len(right)}
