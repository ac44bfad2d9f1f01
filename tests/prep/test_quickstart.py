"""The quickstart's data: the same bytes everywhere, right answers, and held-out questions that training never shows."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from pipelines import schema
from prep.quickstart import files, write_quickstart
from prep.quickstart.draws import Draws
from prep.quickstart.files import HELD_OUT, held_out
from prep.quickstart.tasks import LANGUAGES, SHARES, WORDS, side
from prep.records import record_map
from prep.template import Template
from prep.tokenizer import load_tokenizer

TOKENIZER = Path(__file__).parents[2] / "pipelines" / "quickstart" / "tokenizer"

# Change these together with FORMAT_VERSION in prep/quickstart/files.py.
DIGESTS = {
    "chinese.bin": "cb6e0121e4aa53786bdf6a164b3a26807eb2bbb216e223175045ea7a70054af7",
    "chinese.bin.meta": "3685c458002a0f4d1643770bb0e0749ba48768eb0313eedbee5dd454a689f83b",
    "english.jsonl": "bed50ececde06baaacc8d1e401be26e407b7eca192a7e26df8b4abd90a032611",
    "heldout.jsonl": "8fc04a88193d15e7d898acb6f95c0a349418692063fac0b9c59d4ab6a7bdc541",
}

Conversation = list[tuple[str, str]]
"""Questions with their answers."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    write_quickstart(folder, tokenizer=TOKENIZER)
    return folder / "data"


@pytest.fixture(scope="module")
def english(data: Path) -> list[Conversation]:
    return read_messages(data / "english.jsonl")


@pytest.fixture(scope="module")
def chinese(data: Path) -> list[Conversation]:
    """The conversations in the tokenized source, read back from its ids."""
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    ids = [list(map(abs, tokens)) for tokens in read_ftdp(data / "chinese.bin")]
    return [parse(text) for text in tokenizer.decode_batch(ids, skip_special_tokens=False)]


@pytest.fixture(scope="module")
def asked(data: Path) -> list[Conversation]:
    return read_messages(data / "heldout.jsonl")


def read_messages(path: Path) -> list[Conversation]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        contents = [message["content"] for message in messages]
        found.append(list(zip(contents[::2], contents[1::2], strict=True)))
    return found


def read_ftdp(path: Path) -> Iterator[list[int]]:
    """Every line by the offset and the count that the meta file gives."""
    content = path.read_bytes()
    meta = np.load(path.with_name(path.name + ".meta"))
    assert meta.dtype == np.int64
    for (offset, count), end in zip(meta.tolist(), [*meta[1:, 0].tolist(), len(content)], strict=True):
        tokens = json.loads(content[offset:end])["tokens"]
        assert len(tokens) == count
        yield tokens


def parse(text: str) -> Conversation:
    turn = r"<\|user\|>([^<]*)<\|end\|><\|assistant\|>([^<]*)<\|end\|>"
    assert re.fullmatch(f"({turn})+", text)
    return re.findall(turn, text)


def solve(questions: list[str]) -> str:
    """The answer to the last question, worked out from the text alone."""
    instruction, items = read(questions[-1])
    if instruction in ("And", "那么"):
        return solve([questions[-1].replace(instruction, read(questions[0])[0])])
    chinese = not instruction.isascii()
    joiner = " " if not chinese or items[0].isdigit() else ""
    translation = dict(WORDS) | {zh: en for en, zh in WORDS}
    if instruction in ("Add", "加上"):
        return solve(questions[:1]) + joiner + joiner.join(items)
    if instruction in ("Repeat", "重复"):
        return joiner.join(items)
    if instruction in ("Reverse", "倒序"):
        return joiner.join(reversed(items))
    if instruction in ("First of", "第一"):
        return items[0]
    if instruction in ("Last of", "最后"):
        return items[-1]
    if instruction in ("How many", "几个"):
        return str(len(items))
    if instruction in ("Translate", "翻译"):
        return (" " if chinese else "").join(translation[item] for item in items)
    if instruction in ("Which is an animal", "动物是"):
        [animal] = set(items) & {*["cat", "dog", "bird", "fish", "horse", "cow", "sheep", "pig"], *"猫狗鸟鱼马牛羊猪"}
        return animal
    if instruction in ("Larger", "更大"):
        return str(max(map(int, items)))
    if instruction in ("Sort", "排序"):
        return " ".join(sorted(items))
    if instruction in ("Continue", "继续"):
        one, two, three = map(int, items)
        assert three - two == two - one
        return str(three + three - two)
    raise AssertionError(f"unknown instruction: {questions[-1]}")


def read(question: str) -> tuple[str, list[str]]:
    """The instruction and the items of the list that it is about."""
    instruction, items = re.split("[:：]", question)
    return instruction, re.findall(r"\d+|[a-z]+|[一-鿿]", items)


