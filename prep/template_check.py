"""What a template makes of probe conversations: trained as served, begun once, ended by a token that is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipelines import schema
from pipelines.errors import CheckError
from prep.conversation import Conversation, Message, RecordError
from prep.template import Template
from prep.tokenizer import Tokenizer


@dataclass
class Findings:
    """What a template does with the probes."""

    same: list[str] = field(default_factory=list)
    """Probes whose prompt a reader of the exported template tokenizes as it was trained."""
    other: list[str] = field(default_factory=list)
    """Probes whose prompt such a reader tokenizes otherwise, with the first difference."""
    refused: list[str] = field(default_factory=list)
    """Probes that the template has no form for."""
    begins: bool = False
    """Samples begin with BOS."""

    def __str__(self) -> str:
        words = [f"prompts are served as they are trained ({', '.join(self.same)})"] if self.same else []
        words += [f"served otherwise than trained: {each}" for each in self.other]
        words += [f"no form for {', '.join(self.refused)}"] if self.refused else []
        words.append("one BOS" if self.begins else "no BOS")
        return "; ".join(words)


def check_template(settings: schema.Template, tokenizer: Tokenizer) -> Findings:
    """Try a template on conversations that templates stumble over.

    Raises:
        ConfigError: if there is no such template, or it does not go with the tokenizer.
        CheckError: if a sample does not begin as its prompt, its answer does not end with a trained token that stops
            generation, though loss.end_of_turn asks for it, or all are refused, for a second BOS for instance.
    """
    template = Template(settings, tokenizer)
    found = Findings()
    reasons: list[str] = []
    for name, conversation in (_TEXTS if settings.name == "none" else _PROBES).items():
        try:
            _try(name, conversation, template, settings, tokenizer, found)
        except RecordError as error:
            found.refused.append(name)
            reasons.append(str(error))
    if not found.same and not found.other:
        raise CheckError(
            f"template {settings.name!r} refuses every probe conversation; is it one for chats? It says of the first: "
            f"{reasons[0]}"
        )
    return found


def _try(
    name: str,
    conversation: Conversation,
    template: Template,
    settings: schema.Template,
    tokenizer: Tokenizer,
    found: Findings,
) -> None:
    tokens, loss = template.sample(conversation)
    asked = conversation if settings.name == "none" else Conversation(conversation.messages[:-1], conversation.tools)
    prompt = template.prompt(asked)
    place = f"template {settings.name!r}, probe {name!r}"
    if tokens[: len(prompt)] != prompt:
        raise CheckError(f"{place}: the sample does not begin as its prompt: {_apart(tokens, prompt, tokenizer)}")
    found.begins = tokens[:1] == [tokenizer.bos_id]
    if settings.loss.end_of_turn and "assistant" in settings.loss.roles and settings.name != "none":
        _ends_trained(place, tokens, loss, template.stop_tokens, tokenizer)
    served = template.served(asked) if template.jinja is not None else prompt
    if served == prompt:
        found.same.append(name)
    else:
        found.other.append(f"{name}, where {_apart(served, prompt, tokenizer)}")


def _ends_trained(
    place: str, tokens: Sequence[int], loss: Sequence[bool], stops: Sequence[int], tokenizer: Tokenizer
) -> None:
    trained = [token for token, train in zip(tokens, loss, strict=True) if train]
    if not trained or trained[-1] not in stops:
        last = (
            f"its last trained token is {tokenizer.decode(trained[-1:])!r}" if trained else "nothing of it is trained"
        )
        expected = " or ".join(repr(tokenizer.decode([token])) for token in stops) or "a special token"
        raise CheckError(
            f"{place}: the answer should end with {expected}, trained, but {last}; let the template close answers "
            "within its generation block, or set template.loss.end_of_turn = false"
        )


def _apart(others: Sequence[int], trained: Sequence[int], tokenizer: Tokenizer) -> str:
    """The first place where ids differ, as text."""
    place = next((i for i, (one, two) in enumerate(zip(others, trained, strict=False)) if one != two), len(trained))
    return (
        f"token {place} is {tokenizer.decode(others[place : place + 1])!r}, and "
        f"{tokenizer.decode(trained[place : place + 1])!r} in the prompt as trained"
    )


def _talk(*turns: tuple[str, str], tools: Sequence[Mapping[str, object]] = ()) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns), tuple(tools))


_CALL = {"id": "call00001", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 3}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds two numbers.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}},
    },
}

_PROBES: Mapping[str, Conversation] = {
    "a question": _talk(("user", "What is 2 + 3?"), ("assistant", "5")),
    "Chinese": _talk(("user", "请用一句话介绍上海。"), ("assistant", "上海是一座城市。")),
    "a system message": _talk(("system", "Answer briefly."), ("user", "Name a colour."), ("assistant", "Red.")),
    "an empty system message": _talk(("system", ""), ("user", "Name a colour."), ("assistant", "Red.")),
    "several turns": _talk(
        ("user", "Hello!"),
        ("assistant", "Hello, how can I help?"),
        ("user", "  Repeat:\n\tthis, twice\n "),
        ("assistant", "this, this"),
    ),
    "several turns in Chinese": _talk(
        ("user", "café 🙂 x=1;\r\n\r\n    y"),
        ("assistant", "1. 一\n2. 二"),
        ("user", "接下来呢？"),
        ("assistant", "三"),
    ),
    "tools": _talk(("user", "What is 2 + 3?"), ("assistant", "5"), tools=(_TOOL,)),
    "a tool call": Conversation(
        (
            Message("user", "What is 2 + 3?"),
            Message("assistant", "", None, {"tool_calls": [_CALL]}),
            Message("tool", "5", None, {"name": "add", "tool_call_id": "call00001"}),
            Message("assistant", "It is 5."),
        ),
        (_TOOL,),
    ),
}

_TEXTS: Mapping[str, Conversation] = {
    "text": _talk(("assistant", "Once upon a time")),
    "Chinese": _talk(("assistant", "上海是一座城市。\n")),
}
