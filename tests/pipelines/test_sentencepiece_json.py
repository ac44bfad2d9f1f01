"""tokenizer.json from a sentencepiece model: the same ids, text by text."""

import itertools
import json
import os
import random
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import ConfigError
from pipelines.sentencepiece_json import convert, transformers_files
from tests.prep.folders import CORPUS, internlm2, spm, texts

os.environ["TOKENIZERS_PARALLELISM"] = "false"

MODELS: Mapping[str, Mapping[str, Any]] = {
    "as InternLM2's": {"add_dummy_prefix": False, "user_defined": ["[SPARE]", "Ａ", "ab"]},
    "as Llama 2's": {},
    "without bytes": {"byte_fallback": False, "character_coverage": 0.98},
    "that joins spaces": {"remove_extra_whitespaces": True},
    "of many runs": {"add_dummy_prefix": False, "split_by_whitespace": False, "max_sentencepiece_length": 64},
}


def pair(folder: Path) -> tuple[Any, Any]:
    """sentencepiece on the model, tokenizers on what it was converted to, both taking text for text."""
    data = (folder / "tokenizer.model").read_bytes()
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    ours = tokenizers.Tokenizer.from_str(convert(data, config).decode())
    ours.encode_special_tokens = True
    return sentencepiece.SentencePieceProcessor(model_proto=data), ours


def different(folder: Path, samples: Sequence[str]) -> list[str]:
    """The texts whose ids differ."""
    theirs, ours = pair(folder)
    found = [encoding.ids for encoding in ours.encode_batch(samples, add_special_tokens=False)]
    return [text for text, ids, right in zip(samples, found, theirs.encode(samples), strict=True) if ids != right]


def runs() -> list[str]:
    """Every character that tokenizers have runs of, repeated up to a hundred times."""
    return [character * count for character in " \n\t=-_*#aA0.~/<>()!你" for count in range(1, 101)]


