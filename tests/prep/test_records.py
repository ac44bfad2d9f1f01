"""Record maps: what each makes of a record, and how it says what is wrong with one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from pipelines import schema
from pipelines.errors import ConfigError
from prep.conversation import Conversation, Message, RecordError
from prep.records import MAPS, map_digest, record_map

SYSTEM_TEXTS = {
    "arxiv": "If you are an expert in writing papers, please generate a good paper title for this paper based on other "
    "authors' descriptions of their abstracts.\n",
    "colors": "You are a professional color designer. Please provide the corresponding colors based on the description "
    "of Human.\n",
    "coder": "You are a professional programer. Please provide the corresponding code based on the description of "
    "Human.\n",
    "lawyer": "你现在是一名专业的中国律师，请根据用户的问题给出准确、有理有据的回复。\n",
    "medical": "如果你是一名医生，请根据患者的描述回答医学问题。\n",
    "sql": "If you are an expert in SQL, please generate a good SQL Query for Question based on the CREATE TABLE "
    "statement.\n",
}


def mapped(name: str, record: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Roles and texts of a record's conversation."""
    conversation = record_map(name)(record)
    assert conversation is not None
    return [(message.role, message.content) for message in conversation.messages]


def fault(name: str, record: Mapping[str, Any]) -> str:
    """What is wrong with a record."""
    with pytest.raises(RecordError) as caught:
        record_map(name)(record)
    return str(caught.value)


def test_the_toml_takes_exactly_the_maps_there_are() -> None:
    assert set(get_args(schema.MapName)) == {*MAPS, "none"}


@pytest.mark.parametrize(
    ("name", "record", "asked", "answered", "system"),
    [
        ("alpaca", {"instruction": "Add.", "input": "1 2", "output": "3"}, "Add.\n1 2", "3", ""),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Yes"}, "Hi\n", "Yes", ""),
        ("alpaca", {"instruction": "Hi", "output": "Yes"}, "Hi\n", "Yes", ""),
        ("alpaca_zh", {"instruction_zh": "加", "input_zh": "1", "output_zh": "2"}, "加\n1", "2", ""),
        ("arxiv", {"abstract": "We", "title": "On"}, "We", "On", SYSTEM_TEXTS["arxiv"]),
        ("code_alpaca", {"prompt": "sort", "completion": "x"}, "sort", "x", SYSTEM_TEXTS["coder"]),
        ("colors", {"description": "Sky: blue: sky ", "color": "#00f"}, "blue: sky", "#00f", SYSTEM_TEXTS["colors"]),
        ("crime_kg_assitan", {"input": "q", "output": "a"}, "q", "a", SYSTEM_TEXTS["lawyer"]),
        ("crime_kg_assitant", {"input": "q", "output": "a"}, "q", "a", SYSTEM_TEXTS["lawyer"]),
        ("crime_kg_assistant", {"input": "q", "output": "a"}, "q", "a", SYSTEM_TEXTS["lawyer"]),
        ("default", {"input": " q ", "output": "a"}, " q ", "a", ""),
        ("law_reference", {"question": "q", "answer": "a"}, "q", "a", SYSTEM_TEXTS["lawyer"]),
        ("medical", {"instruction": "i", "input": "n", "output": "a"}, "i\nn", "a", SYSTEM_TEXTS["medical"]),
        ("openorca", {"system_prompt": "Be.", "question": "q", "response": "a"}, "q", "a", "Be."),
        ("openorca", {"system_prompt": "", "question": "q", "response": "a"}, "q", "a", ""),
        ("sql", {"context": "T", "question": "q", "answer": "a"}, "T\nq", "a", SYSTEM_TEXTS["sql"]),
        ("stack_exchange", {"question": "q", "response": "a"}, "q", "a", ""),
        ("tiny_codes", {"prompt": "q", "response": "a"}, "q", "a", SYSTEM_TEXTS["coder"]),
    ],
)
def test_a_question_and_its_answer_have_the_texts_of_their_map(
    name: str, record: Mapping[str, Any], asked: str, answered: str, system: str
) -> None:
    opening = [("system", system)] if system else []
    assert mapped(name, record) == [*opening, ("user", asked), ("assistant", answered)]


