"""Small instruction tasks with checkable answers, in English and Chinese, drawn without a library's random stream.

A question is a kind of task and a few operands: words or numbers. A hash of the operands alone, in whatever order,
puts them on the training side or on the held-out side, for every kind, language and seed alike. A conversation draws
all its operands from one side, so no question of a held-out conversation can occur in training, nor can the same
operands in another order or under another task.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Literal, TypeVar

Language = Literal["english", "chinese"]
Side = Literal["train", "held-out"]
Operands = tuple[int, ...]
"""What a question shows, in its order: places in WORDS, or the numbers themselves."""
T = TypeVar("T")

WORDS: tuple[tuple[str, str], ...] = (
    ("cat", "猫"), ("dog", "狗"), ("bird", "鸟"), ("fish", "鱼"), ("horse", "马"), ("cow", "牛"), ("sheep", "羊"),
    ("pig", "猪"), ("sun", "日"), ("moon", "月"), ("star", "星"), ("sky", "天"), ("sea", "海"), ("hill", "山"),
    ("river", "河"), ("tree", "树"), ("flower", "花"), ("grass", "草"), ("rice", "米"), ("tea", "茶"), ("milk", "奶"),
    ("egg", "蛋"), ("book", "书"), ("pen", "笔"), ("door", "门"), ("car", "车"), ("boat", "船"), ("road", "路"),
    ("house", "房"), ("bed", "床"), ("cup", "杯"), ("lamp", "灯"),
)  # fmt: skip
GLUE: dict[Language, str] = {"english": " ", "chinese": ""}
OTHER: dict[Language, Language] = {"english": "chinese", "chinese": "english"}


class Draws:
    """Integers without end, a pure function of the key: SHA-256 of the key and a counter."""

    def __init__(self, *key: str | int) -> None:
        self._key = "/".join(map(str, key))
        self._numbers = self._stream()

    def _stream(self) -> Iterator[int]:
        for block in count():
            digest = hashlib.sha256(f"{self._key}/{block}".encode()).digest()
            for start in range(0, len(digest), 8):
                yield int.from_bytes(digest[start : start + 8], "little")

    def below(self, limit: int) -> int:
        """An integer in 0..limit-1, as good as uniform: limit is tiny beside 2**64."""
        return next(self._numbers) % limit

    def choose(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def sample(self, options: Sequence[int], number: int) -> Operands:
        """`number` different members of the options, in random order."""
        left = list(options)
        return tuple(left.pop(self.below(len(left))) for _ in range(number))


def side(operands: Operands) -> Side:
    """The side these operands belong to, in any order: one in eight is held out."""
    shown = " ".join(map(str, sorted(operands)))
    return "held-out" if hashlib.sha256(f"side {shown}".encode()).digest()[0] < 32 else "train"


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and the operands that the question shows."""

    operands: Operands
    question: str
    answer: str


@dataclass(frozen=True)
class Kind:
    """A kind of task: how operands are drawn, asked about and answered.

    In a frame `{all}` stands for the list of operands, `{rest}` for the list without the first, `{0}` for the first.
    """

    name: str
    english: str
    chinese: str
    draw: Callable[[Draws], Operands]
    answer: Callable[[Operands, Language], str]
    numeric: bool = False

    def ask(self, operands: Operands, language: Language, frame: str = "") -> Turn:
        """Put the question about these operands, in another frame than the kind's own where one is given."""
        frame = frame or (self.english if language == "english" else self.chinese)
        names = [name(operand, language, self.numeric) for operand in operands]
        glue = " " if self.numeric else GLUE[language]
        question = frame.format(*names, all=glue.join(names), rest=glue.join(names[1:]))
        return Turn(operands, question, self.answer(operands, language))


def name(operand: int, language: Language, numeric: bool) -> str:
    """How the operand is written."""
    return str(operand) if numeric else WORDS[operand][0 if language == "english" else 1]


def words(operands: Operands, language: Language) -> str:
    """The list of these words."""
    return GLUE[language].join(name(operand, language, numeric=False) for operand in operands)