def noise(pieces: Sequence[str], count: int) -> list[str]:
    """Random texts of a vocabulary's own pieces and of what makes trouble."""
    draw = random.Random(20_240_607)
    hard = [
        " ",
        "  ",
        "\n",
        "\t",
        "\0",
        "🙂",
        "龘",
        "é",
        "e\u0301",
        "\r\n",
        "\u3000",
        "한",
        "ไทย",
        "\ufffd",
        "<0x41>",
        "▁",
    ]
    return ["".join(draw.choices([*hard, *pieces], k=draw.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("model", MODELS)
def test_ids_equal_sentencepiece_on_texts_runs_and_noise(model: str, tmp_path: Path) -> None:
    folder = spm(tmp_path, **MODELS[model])
    theirs, _ = pair(folder)
    pieces = [theirs.id_to_piece(id_).replace("▁", " ") for id_ in range(theirs.get_piece_size())]
    ordinary = [piece for piece in pieces if not piece.startswith("<")]
    assert different(folder, [*texts(), *runs(), *noise(ordinary, 2000)]) == []


@given(text=st.text(alphabet=st.sampled_from("ab a\n=-.上海🙂<>s/0\0"), max_size=60))
def test_ids_equal_sentencepiece_on_any_text(text: str, llama: tuple[Any, Any]) -> None:
    theirs, ours = llama
    assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    return pair(spm(tmp_path_factory.mktemp("llama")))


def test_equal_scores_are_joined_from_the_left(tmp_path: Path) -> None:
    tied(tmp_path, {"bc": -1, "ab": -1, "abc": -2, "aa": -2, "aaa": -3, "aaaa": -3, "cab": -4, "bcab": -4})
    letters = ["".join(letters) for length in range(1, 8) for letters in itertools.product("abc", repeat=length)]
    assert different(tmp_path, [*letters, *("a" * count for count in range(1, 40))]) == []


def test_equal_scores_that_no_list_can_express_are_refused(tmp_path: Path) -> None:
    folder = tied(tmp_path, {"ab": -1, "bc": -1, "ca": -1})
    with pytest.raises(ConfigError, match="pieces 'ab' and 'bc' have the same score and overlap both ways"):
        transformers_files(folder)


def test_internlm2_keeps_its_ids(tmp_path: Path) -> None:
    folder = internlm2(tmp_path)
    alpaca = Path(__file__).parents[3] / "shared" / "data" / "alpaca_en_demo.json"
    real = [text for record in json.loads(alpaca.read_bytes()) for text in record.values()]
    theirs, _ = pair(folder)
    pieces = [theirs.id_to_piece(id_).replace("▁", " ") for id_ in range(400, 92_352, 31)]
    assert different(folder, [*real, *texts(), *runs(), *noise(pieces, 5000)]) == []


def test_plain_transformers_reads_it_and_gives_the_same_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    for name, prefixed in (("prefixed", True), ("bare", False)):
        source = spm(
            tmp_path / name,
            config={"tokenizer_class": "SomeTokenizer", "auto_map": {"x": 1}},
            add_dummy_prefix=prefixed,
        )
        target = tmp_path / f"{name} for Transformers"
        target.mkdir()
        for file, content in transformers_files(source).items():
            (target / file).write_bytes(content)
        theirs = AutoTokenizer.from_pretrained(target)
        model = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
        for text in texts():
            assert theirs.encode(text, add_special_tokens=False, split_special_tokens=True) == model.encode(text)
            assert theirs.encode(text, split_special_tokens=True) == [theirs.bos_token_id, *model.encode(text)]
        assert theirs.encode("<|im_end|>", add_special_tokens=False) == [len(theirs) - 1]
        assert theirs.decode(theirs.encode(CORPUS[2], add_special_tokens=False)) == CORPUS[2]


def test_equal_models_give_equal_bytes(tmp_path: Path) -> None:
    folder = spm(tmp_path)
    assert transformers_files(folder) == transformers_files(folder)


@pytest.mark.parametrize(
    ("options", "finding"),
    [
        ({"model_type": "unigram", "vocab_size": 380}, "its algorithm is unigram; only bpe"),
        ({"normalization_rule_name": "nmt_nfkc"}, "it normalizes characters by compiled rules"),
        ({"user_defined": ["[X]"]}, r"it has user-defined pieces, such as '\[X\]', and changes spaces"),
        ({"treat_whitespace_as_suffix": True}, "it writes spaces in a way"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(options: Mapping[str, Any], finding: str, tmp_path: Path) -> None:
    folder = spm(tmp_path, **options)
    with pytest.raises(ConfigError, match=rf"tokenizer\.model: {finding}"):
        transformers_files(folder)


def test_added_tokens_must_follow_on_each_other(tmp_path: Path) -> None:
    folder = spm(tmp_path, config={"added_tokens_decoder": {"480": {"content": "<a>"}, "482": {"content": "<b>"}}})
    with pytest.raises(ConfigError, match=r"added tokens leave ids out: \[480, 482\] after 480 pieces"):
        transformers_files(folder)


def test_an_added_token_cannot_share_its_text_with_a_piece(tmp_path: Path) -> None:
    folder = spm(tmp_path, config={"added_tokens_decoder": {"300": {"content": "▁dog"}}})
    with pytest.raises(ConfigError, match="the added token '▁dog' is also the text of another piece"):
        transformers_files(folder)


def tied(folder: Path, scores: Mapping[str, float]) -> Path:
    """A hand-made BPE model of a, b, c and the given pieces."""

    def message(number: int, content: bytes) -> bytes:
        return bytes((number << 3 | 2, len(content))) + content

    def piece(text: str, score: float, kind: int) -> bytes:
        return message(1, message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes((0x18, kind)))

    data = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3)
    data += b"".join(piece(text, score, 1) for text, score in {"a": -9, "b": -9, "c": -9, **scores}.items())
    data += message(2, b"\x18\x02") + message(3, b"\x18\x00\x20\x00")  # BPE; no dummy prefix, spaces kept
    (folder / "tokenizer.model").write_bytes(data)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder
