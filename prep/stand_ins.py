"""Messages as a template gets them: their text cannot become a special token, and parts of it can be found again."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prep.conversation import Conversation, Json, Message, RecordError
from prep.fields import json_text
from prep.jinja import to_json
from prep.spans import Span
from prep.tokenizer import Tokenizer

Place = tuple[int, int]
"""Begin and end of a part of rendered text."""

_FIRST_STAND_IN = 0xF0000
"""Of the first private plane: characters without meaning, which text hardly ever holds."""


class Shield:
    """Keeps special-token text in messages from becoming special tokens in what is rendered from them.

    Wherever such text begins, its first character is swapped for a stand-in that occurs nowhere else; the rendered
    text is cut at the special tokens that are left, which the template wrote, and the stand-ins are swapped back.
    Text that could begin a special token at a message's end is treated alike, lest the template complete it.
    """

    def __init__(self, tokenizer: Tokenizer | None, source: str) -> None:
        self._source = source
        names = sorted(filter(None, tokenizer.special_tokens if tokenizer else ()), key=len, reverse=True)
        self._beginnings = frozenset(name[:length] for name in names for length in range(1, len(name)))
        self._longest = max(map(len, names), default=0)
        rests = {name[0]: [re.escape(other[1:]) for other in names if other[0] == name[0]] for name in names}
        self._first = sorted(rests)
        patterns = (f"{re.escape(first)}(?={'|'.join(rests[first])})" for first in self._first)
        self._pattern = re.compile("|".join(patterns) or "(?!)")

    def stand_ins(self, conversation: Conversation) -> "StandIns":
        """Characters that neither this conversation nor the template holds."""
        texts = [self._source, *(message.content for message in conversation.messages if message.content)]
        for message in conversation.messages:
            if message.extra:  # a call's arguments may be rendered as they are, or as what their JSON text says
                texts += [*strings([*message.extra.values()]), *strings(as_dict(message))]
        texts += strings(conversation.tools)
        texts = [text for text in texts if not text.isascii()]
        free: list[str] = []
        code = _FIRST_STAND_IN
        while len(free) < 4 + len(self._first):
            character = chr(code)
            if not any(character in text for text in texts):
                free.append(character)
            code += 1
        return StandIns(self, (free[0], free[1]), (free[2], free[3]), dict(zip(self._first, free[4:], strict=True)))

    def places(self, text: str) -> list[int]:
        """Where a special token, or what could become one at the end, begins."""
        if not any(first in text for first in self._first):
            return []
        found = [match.start() for match in self._pattern.finditer(text)]
        ending = range(max(0, len(text) - self._longest), len(text))
        return found + [place for place in ending if text[place:] in self._beginnings]


class StandIns:
    def __init__(
        self, shield: Shield, marks: tuple[str, str], quiet: tuple[str, str], swaps: Mapping[str, str]
    ) -> None:
        self.marks = marks
        self._quiet = quiet
        self._shield = shield
        self._swaps = swaps
        self._swapped: set[str] = set()
        """Characters that have a stand-in somewhere."""

    def table(self, message: Message, *, quiet: Sequence[str] = (), arguments_as_text: bool = False) -> dict[str, Json]:
        """The message as a template reads it, with stand-ins, and marks around the text of the `quiet` keys."""
        if message.extra:
            table: dict[str, Json] = self.hide(as_dict(message, arguments_as_text=arguments_as_text))
        else:
            table = {"content": message.content and self.hide(message.content)}
        table["role"] = message.role  # a name of the template's, which may spell special tokens with it
        for key in quiet:
            before, core, behind = _stripped(table[key])
            table[key] = f"{before}{self._quiet[0]}{core}{self._quiet[1]}{behind}"
        return table

    def hide(self, value: Json) -> Any:
        """`value` with the stand-ins in every string of it."""
        if isinstance(value, str):
            if places := self._shield.places(value):
                characters = list(value)
                for place in places:
                    if stand_in := self._swaps.get(value[place]):
                        characters[place] = stand_in
                        self._swapped.add(value[place])
                return "".join(characters)
            return value
        if isinstance(value, dict):
            return {self.hide(key): self.hide(part) for key, part in value.items()}
        return [self.hide(part) for part in value] if isinstance(value, list) else value

    def restore(self, spans: list[Span]) -> list[Span]:
        """The same spans with the characters that have stand-ins."""
        for character in sorted(self._swapped):
            stand_in = self._swaps[character]
            spans = [
                span if span.special else span._replace(text=span.text.replace(stand_in, character)) for span in spans
            ]
        return spans

    def unquiet(self, text: str) -> tuple[str, list[Place] | None]:
        """Rendered text without any marks, and where those of `table` were; None where one is without another."""
        before, after = self._quiet
        parts: list[str] = []
        places: list[Place] = []
        length, begun = 0, -1
        for part in re.split(f"([{before}{after}])", text.replace(self.marks[0], "").replace(self.marks[1], "")):
            if part == before and begun < 0:
                begun = length
            elif part == after and begun >= 0:
                places.append((begun, length))
                begun = -1
            elif part in self._quiet:
                return "", None
            else:
                parts.append(part)
                length += len(part)
        return "".join(parts), places if begun < 0 else None

    def unmark(self, text: str) -> tuple[str, list[tuple[int, int]]]:
        """Rendered text without the marks of generation blocks, and where these began and ended."""
        before, after = self.marks
        parts: list[str] = []
        places: list[tuple[int, int]] = []
        length = 0
        for index, block in enumerate(text.split(before)):
            inside, _, outside = block.partition(after) if index else ("", "", block)
            if index:
                places.append((length, length + len(inside)))
            parts += [inside, outside]
            length += len(inside) + len(outside)
        return "".join(parts), places


def _stripped(text: str) -> tuple[str, str, str]:
    """Text without the whitespace at its ends, between that whitespace: templates strip it off."""
    core = text.strip()
    before = text[: len(text) - len(text.lstrip())]
    return before, core, text[len(before) + len(core) :]


def strings(value: Json) -> Iterator[str]:
    """Every string in a value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield key
            yield from strings(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from strings(part)


def as_dict(message: Message, *, arguments_as_text: bool = False) -> dict[str, Json]:
    """The message as chat templates expect it, the arguments of its tool calls as an object or as JSON text."""
    table = {"role": message.role, "content": message.content, **message.extra}
    if (reasoning := message.extra.get("reasoning_content")) is not None:
        table["thinking"] = reasoning  # the older name
    if calls := message.extra.get("tool_calls"):
        table["tool_calls"] = [_call(call, arguments_as_text) for call in calls]
    return table


def _call(call: Mapping[str, Json], as_text: bool) -> Mapping[str, Json]:
    if "function" in call:
        return {**call, "function": _call(call["function"], as_text)}
    arguments = call.get("arguments")
    if as_text and isinstance(arguments, dict):
        return {**call, "arguments": to_json(arguments)}
    if not as_text and isinstance(arguments, str):
        try:
            return {**call, "arguments": json_text(arguments, "arguments")}
        except RecordError:  # what a model wrote amiss stays the text that it is
            return call
    return call
