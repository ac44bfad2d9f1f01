"""The check of data that came tokenized: right samples have no findings, and each known fault of a mask is named."""

import numpy as np
import pytest

from pipelines import schema
from prep.conversation import Conversation, Message
from prep.store import LOSS_BIT
from prep.template import Template
from prep.token_check import Marked, check_tokens
from prep.tokenizer import Tokenizer, load_tokenizer
from tests.prep.faults import DATA_FAULTS, RIGHT, DataFault
from tests.prep.folders import byte_level


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokens")
    return load_tokenizer(byte_level(folder, bos=True, config={"chat_template": RIGHT}))


def samples(template: Template, fault: DataFault | None = None) -> list[tuple[int, Marked]]:
    """Two-turn conversations as somebody else tokenized them."""
    found = []
    for number in range(5):
        turns = [(role, f"{role} says {number} and {at}") for at, role in enumerate(["user", "assistant"] * 2)]
        tokens, loss = template.sample(Conversation(tuple(Message(*turn) for turn in turns)))
        if fault is not None:
            tokens, loss = fault.change(tokens, loss)
        found.append((number, np.array(tokens, np.uint32) | np.where(loss, LOSS_BIT, np.uint32(0))))
    return found


def test_right_samples_have_no_findings(tokenizer: Tokenizer) -> None:
    template = Template(schema.Template(), tokenizer)
    assert check_tokens(samples(template), tokenizer, template, "a.bin") == []
    texts = [(0, np.array([1, 300 | LOSS_BIT, 2 | LOSS_BIT], np.uint32))]
    assert check_tokens(texts, tokenizer, None, "a.bin") == []


@pytest.mark.parametrize("fault", DATA_FAULTS, ids=lambda fault: f"{fault.kind}: {fault.what}")
def test_a_known_fault_of_a_mask_is_named_with_its_first_record(fault: DataFault, tokenizer: Tokenizer) -> None:
    template = Template(schema.Template(), tokenizer)
    found = {one.kind: one for one in check_tokens(samples(template, fault), tokenizer, template, "a.bin")}
    assert fault.kind in found, [*found]
    text = found[fault.kind].text
    assert text.startswith("a.bin: none of 5" if fault.kind == "no-answers" else "a.bin:1: ")
    sure = {"tokens-mask-empty", "tokens-mask-late", "tokens-mask-early", "tokens-two-bos"}
    assert found[fault.kind].is_error == (fault.kind in sure)


def test_what_only_some_samples_have_is_counted_and_warned_of(tokenizer: Tokenizer) -> None:
    template = Template(schema.Template(), tokenizer)
    late = next(fault for fault in DATA_FAULTS if fault.kind == "tokens-mask-late")
    mixed = [*samples(template)[:3], *samples(template, late)[3:]]
    [found] = check_tokens(mixed, tokenizer, template, "a.bin")
    assert (found.kind, found.is_error) == ("tokens-mask-late", False)
    assert found.text.startswith("a.bin:4: the mask is one token late")
    assert "in 2 of the 5 samples" in found.text
