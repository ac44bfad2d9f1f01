"""Record maps: one parsed JSON record to one conversation, or to nothing where the map's rule leaves it out.

A map reads the keys it names and no others; what surrounds them in a record (ids, origins) is not data to train on.
Inside a message every key counts, so one that is not understood is refused.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Any
"""What a JSON parser returns."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str | None
    """None where the message consists of tool calls."""
    loss: bool | None = None
    """Whether it is trained; None leaves it to template.loss."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """What chat templates read besides: name, reasoning_content, tool_calls, tool_call_id."""


@dataclass(frozen=True)
class Conversation:
    """Messages in their order, and the tools on offer."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Json], ...] = ()


class RecordError(ValueError):
    """A record that does not have the shape its map reads: JSON path, expected, found. The caller adds the place."""

    def __init__(self, path: str, finding: str) -> None:
        super().__init__(f"{path}: {finding}" if path else finding)


RecordMap = Callable[[Mapping[str, Json]], Conversation | None]
"""A record to its conversation; None leaves the record out."""


def record_map(name: str) -> RecordMap:
    """The map called `name` in the TOML."""
    return MAPS[name]


def openai(record: Mapping[str, Json]) -> Conversation:
    """`messages` with role and content, and optionally loss (or weight 0 or 1), name, reasoning_content, tool_calls
    and tool_call_id; `tools` beside them, as an array or as the JSON text of one.

    A message's content may be null where it has tool_calls, and a list of text parts, which are joined.
    """
    messages = _list(record, "messages")
    if not messages:
        raise RecordError("messages", "expected at least one message, found none")
    tools = record.get("tools")
    if isinstance(tools, str) and tools:
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise RecordError("tools", f"not valid JSON: {error}") from error
    if tools:
        tools = _objects(tools, "tools")
    return Conversation(
        tuple(_openai_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
        tuple(tools or ()),
    )


def alpaca(record: Mapping[str, Json]) -> Conversation | None:
    """`instruction`, a line feed and `input` asked, `output` answered; an output of `<nooutput>` leaves it out."""
    asked = f"{_text(record, 'instruction')}\n{_text(record, 'input', default='')}"
    answered = _text(record, "output")
    return None if answered == "<nooutput>" else _turn(asked, answered)


MAPS: Mapping[str, RecordMap] = {"openai": openai, "alpaca": alpaca}
"""Every map by its name."""

_MESSAGE_KEYS = ("role", "content", "loss", "weight", "name", "reasoning_content", "tool_calls", "tool_call_id")


def _openai_message(message: Json, path: str) -> Message:
    if not isinstance(message, dict):
        raise RecordError(path, f"expected an object, found {kind(message)}")
    given = {key: value for key, value in message.items() if value is not None}
    if unknown := [key for key in given if key not in _MESSAGE_KEYS]:
        raise RecordError(
            f"{path}.{unknown[0]}",
            f"unknown key; a message has {', '.join(_MESSAGE_KEYS[:-1])} and {_MESSAGE_KEYS[-1]}",
        )
    extra: dict[str, Json] = {
        key: _text(given, key, path) for key in ("name", "reasoning_content", "tool_call_id") if key in given
    }
    if calls := given.get("tool_calls"):
        extra["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{index}]")
            for index, call in enumerate(_objects(calls, f"{path}.tool_calls"))
        ]
    content = _content(message, path) if "content" in given or "tool_calls" not in extra else None
    return Message(_text(message, "role", path), content, _loss(given, path), extra)


def _content(message: Mapping[str, Json], path: str) -> str:
    parts = message.get("content")
    if not isinstance(parts, list):
        return _text(message, "content", path)
    texts = []
    for index, part in enumerate(_objects(parts, f"{path}.content")):
        where = f"{path}.content[{index}]"
        if (type_ := _text(part, "type", where)) != "text":
            raise RecordError(f"{where}.type", f'expected "text", found "{type_}"; only text is supported')
        texts.append(_text(part, "text", where))
    return "".join(texts)


def _tool_call(call: Mapping[str, Json], path: str) -> Mapping[str, Json]:
    function = call.get("function", call)
    if not isinstance(function, dict):
        raise RecordError(f"{path}.function", f"expected an object, found {kind(function)}")
    _text(function, "name", f"{path}.function" if "function" in call else path)
    return call


def _loss(message: Mapping[str, Json], path: str) -> bool | None:
    if "weight" in message:
        if message["weight"] not in (0, 1):
            raise RecordError(f"{path}.weight", f"expected 0 or 1, found {message['weight']!r}")
        if "loss" in message:
            raise RecordError(f"{path}.weight", "give loss or weight, not both")
        return bool(message["weight"])
    loss = message.get("loss")
    if loss not in (None, True, False, "true", "false"):
        raise RecordError(f"{path}.loss", f"expected true or false, found {kind(loss)}")
    return None if loss is None else loss in (True, "true")


def _turn(asked: str, answered: str, system: str = "") -> Conversation:
    opening = (Message("system", system),) if system else ()
    return Conversation((*opening, Message("user", asked), Message("assistant", answered)))


def _text(table: Mapping[str, Json], key: str, path: str = "", *, default: str | None = None) -> str:
    value = table.get(key)
    if isinstance(value, str):
        return value
    where = f"{path}.{key}" if path else key
    if value is None and default is not None:
        return default
    if key not in table:
        raise RecordError(where, f"expected a string, found no such key among {_some(table)}")
    raise RecordError(where, f"expected a string, found {kind(value)}")


def _list(table: Mapping[str, Json], key: str) -> list[Json]:
    value = table.get(key)
    if isinstance(value, list):
        return value
    if key not in table:
        raise RecordError(key, f"expected an array, found no such key among {_some(table)}")
    raise RecordError(key, f"expected an array, found {kind(value)}")


def _objects(values: Json, path: str) -> list[Mapping[str, Json]]:
    if not isinstance(values, list):
        raise RecordError(path, f"expected an array, found {kind(values)}")
    for index, value in enumerate(values):
        if not isinstance(value, dict):
            raise RecordError(f"{path}[{index}]", f"expected an object, found {kind(value)}")
    return values


def _some(table: Mapping[str, Json]) -> str:
    names = [key if len(key) <= 40 else f"{key[:40]}..." for key in list(table)[:6]]
    return ", ".join([*names, "..."] if len(table) > 6 else names) or "none"


def kind(value: Json) -> str:
    """A JSON value's type in words."""
    names = {type(None): "null", bool: "true or false", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")
