"""Record maps: one parsed JSON record to one conversation, or to nothing where the map's rule leaves it out.

A map reads the keys it names and no others; what surrounds them in a record (ids, origins) is not data to train on.
Inside a message every key counts, so one that is not understood is refused.
"""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.artifacts import digest_file
from pipelines.errors import ConfigError
from pipelines.system_texts import SYSTEM_TEXTS
from prep.conversation import Conversation, Json, Message, RecordError
from prep.fields import array, json_text, kept_exactly, kind, objects, some_keys, text
from prep.msagent import msagent_react

RecordMap = Callable[[Mapping[str, Json]], Conversation | None]
"""A record to its conversation; None leaves the record out."""


def record_map(name: str, columns: Mapping[str, str] = MappingProxyType({})) -> RecordMap:
    """The map that prep.source.map names: one of `MAPS`, or `python:module:function`.

    Such a function takes a record and returns one of the `openai` shape, or None to leave it out.

    Args:
        name: of the map.
        columns: for keys that the map reads, what the records call them; see `_Renamed`.
    Raises:
        ConfigError: if there is no such map.
    """
    if name.startswith("python:"):
        found = _python_map(name)
    elif name in MAPS:
        found = MAPS[name]
    else:
        raise ConfigError(f"prep.source.map = {name!r}: expected one of {', '.join(MAPS)}, or python:module:function")
    return _Renamed(found, columns) if columns else found


def map_digest(name: str) -> str | None:
    """SHA-256 of the source file of the module that a `python:module:function` map lives in; None for a map of ours.

    What that module imports is not followed: keep a map in one file, or change the file along with what it imports.

    Raises:
        ConfigError: if there is no such function, or its module has no source file.
    """
    if not name.startswith("python:"):
        return None
    module = inspect.getmodule(_python_function(name))
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        raise ConfigError(
            f"prep.source.map = {name!r}: its module has no Python source file to tell a change by; put the function "
            "into a .py file"
        )
    return digest_file(Path(file))


def openai(record: Mapping[str, Json]) -> Conversation:
    """`messages` with role and content, and optionally loss (or weight 0 or 1), name, reasoning_content, tool_calls
    and tool_call_id; `tools` beside them, as an array or as the JSON text of one.

    A message's content may be null where it has tool_calls, and a list of text parts, which are joined.
    """
    messages = array(record, "messages")
    if not messages:
        raise RecordError("messages", "expected at least one message, found none")
    return Conversation(
        tuple(_openai_message(message, f"messages[{index}]") for index, message in enumerate(messages)),
        tuple(_tools(record)),
    )


def sharegpt(record: Mapping[str, Json]) -> Conversation | None:
    """`conversations` of from and value, and optionally loss (or weight 0 or 1); optionally `system` and `tools`, as an
    array or as the JSON text of one, beside them.

    Of `from`: system; human or user; gpt or assistant; function_call, the assistant's too, its value the JSON text of
    one call or an array of calls, each with name and arguments; observation, function_response or tool for what a call
    returned. What stands before the first human message or after the last answer is left out.
    """
    return _sharegpt(record, _SPEAKERS)


def wizardlm(record: Mapping[str, Json]) -> Conversation | None:
    """`sharegpt` with human and gpt alone."""
    return _sharegpt(record, {"human": "user", "gpt": "assistant"})


def alpaca(record: Mapping[str, Json]) -> Conversation | None:
    """`instruction`, a line feed and `input` asked, `output` answered; an output of `<nooutput>` leaves it out.

    Optionally `system`, and `history`: pairs of what was asked and answered before.
    """
    asked = f"{text(record, 'instruction')}\n{text(record, 'input', default='')}"
    answered = text(record, "output")
    if answered == "<nooutput>":
        return None
    system = text(record, "system", default="")
    messages = [Message("system", system)] if system else []
    for index, pair in enumerate(array(record, "history") if record.get("history") else ()):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(said, str) for said in pair)):
            raise RecordError(f"history[{index}]", "expected a pair of strings: what was asked, and answered")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return Conversation((*messages, Message("user", asked), Message("assistant", answered)))


def colors(record: Mapping[str, Json]) -> Conversation:
    """What follows the first colon of `description` asked, `color` answered."""
    _, colon, asked = text(record, "description").partition(":")
    if not colon:
        raise RecordError("description", "expected text with a colon, found none in it")
    return _turn(asked.strip(), text(record, "color"), SYSTEM_TEXTS["colorist"])


