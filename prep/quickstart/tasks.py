"""Small instruction tasks with checkable answers, in English and Chinese, in one or two turns.

A question is a kind of task and a few operands: words or numbers. A hash of the operands alone, in whatever order,
puts them on the training side or on the held-out side, for every kind, language and seed alike. A conversation draws
the operands of all its questions from one side. So no question of a held-out conversation can occur in training, and
neither can one about the same words or numbers in another order, in the other language or under another task.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from prep.quickstart.draws import Draws

Language = Literal["english", "chinese"]
Side = Literal["train", "held-out"]
Operands = tuple[int, ...]
"""What a question shows, in its order: places in WORDS, or the numbers themselves."""

LANGUAGES: tuple[Language, ...] = ("english", "chinese")
WORDS = (
    ("cat", "猫"), ("dog", "狗"), ("bird", "鸟"), ("fish", "鱼"), ("horse", "马"), ("cow", "牛"), ("sheep", "羊"),
    ("pig", "猪"), ("sun", "日"), ("moon", "月"), ("star", "星"), ("sky", "天"), ("sea", "海"), ("hill", "山"),
    ("river", "河"), ("tree", "树"), ("flower", "花"), ("grass", "草"), ("rice", "米"), ("tea", "茶"), ("milk", "奶"),
    ("egg", "蛋"), ("book", "书"), ("pen", "笔"), ("door", "门"), ("car", "车"), ("boat", "船"), ("road", "路"),
    ("house", "房"), ("bed", "床"), ("cup", "杯"), ("lamp", "灯"),
)  # fmt: skip
ANIMALS = 8
"""How many of the words, from the first on, are animals."""


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and the operands that the question shows."""

    operands: Operands
    question: str
    answer: str


@dataclass(frozen=True)
class Kind:
    """A kind of task: how its questions open, how operands are drawn, how they are written, and the right answer."""

    name: str
    english: str
    chinese: str
    draw: Callable[[Draws], Operands]
    write: Callable[[Operands, Language], str]
    answer: Callable[[Operands, Language], str]

    def ask(self, operands: Operands, language: Language, opening: str = "") -> Turn:
        """The question about these operands, opened in another way than the kind's own where one is given."""
        opening = opening or (self.english if language == "english" else self.chinese)
        return Turn(operands, opening + self.write(operands, language), self.answer(operands, language))


def converse(plot: str, language: Language, wanted: Side, draws: Draws) -> list[Turn]:
    """Draw a conversation of this plot, the operands of all its questions on the wanted side."""
    while True:
        turns = _turns(plot, language, draws)
        if all(side(turn.operands) == wanted for turn in turns):
            return turns


def _turns(plot: str, language: Language, draws: Draws) -> list[Turn]:
    if plot == "again":
        kind = draws.choose(ABOUT_LISTS)
        more = "And: " if language == "english" else "那么："
        return [kind.ask(kind.draw(draws), language), kind.ask(kind.draw(draws), language, more)]
    if plot == "extend":
        kind = draws.choose((REPEAT, REVERSE))
        *first, one, two = draws.sample(range(len(WORDS)), 4 + draws.below(3))
        opening = kind.ask(tuple(first), language)
        added = words((one, two), language)
        question = f"Add: {added}" if language == "english" else f"加上：{added}"
        return [opening, Turn((one, two), question, opening.answer + _glue(language) + added)]
    [kind] = (kind for kind in KINDS if kind.name == plot)
    return [kind.ask(kind.draw(draws), language)]


def side(operands: Operands) -> Side:
    """The side these operands belong to, in any order: one in eight is held out."""
    shown = " ".join(map(str, sorted(operands)))
    return "held-out" if hashlib.sha256(f"side {shown}".encode()).digest()[0] < 256 // 8 else "train"


def words(places: Operands, language: Language) -> str:
    """The list of the words at these places."""
    return _glue(language).join(WORDS[place][LANGUAGES.index(language)] for place in places)


def _glue(language: Language) -> str:
    return " " if language == "english" else ""


def numbers(listed: Operands, _: Language) -> str:
    """The list of these numbers."""
    return " ".join(map(str, listed))


def _list(draws: Draws) -> Operands:
    """Two to four words."""
    return draws.sample(range(len(WORDS)), 2 + draws.below(3))


def _one_animal(draws: Draws) -> Operands:
    """An animal among one to three words that are none."""
    things = draws.sample(range(ANIMALS, len(WORDS)), 1 + draws.below(3))
    return draws.sample((draws.below(ANIMALS), *things), 1 + len(things))


def _two_numbers(draws: Draws) -> Operands:
    return draws.sample(range(10, 100), 2)


def _digits(draws: Draws) -> Operands:
    """Three or four different digits."""
    return draws.sample(range(10), 3 + draws.below(2))


def _steps(draws: Draws) -> Operands:
    """Three numbers at equal distance; the fourth is below 100 too."""
    step = draws.choose((1, 2, 3))
    start = draws.below(100 - 3 * step)
    return (start, start + step, start + 2 * step)


REPEAT = Kind("repeat", "Repeat: ", "重复：", _list, words, words)
REVERSE = Kind("reverse", "Reverse: ", "倒序：", _list, words, lambda places, to: words(places[::-1], to))
ABOUT_LISTS = (
    REPEAT,
    REVERSE,
    Kind("first", "First of: ", "第一：", _list, words, lambda places, to: words(places[:1], to)),
    Kind("last", "Last of: ", "最后：", _list, words, lambda places, to: words(places[-1:], to)),
    Kind("count", "How many: ", "几个：", _list, words, lambda places, _: str(len(places))),
    Kind(
        "translate", "Translate: ", "翻译：", _list, words,
        lambda places, to: words(places, "chinese" if to == "english" else "english"),
    ),
)  # fmt: skip
KINDS = (
    *ABOUT_LISTS,
    Kind(
        "animal", "Which is an animal: ", "动物是：", _one_animal, words,
        lambda places, to: words(tuple(place for place in places if place < ANIMALS), to),
    ),
    Kind("larger", "Larger: ", "更大：", _two_numbers, numbers, lambda pair, _: str(max(pair))),
    Kind("sort", "Sort: ", "排序：", _digits, numbers, lambda digits, to: numbers(tuple(sorted(digits)), to)),
    Kind("continue", "Continue: ", "继续：", _steps, numbers, lambda steps, _: str(2 * steps[2] - steps[1])),
)  # fmt: skip
SHARES = {
    "repeat": 2, "reverse": 2, "first": 1, "last": 1, "count": 1, "translate": 2, "animal": 1,
    "larger": 4, "sort": 2, "continue": 3, "again": 5, "extend": 3,
}  # fmt: skip
"""The plots a conversation can have, and how often training takes each: what is learned slowly comes more often.

A plot is a kind of task, or one of two conversations whose last turn needs the first: `again` wants the same done with
other words, `extend` adds two words to the list just answered.
"""
