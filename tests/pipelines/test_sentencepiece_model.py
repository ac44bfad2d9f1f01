"""The wire format of a sentencepiece model, read and changed without a protobuf library."""

from pathlib import Path

import pytest
import sentencepiece

from pipelines.sentencepiece_model import Kind, SentencePieceModel, changed
from tests.prep.folders import spm


@pytest.fixture
def data(tmp_path: Path) -> bytes:
    """A small model's bytes."""
    return (spm(tmp_path, user_defined=["[X]"]) / "tokenizer.model").read_bytes()


def test_pieces_are_what_sentencepiece_says_they_are(data: bytes) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_proto=data)
    ours = SentencePieceModel.parse(data)
    assert len(ours.pieces) == theirs.get_piece_size()
    for id_, piece in enumerate(ours.pieces):
        assert (piece.text, piece.score) == (theirs.id_to_piece(id_), theirs.get_score(id_))
        assert (piece.kind is Kind.CONTROL) == theirs.is_control(id_)
        assert (piece.kind is Kind.BYTE) == theirs.is_byte(id_)
        assert (piece.kind is Kind.UNKNOWN) == theirs.is_unknown(id_)
    assert [piece.text for piece in ours.pieces if piece.kind is Kind.USER_DEFINED] == ["[X]"]


def test_settings_are_those_of_training(tmp_path: Path) -> None:
    model = SentencePieceModel.parse((spm(tmp_path / "a") / "tokenizer.model").read_bytes())
    assert (model.algorithm, model.byte_fallback, model.dummy_prefix) == ("bpe", True, True)
    assert (model.remove_extra_whitespaces, model.escape_whitespaces, model.charsmap) == (False, True, b"")
    other = spm(
        tmp_path / "b", model_type="unigram", vocab_size=120, byte_fallback=False, character_coverage=1.0,
        add_dummy_prefix=False, remove_extra_whitespaces=True, normalization_rule_name="nmt_nfkc",
        treat_whitespace_as_suffix=True,
    )  # fmt: skip
    model = SentencePieceModel.parse((other / "tokenizer.model").read_bytes())
    assert (model.algorithm, model.byte_fallback, model.dummy_prefix) == ("unigram", False, False)
    assert (model.remove_extra_whitespaces, model.whitespace_as_suffix) == (True, True)
    assert model.charsmap


def test_nothing_changed_is_the_same_bytes(data: bytes) -> None:
    assert changed(data) == data


def test_a_piece_made_control_is_out_of_reach_of_text(data: bytes) -> None:
    before = sentencepiece.SentencePieceProcessor(model_proto=data)
    id_ = before.piece_to_id("[X]")
    after = sentencepiece.SentencePieceProcessor(model_proto=changed(data, control={id_}))
    assert id_ in before.encode("a [X]")
    assert id_ not in after.encode("a [X]")
    assert after.is_control(id_)
    assert after.encode("the dog") == before.encode("the dog")


def test_the_dummy_prefix_can_be_switched(data: bytes) -> None:
    off = sentencepiece.SentencePieceProcessor(model_proto=changed(data, dummy_prefix=False))
    on = sentencepiece.SentencePieceProcessor(model_proto=changed(changed(data, dummy_prefix=False), dummy_prefix=True))
    default = sentencepiece.SentencePieceProcessor(model_proto=data)
    assert on.encode("dog") == default.encode("dog") == off.encode(" dog") != off.encode("dog")


def test_a_damaged_model_is_refused(data: bytes) -> None:
    damaged = [
        b"",
        b"\xff",
        b"\x0a",
        b"\x08\x01",
        b"\x0a\x02\x0a\x05",
        b"\x0b",
        data[:100],
        b'{"model": {}}',
        b"\x0a\x01\xff",
    ]
    for content in damaged:
        with pytest.raises(ValueError, match="not a sentencepiece model"):
            SentencePieceModel.parse(content)


def test_a_model_of_another_type_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="of the unknown type 9"):
        SentencePieceModel.parse(data + b"\x12\x02\x18\x09")