def test_alpaca_may_have_a_system_text_and_what_was_said_before() -> None:
    record = {"instruction": "c?", "output": "d", "system": "s", "history": [["a?", "b"]]}
    found = record_map("alpaca")(record)
    assert found is not None
    assert [(message.role, message.content) for message in found.messages] == [
        ("system", "s"), ("user", "a?"), ("assistant", "b"), ("user", "c?\n"), ("assistant", "d"),
    ]  # fmt: skip


@pytest.mark.parametrize("history", [["a"], [["a"]], [["a", 1]]])
def test_a_history_of_anything_but_pairs_is_refused(history: list[Any]) -> None:
    with pytest.raises(RecordError, match=r"history\[0\]: expected a pair of strings"):
        record_map("alpaca")({"instruction": "i", "output": "o", "history": history})


@pytest.mark.parametrize("where", ["arguments", "tools"])
def test_a_number_that_the_reader_rounded_is_refused(where: str) -> None:
    number = {"id": 1.2345678901234568e29}
    call = {"function": {"name": "f", "arguments": number if where == "arguments" else {}}}
    record = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}],
        "tools": [{"function": {"name": "f", "default": number if where == "tools" else 1.5}}],
    }
    with pytest.raises(RecordError, match=r"a number beyond 64 bits, 1\.23457e\+29, which would be rounded"):
        record_map("openai")(record)


def test_alpaca_leaves_records_without_an_output_out() -> None:
    assert record_map("alpaca")({"instruction": "i", "input": "", "output": "<nooutput>"}) is None


def test_plain_text_is_stripped_and_stands_alone() -> None:
    assert mapped("pretrain", {"text": " \n Some text.\n"}) == [("assistant", "Some text.")]


def test_openai_messages_keep_all_that_templates_read() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    record = {
        "id": 7,
        "messages": [
            {"role": "system", "content": "Be."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "1 + "}, {"type": "text", "text": "1?"}],
                "name": "Ann",
            },
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "Hm."},
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
            {"role": "assistant", "content": "2", "tool_calls": None, "loss": True},
        ],
        "tools": [tool],
    }
    expected = Conversation(
        (
            Message("system", "Be."),
            Message("user", "1 + 1?", None, {"name": "Ann"}),
            Message("assistant", None, None, {"reasoning_content": "Hm.", "tool_calls": [call]}),
            Message("tool", "2", None, {"tool_call_id": "c1"}),
            Message("assistant", "2", True),
        ),
        (tool,),
    )
    assert record_map("openai")(record) == expected
    assert record_map("openai")({**record, "tools": json.dumps([tool])}) == expected


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        ({}, None), ({"loss": None}, None), ({"loss": True}, True), ({"loss": False}, False), ({"loss": "true"}, True),
        ({"loss": "false"}, False), ({"weight": 1}, True), ({"weight": 0}, False),
    ],
)  # fmt: skip
def test_a_message_says_itself_whether_it_is_trained(given: Mapping[str, Any], loss: bool | None) -> None:
    conversation = record_map("openai")({"messages": [{"role": "assistant", "content": "x", **given}]})
    assert conversation is not None
    assert conversation.messages[0].loss is loss


