"""Spans: runs that belong together are joined, and muted text carries no loss however a run is tokenized."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.spans import Span, audible, cut, extend
from prep.tokenizer import Tokenizer
from tests.prep.folders import byte_level, spm

PIECES = ["hello", "the dog", " ", "\n", "上海", "é", "e\u0301", "🙂", "1", "0", ".", "<s>", "  two"]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=6).map("".join)


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece", "sentencepiece without bytes"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "byte-level":
        return Tokenizer(byte_level(folder))
    return Tokenizer(spm(folder, byte_fallback=request.param == "sentencepiece"))


@given(before=TEXTS, muted=TEXTS.filter(bool), behind=TEXTS, opens=st.booleans())
def test_a_token_that_may_hold_muted_text_carries_no_loss(
    tokenizer: Tokenizer, before: str, muted: str, behind: str, opens: bool
) -> None:
    text = before + muted + behind
    tokens = tokenizer.encode(text, opens=opens)
    span = Span(text, True, opens=opens, mute=((len(before), len(before) + len(muted)),))
    loss = audible(span, tokens, tokenizer)
    first, last = (loss.index(False), len(loss) - loss[::-1].index(False)) if False in loss else (len(loss), len(loss))
    assert False in loss
    assert not any(loss[first:last])
    alone = tokenizer.encode(behind, opens=False)
    assert tokens[:first] == tokenizer.encode(before, opens=opens)[:first]
    assert tokens[last:] == alone[len(alone) - (len(tokens) - last) :]
    if tokenizer.prefix == "none":  # each token has its own text, part of a character at worst
        assert before.startswith(tokenizer.decode(tokens[:first]).rstrip("\ufffd"))
        assert behind.endswith(tokenizer.decode(tokens[last:]).lstrip("\ufffd"))


def test_the_words_around_a_muted_one_carry_loss(tokenizer: Tokenizer) -> None:
    text = "the dog\nhello\nthe dog"
    tokens = tokenizer.encode(text)
    loss = audible(Span(text, True, opens=True, mute=((8, 13),)), tokens, tokenizer)
    assert loss[0]
    assert loss[-1]
    assert "hello" in tokenizer.decode([token for token, train in zip(tokens, loss, strict=True) if not train])


def test_text_that_does_not_open_joins_the_run_before_it() -> None:
    spans = [Span("a", opens=True)]
    extend(
        spans, [Span("b"), Span("c", loss=True), Span("d", loss=True), Span(""), Span("<s>", special=True), Span("e")]
    )
    assert spans == [
        Span("ab", opens=True),
        Span("cd", loss=True),
        Span("<s>", special=True),
        Span("e"),
    ]
    extend(spans, [Span("f", opens=True)])
    assert spans[-1] == Span("f", opens=True)


def test_text_is_cut_at_the_special_tokens_it_spells(tokenizer: Tokenizer) -> None:
    again = tokenizer.prefix == "always"
    assert cut("a<s>b", tokenizer, opens=True, loss=True) == [
        Span("a", True, opens=True),
        Span("<s>", True, special=True),
        Span("b", True, opens=again),
    ]
