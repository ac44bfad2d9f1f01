"""MSAgent-Bench: conversations with tool calls in its own marks, written out as ReAct text as XTuner does.

An assistant's `<|startofthink|>` block is a call, and becomes `Action:` and `Action Input:` lines; a `<|startofexec|>`
block is what the call returned, and becomes a `Response:` that the final answer follows. Tools and results appear as
Python writes a dict, which is how XTuner has them.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from prep.conversation import Conversation, Json, Message, RecordError
from prep.fields import json_text, objects, text

_CALL = re.compile(r"(.*?)<\|startofthink\|>(.*?)<\|endofthink\|>", re.DOTALL)
_RESULT = re.compile(r"<\|startofexec\|>(.*?)<\|endofexec\|>(.*?)$", re.DOTALL)
_ANSWER = "Final Answer:"

_TOOLS = "你是一个可以调用外部工具的助手，可以使用的工具包括：\n"
_FORMAT = """\
如果使用工具请遵循以下格式回复：
```
Thought:思考你当前步骤需要解决什么问题，是否需要使用工具
Action:工具名称，你的工具必须从 [{names}] 选择
Action Input:工具输入参数
```
工具返回按照以下格式回复：
```
Response:调用工具后的结果
```
如果你已经知道了答案，或者你不需要工具，请遵循以下格式回复
```
Thought:给出最终答案的思考过程
Final Answer:最终答案
```
开始!
"""


def msagent_react(record: Mapping[str, Json]) -> Conversation | None:
    """`conversations` of from (system, user, assistant) and value, as an array or as the text of a Python list of it.

    Records with fewer than two messages, or with a call that is not JSON, are left out.
    """
    entries = objects(_parsed(record), "conversations")
    messages: list[Message] = []
    system = user = ""
    for index, entry in enumerate(entries):
        path = f"conversations[{index}]"
        speaker, said = text(entry, "from", path), text(entry, "value", path)
        if speaker == "system":
            system += _system(said)
        elif speaker == "user":
            user += f"{said}\n"
        elif speaker == "assistant":
            try:
                spoken = list(_assistant(said))
            except (ValueError, KeyError, TypeError):
                return None
            messages += [Message("system", system)] if system else []
            messages += [Message("user", user)] if user else []
            messages += spoken
            system = user = ""
        else:
            raise RecordError(f"{path}.from", f"expected system, user or assistant, found {speaker!r}")
    return Conversation(tuple(messages)) if len(entries) > 1 and messages else None


def _parsed(record: Mapping[str, Json]) -> Json:
    conversations = record.get("conversations")
    if not isinstance(conversations, str):
        return conversations
    try:
        return ast.literal_eval(conversations)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise RecordError("conversations", f"not the text of a Python list: {type(error).__name__}") from error


def _system(said: str) -> str:
    tools = {tool["name"]: _described(tool) for tool in _tools(said)}
    return f"{_TOOLS}{tools}\n{_FORMAT.replace('{names}', str(list(tools)))}"


def _described(tool: Mapping[str, Any]) -> Any:
    try:
        parameters = {each["name"]: each["description"] for each in tool["paths"][0]["parameters"]}
        return tool["description"] + f"\n输入参数: {parameters}"
    except (KeyError, IndexError, TypeError):
        return tool["description"]


def _tools(said: str) -> Iterator[Mapping[str, Any]]:
    """The JSON objects within a text that have a name and a description."""
    decoder, place = json.JSONDecoder(), said.find("{")
    while place >= 0:
        after = place + 1
        try:
            found, end = decoder.raw_decode(said, place)
            if "name" in found and "description" in found:
                yield found
                after = end
        except (ValueError, RecursionError):
            pass
        place = said.find("{", after)


def _assistant(said: str) -> Iterator[Message]:
    spoken, mark, result = said.partition("<|startofexec|>")
    if "<|startofexec|>" in result:
        raise ValueError("two results in one message")
    written, calls = _CALL.subn(_call, spoken)
    yield Message("assistant", f"{written}\n" if calls else f"{_ANSWER}{written}\n")
    if mark:
        yield from _response(mark + result)


def _call(match: re.Match[str]) -> str:
    thought = match[1].strip()
    call = _json(match[2])
    lead = f"Thought:{thought}\n" if thought else ""
    return f"{lead}Action:{call['api_name']}\nAction Input:{call['parameters']}\n"


def _response(result: str) -> Iterator[Message]:
    """What the call returned and the answer that follows it; nothing where there is no answer to train."""
    try:
        written = _RESULT.sub(_returned, result)
    except ValueError:
        return
    response, mark, answer = written.partition(_ANSWER)
    if mark and _ANSWER not in answer:
        yield Message("system", response)
        yield Message("assistant", mark + answer)


def _returned(match: re.Match[str]) -> str:
    answer = match[2].strip()
    return f"Response:{_json(match[1])}\n" + (f"{_ANSWER}{answer}\n" if answer else "")


def _json(block: str) -> Any:
    return json_text(block.replace("```JSON", "").replace("```", "").replace("\n", ""), "conversations")