@pytest.mark.parametrize(
    ("messages", "finding"),
    [
        (None, "messages: expected an array, found null"),
        ([], "messages: expected at least one message, found none"),
        (["hi"], "messages[0]: expected an object, found a string"),
        ([{"content": "x"}], "messages[0].role: expected a string, found no such key among content"),
        ([{"role": 1, "content": "x"}], "messages[0].role: expected a string, found a number"),
        ([{"role": "user", "content": "x"}, {"role": "user", "content": None}],
         "messages[1].content: expected a string, found null"),
        ([{"role": "user", "content": {}}], "messages[0].content: expected a string, found an object"),
        ([{"role": "user"}], "messages[0].content: expected a string, found no such key among role"),
        ([{"role": "user", "content": [{"type": "image_url"}]}],
         'messages[0].content[0].type: expected "text", found "image_url"; only text is supported'),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]: expected an object, found a string"),
        ([{"role": "user", "content": "x", "wieght": 1}],
         "messages[0].wieght: unknown key; a message has role, content, loss, weight, name, reasoning_content, "
         "tool_calls and tool_call_id"),
        ([{"role": "user", "content": "x", "loss": "yes"}], "messages[0].loss: expected true or false, found a string"),
        ([{"role": "user", "content": "x", "weight": 0.5}], "messages[0].weight: expected 0 or 1, found 0.5"),
        ([{"role": "user", "content": "x", "weight": 1, "loss": True}],
         "messages[0].weight: give loss or weight, not both"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}],
         "messages[0].tool_calls[0].function.name: expected a string, found no such key among none"),
        ([{"role": "assistant", "content": "", "tool_calls": [{"function": "f"}]}],
         "messages[0].tool_calls[0].function: expected an object, found a string"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_named_by_its_path(messages: object, finding: str) -> None:
    assert fault("openai", {"messages": messages}) == finding


def test_a_missing_key_names_those_that_are_there() -> None:
    assert fault("openai", {"text": "x"}) == (
        "messages: expected an array, found no such key among text; "
        'set map = "pretrain" in [[prep.source]], which reads text'
    )
    told = fault("openai", {"instruction": "q", "input": "", "output": "a"})
    assert told.endswith(
        'instruction, input, output; set map = "alpaca" in [[prep.source]], which reads instruction and output'
    )
    wide = {f"column {index}": 0 for index in range(9)}
    assert fault("pretrain", wide).endswith("found no such key among column 0, column 1, column 2, column 3, column 4, "
                                            "column 5, ...")  # fmt: skip


@pytest.mark.parametrize("tools", ["[", "[[1]]", {"a": 1}, 3])
def test_tools_are_an_array_of_objects_or_its_json_text(tools: object) -> None:
    messages = [{"role": "user", "content": "x"}]
    assert fault("openai", {"messages": messages, "tools": tools}).startswith("tools")


def test_sharegpt_leaves_out_what_no_answer_follows() -> None:
    turns = [("gpt", "Welcome."), ("system", "Be."), ("human", "1?"), ("gpt", "2"), ("human", "3?")]
    record = {"conversations": [{"from": who, "value": text} for who, text in turns], "system": "First."}
    assert mapped("sharegpt", record) == [("system", "First."), ("system", "Be."), ("user", "1?"), ("assistant", "2")]
    unanswered = {"conversations": [{"from": "human", "value": "1?"}]}
    assert record_map("sharegpt")(unanswered) is None
    assert record_map("wizardlm")({"conversations": []}) is None


def test_sharegpt_calls_and_their_results_are_the_assistants_and_the_tools() -> None:
    called = {"name": "add", "arguments": {"a": 1}}
    turns = [
        ("system", "Be."),
        ("human", "1 + 1?"),
        ("function_call", json.dumps(called)),
        ("observation", "2"),
        ("function_call", json.dumps([called, called])),
        ("tool", "2, 2"),
        ("gpt", "Two."),
        ("observation", "unread"),
    ]
    record = {
        "conversations": [{"from": who, "value": said} for who, said in turns],
        "tools": '[{"name": "add"}]',
    }
    call = {"type": "function", "function": called}
    assert record_map("sharegpt")(record) == Conversation(
        (
            Message("system", "Be."),
            Message("user", "1 + 1?"),
            Message("assistant", None, None, {"tool_calls": [call]}),
            Message("tool", "2"),
            Message("assistant", None, None, {"tool_calls": [call, call]}),
            Message("tool", "2, 2"),
            Message("assistant", "Two."),
        ),
        ({"name": "add"},),
    )


@pytest.mark.parametrize("weights", [(0.0, 1.0, None), (0, 1, None)])
def test_sharegpt_messages_say_themselves_whether_they_are_trained(weights: Sequence[float | None]) -> None:
    turns = [
        {"from": who, "value": "x", "weight": weight}
        for who, weight in zip(("human", "gpt", "gpt"), weights, strict=True)
    ]
    found = record_map("sharegpt")({"conversations": turns})
    assert found is not None
    assert [message.loss for message in found.messages] == [False, True, None]


@pytest.mark.parametrize(
    ("entry", "finding"),
    [
        ({"from": "gpt", "value": "x", "train": False}, "conversations[1].train: unknown key; a message has from"),
        ({"from": "gpt", "value": "x", "weight": 0.5}, "conversations[1].weight: expected 0 or 1, found 0.5"),
        ({"from": "function_call", "value": "add(1)"}, "conversations[1].value: not valid JSON: Expecting value"),
        ({"from": "function_call", "value": "[1]"}, "conversations[1].value[0]: expected an object, found a number"),
        ({"from": "function_call", "value": "{}"}, "conversations[1].value[0].name: expected a string, found no such"),
        ({"from": "function_call", "value": "[" * 100_000}, "conversations[1].value: JSON nested deeper than 100"),
        (
            {"from": "function_call", "value": '{"name": "f", "name": "g"}'},
            'conversations[1].value: the key "name" stands',
        ),
        (
            {"from": "function_call", "value": '{"name": "f", "x": NaN}'},
            "conversations[1].value: not valid JSON: NaN is",
        ),
    ],
)
def test_a_wrong_sharegpt_message_is_named_by_its_path(entry: Mapping[str, Any], finding: str) -> None:
    turns = [{"from": "human", "value": "?"}, entry]
    assert fault("sharegpt", {"conversations": turns}).startswith(finding)


def test_oasst_rows_that_are_not_joined_are_refused_with_what_to_do() -> None:
    row = {"message_id": "1", "parent_id": None, "text": "Hello", "role": "prompter"}
    assert fault("oasst1", row).startswith("parent_id: a row of OpenAssistant's table of messages")


def test_wizardlm_knows_two_speakers() -> None:
    turns = [{"from": "gpt", "value": "0"}, {"from": "human", "value": "1?"}, {"from": "gpt", "value": "2"}]
    assert mapped("wizardlm", {"conversations": turns}) == [("user", "1?"), ("assistant", "2")]
    stranger = {"conversations": [{"from": "system", "value": "x"}]}
    assert fault("wizardlm", stranger) == "conversations[0].from: expected one of human, gpt, found 'system'"
    assert fault("sharegpt", {"conversations": [{"from": "human"}]}).startswith(
        "conversations[0].value: expected a string"
    )


def test_oasst1_is_cut_at_its_headings() -> None:
    text = "### Human: One?\nReally? ### Assistant: Yes.\n### Human: Two?### Assistant: No. ### Human: Three?"
    expected = [("user", "One?\nReally?"), ("assistant", "Yes."), ("user", "Two?"), ("assistant", "No.")]
    assert mapped("oasst1", {"text": text}) == expected
    assert record_map("oasst1")({"text": "### Human: alone"}) is None
    assert "expected ### Human: at its beginning" in fault("oasst1", {"text": "Human: hi"})
    broken = "### Human: see ### below ### Assistant: ok"
    assert "expected Assistant: after ### number 2" in fault("oasst1", {"text": broken})


TOOL = (
    '{"name": "add", "description": "adds", "paths": [{"parameters": [{"name": "a", "description": "first"}]}]} '
    'and {broken {"name": "now", "description": "the time"} {"other": 1}'
)


def test_msagent_is_written_out_as_react() -> None:
    said = [
        ("system", f"Tools: {TOOL}"),
        ("user", "1 + 1?"),
        ("assistant", 'Let me. <|startofthink|>```JSON\n{"api_name": "add", "parameters": {"a": 1}}\n```<|endofthink|>'
                      '<|startofexec|>```JSON\n{"result": 2}\n```<|endofexec|>\nIt is 2.'),
        ("user", "Thanks"),
        ("assistant", "Welcome."),
    ]  # fmt: skip
    system, asked, called, returned, answered, thanks, welcome = mapped(
        "msagent_react", {"conversations": [{"from": who, "value": text} for who, text in said]}
    )
    assert system[0] == "system"
    assert system[1] is not None
    assert system[1].startswith(
        "你是一个可以调用外部工具的助手，可以使用的工具包括：\n"
        "{'add': \"adds\\n输入参数: {'a': 'first'}\", 'now': 'the time'}\n"
        "如果使用工具请遵循以下格式回复：\n```\nThought:"
    )
    assert "必须从 [['add', 'now']] 选择\n" in system[1]
    assert asked == ("user", "1 + 1?\n")
    assert called == ("assistant", "Thought:Let me.\nAction:add\nAction Input:{'a': 1}\n\n")
    assert (returned, answered) == (("system", "Response:{'result': 2}\n"), ("assistant", "Final Answer:It is 2.\n"))
    assert (thanks, welcome) == (("user", "Thanks\n"), ("assistant", "Final Answer:Welcome.\n"))


def test_msagent_reads_the_text_of_a_list_without_running_it(tmp_path: Path) -> None:
    said = [{"from": "user", "value": "1?"}, {"from": "assistant", "value": "2"}]
    assert mapped("msagent_react", {"conversations": repr(said)}) == [
        ("user", "1?\n"),
        ("assistant", "Final Answer:2\n"),
    ]
    mark = tmp_path / "ran"
    assert "not the text of a Python list" in fault("msagent_react", {"conversations": f"open({str(mark)!r}, 'w')"})
    assert not mark.exists()
    assert "not the text of a Python list" in fault("msagent_react", {"conversations": "[" * 5000})
    assert fault("msagent_react", {"conversations": None}).startswith("conversations: expected an array")


@pytest.mark.parametrize(
    "answer",
    [
        "<|startofthink|>not JSON<|endofthink|>",
        "<|startofthink|>" + "[" * 5000 + "<|endofthink|>",
        '<|startofthink|>{"api_name": 1}<|endofthink|>',
        "<|startofexec|>" * 2,
    ],
)
def test_msagent_leaves_out_what_it_cannot_rewrite(answer: str) -> None:
    said = [{"from": "user", "value": "1?"}, {"from": "assistant", "value": answer}]
    assert record_map("msagent_react")({"conversations": said}) is None
    assert record_map("msagent_react")({"conversations": said[:1]}) is None


def test_colors_need_a_colon() -> None:
    assert fault("colors", {"description": "blue", "color": "#00f"}).startswith(
        "description: expected text with a colon"
    )


def test_a_map_of_ones_own_returns_the_openai_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_maps.py").write_text(
        "def turn(record):\n"
        "    if not record['a']:\n"
        "        return None\n"
        "    texts = {'user': record['q'], 'assistant': record['a']}\n"
        "    return {'messages': [{'role': role, 'content': text} for role, text in texts.items()]}\n"
        "def text(record):\n"
        "    return record['q']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert mapped("python:my_maps:turn", {"q": "1?", "a": "2"}) == [("user", "1?"), ("assistant", "2")]
    assert record_map("python:my_maps:turn")({"a": ""}) is None
    assert fault("python:my_maps:turn", {}) == "python:my_maps:turn failed on it: KeyError: 'a'"
    assert fault("python:my_maps:turn", {"q": 1, "a": "x"}) == "messages[0].content: expected a string, found a number"
    assert "returned str, expected a dict with messages" in fault("python:my_maps:text", {"q": "x"})


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("python:no_such_module_here:f", "No module named 'no_such_module_here'; install the module"),
        ("python:json:no_such_function", "has no attribute 'no_such_function'; expected python:module:function"),
        ("python:json", "expected python:module:function"),
        ("llava", "expected one of openai, sharegpt, alpaca"),
    ],
)
def test_a_map_that_does_not_exist_is_named(name: str, finding: str) -> None:
    with pytest.raises(ConfigError, match=f"prep.source.map = '{name}': .*{finding}"):
        record_map(name)