def numbers(operands: Operands) -> str:
    """The list of these numbers."""
    return " ".join(map(str, operands))


def _list(draws: Draws) -> Operands:
    return draws.sample(range(len(WORDS)), 2 + draws.below(4))


def _word_and_list(draws: Draws) -> Operands:
    """A word, and a list of two to four words that names it half the time."""
    stranger, *listed = draws.sample(range(len(WORDS)), 3 + draws.below(3))
    return (draws.choose((stranger, draws.choose(listed))), *listed)


def _steps(draws: Draws) -> Operands:
    """Three numbers at equal distance; the fourth is below 100 too."""
    step = draws.choose((1, 2, 10))
    start = draws.below(100 - 3 * step)
    return (start, start + step, start + 2 * step)


def _member(operands: Operands, language: Language) -> str:
    word, *listed = operands
    yes, no = ("yes", "no") if language == "english" else ("有", "没")
    return yes if word in listed else no


KINDS = (
    Kind("repeat", "Repeat: {all}", "重复：{all}", _list, words),
    Kind("reverse", "Reverse: {all}", "倒序：{all}", _list, lambda listed, to: words(listed[::-1], to)),
    Kind("first", "First of: {all}", "第一：{all}", _list, lambda listed, to: words(listed[:1], to)),
    Kind("last", "Last of: {all}", "最后：{all}", _list, lambda listed, to: words(listed[-1:], to)),
    Kind("count", "How many: {all}", "几个：{all}", _list, lambda listed, _: str(len(listed))),
    Kind("translate", "Translate: {all}", "翻译：{all}", _list, lambda listed, to: words(listed, OTHER[to])),
    Kind("member", "Is {0} in: {rest}", "有{0}吗：{rest}", _word_and_list, _member),
    Kind(
        "larger", "Larger: {all}", "更大：{all}", lambda draws: draws.sample(range(100), 2),
        lambda pair, _: str(max(pair)), numeric=True,
    ),
    Kind(
        "sort", "Sort: {all}", "排序：{all}", lambda draws: draws.sample(range(10), 3 + draws.below(3)),
        lambda digits, _: numbers(tuple(sorted(digits))), numeric=True,
    ),
    Kind(
        "continue", "Continue: {all}", "继续：{all}", _steps,
        lambda steps, _: str(2 * steps[2] - steps[1]), numeric=True,
    ),
    Kind(
        "add", "Add: {all}", "相加：{all}", lambda draws: (draws.below(50), draws.below(50)),
        lambda pair, _: str(sum(pair)), numeric=True,
    ),
)  # fmt: skip
ABOUT_LISTS = KINDS[:6]
FOLLOW_UPS = ("again", "recall")
"""Two-turn conversations: the same task for other words, and which of three words the first turn named."""
PLOTS = (*(kind.name for kind in KINDS), *FOLLOW_UPS)
"""What a conversation can be about."""


def converse(plot: str, language: Language, wanted: Side, draws: Draws) -> list[Turn]:
    """Draw a conversation of this plot with the operands of every turn on the wanted side."""
    while True:
        turns = _turns(plot, language, draws)
        if all(side(turn.operands) == wanted for turn in turns):
            return turns


def _turns(plot: str, language: Language, draws: Draws) -> list[Turn]:
    if plot not in FOLLOW_UPS:
        [kind] = (kind for kind in KINDS if kind.name == plot)
        return [kind.ask(kind.draw(draws), language)]
    kind = draws.choose(ABOUT_LISTS)
    opening = kind.ask(kind.draw(draws), language)
    if plot == "again":
        frame = "And: {all}" if language == "english" else "那么：{all}"
        return [opening, kind.ask(kind.draw(draws), language, frame)]
    named = draws.choose(opening.operands)
    strangers = [word for word in range(len(WORDS)) if word not in opening.operands]
    options = draws.sample((named, *draws.sample(strangers, 2)), 3)
    question = "Which did I name: {}" if language == "english" else "说过：{}"
    return [opening, Turn(options, question.format(words(options, language)), words((named,), language))]
