"""The encoder: records in batches, equal to records one by one."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers

from pipelines import schema
from prep.conversation import RecordError
from prep.encoder import Encoder
from prep.formats.fault import RecordFault
from prep.store import LOSS_BIT
from tests.prep.folders import byte_level, configured, internlm2, spm, texts
from tests.prep.test_template import AGENT, CHATML

ALPACA = [{"instruction": text, "input": "", "output": f"{text} {text}"} for text in texts()]


def encoder(folder: Path, name: str = "internlm2_chat", map_name: str = "alpaca") -> Encoder:
    """An encoder with a byte-level tokenizer."""
    return Encoder(byte_level(folder), schema.Template(name=name), map_name)


def encoded(made: Encoder, records: list[dict[str, Any]]) -> list[tuple[int, list[int] | None]]:
    """A batch's numbers and marked tokens."""
    return [
        (number, None if sample is None else sample.tolist()) for number, sample in made.encode(enumerate(records, 5))
    ]


@pytest.mark.parametrize("make", [byte_level, spm])
def test_a_batch_equals_its_records_one_by_one(make: Any, tmp_path: Path) -> None:
    made = Encoder(make(tmp_path), schema.Template(name="internlm2_chat"), "alpaca")
    expected = []
    for number, record in enumerate(ALPACA, 5):
        tokens, loss = made.encode_record(record)
        expected.append(
            (number, [token | (int(LOSS_BIT) if train else 0) for token, train in zip(tokens, loss, strict=True)])
        )
    assert encoded(made, ALPACA) == expected
    assert encoded(made, ALPACA) == expected  # with the runs it remembers
    assert encoded(made, ALPACA[::-1])[::-1] == [
        (5 + len(ALPACA) - 1 - i, tokens) for i, (_, tokens) in enumerate(expected)
    ]


def test_a_batch_with_untrained_parts_of_answers_equals_its_records_one_by_one(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, config={"chat_template": AGENT})
    made = Encoder(folder, schema.Template(loss=schema.Loss(reasoning=False, tool_calls=False)), "openai")
    call = {"function": {"name": "add", "arguments": "{}"}}
    asked: dict[str, Any] = {"role": "user", "content": "x"}
    said: dict[str, Any] = {"role": "assistant", "content": "yes"}
    records: list[dict[str, Any]] = [
        {"messages": [asked, said]},
        {"messages": [asked, said | {"reasoning_content": "the dog"}, asked, said | {"tool_calls": [call]}]},
        {"messages": [asked, said | {"reasoning_content": "the fox", "tool_calls": [call]}]},
    ]
    for (_, sample), record in zip(made.encode(enumerate(records)), records, strict=True):
        tokens, loss = made.encode_record(record)
        assert sample is not None
        assert (sample & ~LOSS_BIT).tolist() == tokens
        assert (sample >> 31).tolist() == loss


def test_keys_are_read_from_the_columns_that_have_them(tmp_path: Path) -> None:
    made = Encoder(byte_level(tmp_path), schema.Template(name="none"), "pretrain", columns={"text": "body"})
    assert made.encode_record({"body": "the dog", "text": 7}) == made.encode_record({"body": "the dog"})
    with pytest.raises(RecordError, match=r"body: no such key among text, but prep\.source\.columns"):
        made.encode_record({"text": "x"})


def test_samples_are_token_ids_with_loss_in_the_highest_bit(tmp_path: Path) -> None:
    made = encoder(tmp_path)
    ((number, sample),) = made.encode([(3, {"instruction": "x", "output": "the dog"})])
    assert number == 3
    assert sample is not None
    assert sample.dtype == np.uint32
    assert 0 < np.count_nonzero(sample & LOSS_BIT) < sample.size


def test_a_record_that_its_map_leaves_out_gives_no_sample(tmp_path: Path) -> None:
    records = [ALPACA[2], {"instruction": "x", "output": "<nooutput>"}, ALPACA[3]]
    assert [sample is None for _, sample in encoded(encoder(tmp_path), records)] == [False, True, False]
    assert encoder(tmp_path).encode_record(records[1]) == ([], [])


def test_the_first_faulty_record_is_reported_after_those_before_it(tmp_path: Path) -> None:
    records: list[tuple[int, Mapping[str, Any]]] = [(0, ALPACA[0]), (4, {"instruction": 1}), (6, {})]
    samples = encoder(tmp_path).encode(records)
    assert next(samples)[0] == 0
    with pytest.raises(RecordFault, match="instruction: expected a string, found a number") as caught:
        next(samples)
    assert caught.value.record == 4


def test_text_that_cannot_be_kept_from_a_special_token_is_that_records_fault(tmp_path: Path) -> None:
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "</s>": 1, "x": 2, "[UNK]": 3}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.add_special_tokens(["a", "</s>"])
    words.save(str(tmp_path / "tokenizer.json"))
    made = Encoder(configured(tmp_path, {"bos_token": None}), schema.Template(name="none"), "pretrain")
    samples = made.encode([(0, {"text": "x"}), (1, {"text": "x a"}), (2, {"text": "a"})])
    assert next(samples)[0] == 0
    with pytest.raises(RecordFault, match="special token 0 of plain text") as caught:
        next(samples)
    assert caught.value.record == 1
    with pytest.raises(RecordError, match="special token 0 of plain text"):
        made.encode_record({"text": "a"})


def test_its_parts_travel_to_another_process(tmp_path: Path) -> None:
    arguments = (byte_level(tmp_path), schema.Template(name="internlm2_chat"), "alpaca")
    assert len(pickle.dumps(arguments)) < 1000
    assert encoded(Encoder(*pickle.loads(pickle.dumps(arguments))), ALPACA) == encoded(Encoder(*arguments), ALPACA)


def test_real_records_with_internlm2s_tokenizer(tmp_path: Path) -> None:
    folder = internlm2(tmp_path)
    records = json.loads((Path(__file__).parents[3] / "shared" / "data" / "alpaca_en_demo.json").read_bytes())
    made = Encoder(folder, schema.Template(name="internlm2_chat"), "alpaca")
    samples = [sample for _, sample in made.encode(enumerate(records)) if sample is not None]
    tokens = np.concatenate(samples)
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert (len(samples), tokens.size) == (999, 177_792)
    assert np.count_nonzero(tokens & LOSS_BIT) == sum(len(model.encode(record["output"])) + 1 for record in records)
    assert all(sample[0] == 1 and np.count_nonzero(sample == 1) == 1 for sample in samples)  # exactly one BOS


def test_a_text_that_the_tokenizers_regex_gives_up_on_is_a_fault_of_its_record(tmp_path: Path) -> None:
    byte_level(tmp_path, config={"chat_template": CHATML})
    table = json.loads((tmp_path / "tokenizer.json").read_bytes())
    pattern = {"Regex": "(a+)+$"}
    table["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table))
    made = Encoder(tmp_path, schema.Template(), "openai")
    question = {"role": "user", "content": "a" * 40 + "!"}
    with pytest.raises(RecordFault, match=r"the tokenizer gives up on its text: .*retry-limit"):
        list(made.encode([(3, {"messages": [question, {"role": "assistant", "content": "x"}]})]))