def test_columns_take_the_names_that_the_map_reads() -> None:
    by = {"instruction": "ask", "output": "reply"}
    found = record_map("alpaca", by)({"ask": "1?", "reply": "2", "input": "", "instruction": "unread"})
    assert found == Conversation((Message("user", "1?\n"), Message("assistant", "2")))
    swapped = record_map("default", {"input": "output", "output": "input"})({"input": "a", "output": "q"})
    assert swapped == Conversation((Message("user", "q"), Message("assistant", "a")))
    assert record_map("openai", {"tools": "functions"})({"messages": [{"role": "user", "content": "x"}],
                                                         "functions": None}) is not None  # fmt: skip


def test_a_record_without_a_named_column_is_faulty() -> None:
    with pytest.raises(RecordError) as caught:
        record_map("default", {"input": "ask"})({"input": "x", "output": "y"})
    assert str(caught.value) == (
        "ask: no such key among input, output, but prep.source.columns takes input from it"
    )  # the map's own name does not stand in for it


def test_a_map_of_ones_own_has_the_digest_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "digested_maps.py"
    file.write_text("def turn(record):\n    return None\n")
    (tmp_path / "reexported_maps.py").write_text("from digested_maps import turn\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = hashlib.sha256(file.read_bytes()).hexdigest()
    assert map_digest("python:digested_maps:turn") == expected
    assert map_digest("python:reexported_maps:turn") == expected  # where the function lives, not who passes it on
    assert map_digest("openai") is None
    with pytest.raises(ConfigError, match="its module has no Python source file to tell a change by"):
        map_digest("python:math:sqrt")


def test_a_map_that_cannot_be_imported_or_called_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    (tmp_path / "failing_maps.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="importing it failed: ZeroDivisionError: division by zero"):
        record_map("python:failing_maps:turn")
    (tmp_path / "table_maps.py").write_text("turn = {}\n")
    with pytest.raises(ConfigError, match="'python:table_maps:turn': is no function but dict"):
        record_map("python:table_maps:turn")


def test_the_maps_follow_xtuners_rules() -> None:
    path = Path(__file__).parents[3] / "shared" / "design" / "prompt-templates.json"
    if not path.is_file():
        pytest.skip("needs the list of XTuner's maps")
    theirs = json.loads(path.read_bytes())
    images = {"llava", "llava_image_only"}
    assert {*theirs["dataset_map_fns"]} - images <= {*MAPS}
    followed = set()
    for name, rule in theirs["dataset_map_fns"].items():
        if rule["turns"] != "single" or "{" not in rule["input"]:
            continue
        record = {key: f"the {key}" for key in rule["reads"]}
        asked, answered = (rule[side].replace("\\n", "\n").format(**record) for side in ("input", "output"))
        system = theirs["system_templates"].get(rule["system_template"] or "", "")
        if name == "openorca":
            system = record["system_prompt"]
        opening = [("system", system)] if system else []
        assert (name, mapped(name, record)) == (name, [*opening, ("user", asked), ("assistant", answered)])
        followed.add(name)
    assert len(followed) == 12