def test_bytes_are_those_of_the_format_version(data: Path) -> None:
    assert {path.name for path in data.iterdir()} == {*DIGESTS, "manifest.json"}
    assert {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in DIGESTS} == DIGESTS


def test_complete_data_is_left_alone_and_anything_else_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "CONVERSATIONS", 20)
    written = write_quickstart(tmp_path, tokenizer=TOKENIZER)
    assert {path.name for path in written} == DIGESTS.keys()
    assert write_quickstart(tmp_path, tokenizer=TOKENIZER) == []

    whole = {path: path.read_bytes() for path in written}
    written[-1].write_bytes(whole[written[-1]][:-1])
    assert write_quickstart(tmp_path, tokenizer=TOKENIZER) == written
    assert {path: path.read_bytes() for path in written} == whole

    assert write_quickstart(tmp_path, seed=1, tokenizer=TOKENIZER) == written
    changed = {path.name for path in written if path.read_bytes() != whole[path]}
    assert changed == {"chinese.bin", "chinese.bin.meta", "english.jsonl"}  # the held-out conversations are not drawn


@pytest.mark.parametrize("source", ["english", "chinese", "asked"])
def test_every_answer_is_right(source: str, request: pytest.FixtureRequest) -> None:
    for conversation in request.getfixturevalue(source):
        questions = [question for question, _ in conversation]
        for turn, (_, answer) in enumerate(conversation, start=1):
            assert solve(questions[:turn]) == answer, conversation


def test_no_held_out_question_occurs_in_training(
    english: list[Conversation], chinese: list[Conversation], asked: list[Conversation]
) -> None:
    trained = {question for conversation in english + chinese for question, _ in conversation}
    assert len(trained) > 30_000
    assert not trained & {question for conversation in asked for question, _ in conversation}


def test_no_held_out_operands_occur_in_a_training_question_in_any_order_language_or_task(
    english: list[Conversation], chinese: list[Conversation], asked: list[Conversation]
) -> None:
    in_english = {zh: en for en, zh in WORDS}

    def operands(conversations: list[Conversation]) -> set[tuple[str, ...]]:
        lists = (read(question)[1] for conversation in conversations for question, _ in conversation)
        return {tuple(sorted(in_english.get(item, item) for item in items)) for items in lists}

    assert not operands(english + chinese) & operands(asked)


def test_side_is_the_same_in_any_order_and_one_in_eight_is_held_out() -> None:
    assert side((3, 1, 2)) == side((1, 2, 3))
    sides = Counter(side((one, two)) for two in range(100) for one in range(two))
    assert sides["held-out"] / sides.total() == pytest.approx(1 / 8, rel=0.1)


def test_held_out_conversations_differ_and_cover_every_plot_in_both_languages(asked: list[Conversation]) -> None:
    assert len({json.dumps(conversation) for conversation in asked}) == len(SHARES) * len(LANGUAGES) * HELD_OUT
    assert {len(conversation) for conversation in asked} == {1, 2}
    assert [[(turn.question, turn.answer) for turn in turns] for _, turns in held_out()] == asked


def test_tokenized_source_is_what_the_chat_template_makes_of_its_conversations(
    data: Path, chinese: list[Conversation]
) -> None:
    template = Template(schema.Template(), load_tokenizer(TOKENIZER))
    to_conversation = record_map("openai")
    for marked, conversation in zip(list(read_ftdp(data / "chinese.bin"))[:500], chinese, strict=False):
        contents = [("user", "assistant")[i % 2] for i in range(2 * len(conversation))]
        messages = [
            {"role": role, "content": content}
            for role, content in zip(contents, [text for turn in conversation for text in turn], strict=True)
        ]
        rendered = to_conversation({"messages": messages})
        assert rendered is not None
        tokens, loss = template.sample(rendered)
        assert marked == [token if trained else -token for token, trained in zip(tokens, loss, strict=True)]


def test_loss_is_on_the_answers_and_their_end_of_turn_alone(data: Path, chinese: list[Conversation]) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    for marked, conversation in zip(read_ftdp(data / "chinese.bin"), chinese, strict=True):
        trained = tokenizer.decode([token for token in marked if token > 0], skip_special_tokens=False)
        assert trained == "".join(answer + "<|end|>" for _, answer in conversation)


def test_draws_are_the_published_hash() -> None:
    """A known answer: the first integers of SHA-256("a/1/0"), then of SHA-256("a/1/1")."""
    blocks = b"".join(hashlib.sha256(text).digest() for text in (b"a/1/0", b"a/1/1"))
    draws = Draws("a", 1)
    assert [draws.below(2**64) for _ in range(8)] == np.frombuffer(blocks, "<u8").tolist()


def test_a_sample_has_different_members_in_any_order() -> None:
    orders = {Draws(number).sample("abc", 3) for number in range(200)}
    assert len(orders) == 6
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