def oasst1(record: Mapping[str, Json]) -> Conversation | None:
    """`text` of `### Human: ...` and `### Assistant: ...` in turn; a question left without an answer is left out."""
    if "parent_id" in record:
        raise RecordError(
            "parent_id",
            "a row of OpenAssistant's table of messages, which are no conversations yet; join them along parent_id "
            'into messages and set map = "openai", or take the joined form, with ### Human: and ### Assistant: in text',
        )
    lead, *parts = text(record, "text").strip().split("###")
    if lead:
        raise RecordError("text", "expected ### Human: at its beginning")
    messages: list[Message] = []
    for number, part in enumerate(parts):
        role, opening = ("assistant", "Assistant:") if number % 2 else ("user", "Human:")
        if not part.strip().startswith(opening):
            raise RecordError("text", f"expected {opening} after ### number {number + 1}; is there a ### in a message?")
        messages.append(Message(role, part.strip().removeprefix(opening).strip()))
    messages = messages[: len(messages) // 2 * 2]
    return Conversation(tuple(messages)) if messages else None


def openorca(record: Mapping[str, Json]) -> Conversation:
    """`question` asked, `response` answered, under `system_prompt` where that is not empty."""
    return _turn(text(record, "question"), text(record, "response"), text(record, "system_prompt", default=""))


def pretrain(record: Mapping[str, Json]) -> Conversation:
    """`text` without the whitespace at its ends, as one answer without a question: what template "none" takes."""
    return Conversation((Message("assistant", text(record, "text").strip()),))


def _pair(*asked: str, answered: str, system: str = "") -> RecordMap:
    """A map of the texts asked, line by line, and the text answered."""

    def pair(record: Mapping[str, Json]) -> Conversation:
        return _turn("\n".join(text(record, key) for key in asked), text(record, answered), system)

    return pair


MAPS: Mapping[str, RecordMap] = {
    "openai": openai,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "alpaca_zh": _pair("instruction_zh", "input_zh", answered="output_zh"),
    "oasst1": oasst1,
    "pretrain": pretrain,
    "default": _pair("input", answered="output"),
    "arxiv": _pair("abstract", answered="title", system=SYSTEM_TEXTS["arxiv_gentile"]),
    "code_alpaca": _pair("prompt", answered="completion", system=SYSTEM_TEXTS["coder"]),
    "colors": colors,
    # XTuner spells this one in two ways, and the data set's name is a third.
    **dict.fromkeys(
        ("crime_kg_assitan", "crime_kg_assitant", "crime_kg_assistant"),
        _pair("input", answered="output", system=SYSTEM_TEXTS["lawyer"]),
    ),
    "law_reference": _pair("question", answered="answer", system=SYSTEM_TEXTS["lawyer"]),
    "msagent_react": msagent_react,
    "medical": _pair("instruction", "input", answered="output", system=SYSTEM_TEXTS["medical"]),
    "openorca": openorca,
    "sql": _pair("context", "question", answered="answer", system=SYSTEM_TEXTS["sql"]),
    "stack_exchange": _pair("question", answered="response"),
    "tiny_codes": _pair("prompt", answered="response", system=SYSTEM_TEXTS["coder"]),
    "wizardlm": wizardlm,
}
"""Every map by its name. XTuner's have its strings to the letter."""

_MESSAGE_KEYS = ("role", "content", "loss", "weight", "name", "reasoning_content", "tool_calls", "tool_call_id")


def _openai_message(message: Json, path: str) -> Message:
    if not isinstance(message, dict):
        raise RecordError(path, f"expected an object, found {kind(message)}")
    role, content = message.get("role"), message.get("content")
    if len(message) == 2 and isinstance(role, str) and isinstance(content, str):
        return Message(role, content)  # most are like this
    given = {key: value for key, value in message.items() if value is not None}
    if unknown := [key for key in given if key not in _MESSAGE_KEYS]:
        raise RecordError(
            f"{path}.{unknown[0]}",
            f"unknown key; a message has {', '.join(_MESSAGE_KEYS[:-1])} and {_MESSAGE_KEYS[-1]}",
        )
    extra: dict[str, Json] = {
        key: text(given, key, path) for key in ("name", "reasoning_content", "tool_call_id") if key in given
    }
    if calls := given.get("tool_calls"):
        extra["tool_calls"] = [
            _tool_call(call, f"{path}.tool_calls[{index}]")
            for index, call in enumerate(objects(calls, f"{path}.tool_calls"))
        ]
    content = _content(message, path) if "content" in given or "tool_calls" not in extra else None
    return Message(text(message, "role", path), content, _loss(given, path), extra)


def _content(message: Mapping[str, Json], path: str) -> str:
    parts = message.get("content")
    if not isinstance(parts, list):
        return text(message, "content", path)
    texts = []
    for index, part in enumerate(objects(parts, f"{path}.content")):
        where = f"{path}.content[{index}]"
        if (type_ := text(part, "type", where)) != "text":
            raise RecordError(f"{where}.type", f'expected "text", found "{type_}"; only text is supported')
        texts.append(text(part, "text", where))
    return "".join(texts)


def _tool_call(call: Mapping[str, Json], path: str) -> Mapping[str, Json]:
    function = call.get("function", call)
    if not isinstance(function, dict):
        raise RecordError(f"{path}.function", f"expected an object, found {kind(function)}")
    text(function, "name", f"{path}.function" if "function" in call else path)
    kept_exactly(call, path)
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


_CALLS = "function_call"
_SPEAKERS: Mapping[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    _CALLS: "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}
_SAID_KEYS = ("from", "value", "loss", "weight")


def _sharegpt(record: Mapping[str, Json], roles: Mapping[str, str]) -> Conversation | None:
    messages = [
        _said(entry, f"conversations[{index}]", roles)
        for index, entry in enumerate(objects(array(record, "conversations"), "conversations"))
    ]
    spoken = [index for index, message in enumerate(messages) if message.role == "user"]
    answered = [index for index, message in enumerate(messages) if message.role == "assistant"]
    if not spoken or not answered or answered[-1] < spoken[0]:
        return None
    kept = [message for message in messages[: spoken[0]] if message.role == "system"]
    kept += messages[spoken[0] : answered[-1] + 1]
    system = text(record, "system", default="") if "system" in roles else ""
    return Conversation((*([Message("system", system)] if system else ()), *kept), tuple(_tools(record)))


def _said(entry: Mapping[str, Json], path: str, roles: Mapping[str, str]) -> Message:
    given = {key: value for key, value in entry.items() if value is not None}
    if unknown := [key for key in given if key not in _SAID_KEYS]:
        raise RecordError(f"{path}.{unknown[0]}", "unknown key; a message has from, value, loss and weight")
    if (speaker := text(entry, "from", path)) not in roles:
        raise RecordError(f"{path}.from", f"expected one of {', '.join(roles)}, found {speaker!r}")
    value, loss = text(entry, "value", path), _loss(given, path)
    if speaker != _CALLS:
        return Message(roles[speaker], value, loss)
    calls = json_text(value, f"{path}.value")
    extra = {
        "tool_calls": [
            {"type": "function", "function": _tool_call(call, f"{path}.value[{index}]")}
            for index, call in enumerate(objects(calls if isinstance(calls, list) else [calls], f"{path}.value"))
        ]
    }
    return Message(roles[speaker], None, loss, extra)


def _tools(record: Mapping[str, Json]) -> list[Mapping[str, Json]]:
    tools = record.get("tools")
    if isinstance(tools, str):
        tools = json_text(tools, "tools") if tools.strip() else []
    kept_exactly(tools, "tools")
    return objects(tools, "tools") if tools else []


class _Renamed:
    """A map of records that call some of its keys otherwise.

    The named columns leave their own names and take those the map reads, all at once, so that two can be swapped; what
    a record had under such a name before is gone. A record without one of them is faulty: null says that it is absent.
    """

    def __init__(self, found: RecordMap, columns: Mapping[str, str]) -> None:
        self._map = found
        self._columns = dict(columns)
        self._taken = {*columns, *columns.values()}

    def __call__(self, record: Mapping[str, Json]) -> Conversation | None:
        renamed = {key: value for key, value in record.items() if key not in self._taken}
        for key, column in self._columns.items():
            if column not in record:
                raise RecordError(
                    column, f"no such key among {some_keys(record)}, but prep.source.columns takes {key} from it"
                )
            renamed[key] = record[column]
        return self._map(renamed)


def _python_function(name: str) -> Callable[[Mapping[str, Json]], Any]:
    place, _, function = name.removeprefix("python:").rpartition(":")
    try:
        found = getattr(importlib.import_module(place), function)
    except ImportError as error:
        raise ConfigError(
            f"prep.source.map = {name!r}: {error}; install the module, or put its folder on PYTHONPATH"
        ) from error
    except (AttributeError, ValueError) as error:
        raise ConfigError(f"prep.source.map = {name!r}: {error}; expected python:module:function") from error
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ConfigError(
            f"prep.source.map = {name!r}: importing it failed: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise ConfigError(f"prep.source.map = {name!r}: is no function but {type(found).__name__}")
    return found  # type: ignore[no-any-return]  # a user's module has no types


def _python_map(name: str) -> RecordMap:
    found = _python_function(name)

    def mapped(record: Mapping[str, Json]) -> Conversation | None:
        try:
            result = found(record)
        except Exception as error:  # whatever the user's function raises is about this record
            raise RecordError("", f"{name} failed on it: {type(error).__name__}: {error}") from error
        if result is None:
            return None
        if not isinstance(result, dict):
            raise RecordError("", f"{name} returned {type(result).__name__}, expected a dict with messages, or None")
        return openai(result)

    return mapped


def _turn(asked: str, answered: str, system: str = "") -> Conversation:
    opening = (Message("system", system),) if system else ()
    return Conversation((*opening, Message("user", asked), Message("assistant", answered)))
