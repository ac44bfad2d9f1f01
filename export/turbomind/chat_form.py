"""LMDeploy's JSON form of a chat template, found by rendering the Jinja template that was trained with.

LMDeploy 0.6 to 0.7.3 puts fixed text around what is said, by role. Probe conversations show that text, and other
conversations then have to come out of the form as they come out of the template, to the last token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from export.hf import Model
from export.turbomind.config import FROM_TEMPLATE
from export.turbomind.geometry import Unservable
from pipelines.artifacts import canonical_json
from pipelines.probes import Probes
from pipelines.prompt import Prompts
from pipelines.schema import TurbomindExport
from pipelines.template_process import TemplateFault

FORM = "lmdeploy_chat_template.json"
"""Not `chat_template.json`, which Transformers reads as something else."""
KEY = "export.turbomind.chat_template"
_OWN_NAME = "packtrain"
_WITHOUT_SYSTEM = "yi"
"""LMDeploy's own template that says nothing where no system text is given, which a JSON file cannot ask for; all its
text is replaced."""

Message = Mapping[str, str]
Render = Callable[[Sequence[Message], bool], str]
"""A conversation as text; with the generation prompt or without."""

_SYSTEM, _FIRST, _ANSWER, _SECOND = "Systemtext", "Firstquestion", "Firstanswer", "Secondquestion"


@dataclass(frozen=True)
class ChatForm:
    """Text around what is said, by the names that LMDeploy has for it."""

    system: str
    eosys: str
    meta_instruction: str | None
    """System text where none is given; None where there is no system block then."""
    user: str
    eoh: str
    assistant: str
    eoa: str
    separator: str
    stop_words: Sequence[str] = field(default_factory=tuple)

    def prompt(self, messages: Sequence[Message]) -> str:
        """What LMDeploy makes of a conversation that the assistant is to continue."""
        before = {"system": self.system, "user": self.user, "assistant": self.assistant}
        behind = {"system": self.eosys, "user": self.eoh, "assistant": self.eoa + self.separator}
        told = messages[0]["role"] == "system"
        text = "" if told or self.meta_instruction is None else self.system + self.meta_instruction + self.eosys
        text += "".join(before[one["role"]] + one["content"] + behind[one["role"]] for one in messages)
        return text + self.assistant

    def as_json(self) -> bytes:
        """The file for `lmdeploy serve api_server --chat-template`."""
        content: dict[str, Any] = {**vars(self), "stop_words": list(self.stop_words), "capability": "chat"}
        content["model_name"] = _OWN_NAME
        if self.meta_instruction is None:
            del content["meta_instruction"]
            content["model_name"] = _WITHOUT_SYSTEM
        return canonical_json(content)


def chat_form(model: Model, table: TurbomindExport) -> ChatForm | None:
    """The form of the template that a model was trained with; None where it is not asked for or there is no template.

    Raises:
        Unservable: if the form cannot say what the template does.
    """
    if table.chat_template != FROM_TEMPLATE or not model.chats:
        return None
    tokenizer = _tokenizer(model)
    prompts = Prompts(tokenizer, f"{model.checkpoint.tokenizer}: the chat template")

    def render(messages: Sequence[Message], prompt: bool) -> str:
        return prompts.text(messages, asks=prompt)

    stop_words = [str(tokenizer.convert_ids_to_tokens(id_)) for id_ in model.special.stop]
    added = tokenizer.encode("")  # such as a BOS, which LMDeploy does not take twice
    bos = tokenizer.bos_token if added[:1] == [tokenizer.bos_token_id] else None
    form = form_of(render, stop_words=stop_words, bos=bos)
    for probe in Probes.read(model.checkpoint.tokenizer).probes:
        if not all(one["role"] in _ROLES and isinstance(one.get("content"), str) for one in probe.messages):
            continue  # a tool's turn, or a call of one, which a template of LMDeploy's for these has to say
        ids = tokenizer.encode(form.prompt(probe.messages))
        ids = ids[1:] if ids[:2] == [tokenizer.bos_token_id] * 2 else ids
        if ids != list(probe.prompt_ids):
            raise _unsayable("LMDeploy lets the tokenizer add tokens to what the template gives")
    return form


_ROLES = ("system", "user", "assistant")


def form_of(render: Render, *, stop_words: Sequence[str], bos: str | None = None) -> ChatForm:
    """The form of a template.

    Args:
        render: raises TemplateFault where the template refuses a conversation.
        stop_words: text that ends an answer.
        bos: text that the tokenizer adds to the front by itself.
    Raises:
        Unservable: if the form cannot say what the template does, with an example.
    """
    render = _careful(render)
    opening, opens = _cut(render([_user(_FIRST)], True), _FIRST)
    head, later, between, last = _cut(
        render([_user(_FIRST), _assistant(_ANSWER), _user(_SECOND)], True), _FIRST, _ANSWER, _SECOND
    )
    if (head, later) != (opening, opens) or last != opens:
        raise _unsayable("earlier turns look otherwise than the one that is to be answered")
    opening = opening.removeprefix(bos or "")
    try:
        system, behind, _ = _cut(render([_system(_SYSTEM), _user(_FIRST)], True), _SYSTEM, _FIRST)
    except Unservable:
        system, behind = "", None  # the template takes no system text, or leaves it out
    system = system.removeprefix(bos or "")
    user = _common_end([text for text in (opening, between, behind) if text is not None])
    if len(user) < len(opening):  # what closes the system text may look as what closes an answer does
        user = _behind(user, stop_words, spaces=True)[1]
    eosys = behind[: len(behind) - len(user)] if behind is not None else ""
    block = opening[: len(opening) - len(user)]
    eoa, separator = _behind(between[: len(between) - len(user)], stop_words)
    eoh, assistant = _behind(opens, stop_words, spaces=True)
    form = ChatForm(system, eosys, None, user, eoh, assistant, eoa, separator, tuple(stop_words))
    if block or not (system or eosys):
        if len(block) < len(system + eosys) or not (block.startswith(system) and block.endswith(eosys)):
            raise _unsayable(f"a conversation without system text begins with {block!r}")
        form = replace(form, meta_instruction=block[len(system) : len(block) - len(eosys)])
    _compare(form, render, bos or "", takes_system=behind is not None)
    return form


def _careful(render: Render) -> Render:
    """What the template refuses cannot be said either."""

    def careful(messages: Sequence[Message], prompt: bool) -> str:
        try:
            return render(messages, prompt)
        except TemplateFault as fault:
            roles = ", ".join(message["role"] for message in messages)
            raise _unsayable(f"it refuses a conversation of {roles} ({fault.message})") from fault

    return careful


def _compare(form: ChatForm, render: Render, bos: str, *, takes_system: bool) -> None:
    """Whether other conversations come out of the form as they come out of the template."""
    talk = [_user("One?"), _assistant("1"), _user("Two\nand three?"), _assistant("2\n\n3"), _user("Four?")]
    spaced = [_user(" \n spaced \n"), _assistant("  x\n "), _user("\ty ")]
    systems = [[_system("Be brief.")], [_system(" \n spaced ")]] if takes_system else []
    for conversation in ([*talk], [*talk[:3]], *([*one, *talk] for one in systems[:1])):
        if bos + form.prompt(conversation) != _with(bos, render(conversation, True)):
            raise _unsayable("it depends on more than who speaks, such as the number of the turn")
    for conversation in (spaced, *([*one, _user("y")] for one in systems[1:])):
        if bos + form.prompt(conversation) != _with(bos, render(conversation, True)):
            raise _unsayable("it takes spaces and line ends off what is said")


def _with(bos: str, text: str) -> str:
    return bos + text.removeprefix(bos)


def _cut(text: str, *marks: str) -> list[str]:
    """The text before, between and behind marks that it holds once each, in their order."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            raise _unsayable("it does not show each message once, as it was said, in their order")
        parts.append(before)
    return [*parts, text]


def _common_end(texts: Sequence[str]) -> str:
    shortest = min(texts, key=len)
    start = next(i for i in range(len(shortest) + 1) if all(text.endswith(shortest[i:]) for text in texts))
    return shortest[start:]


def _behind(text: str, stop_words: Sequence[str], *, spaces: bool = False) -> tuple[str, str]:
    """What closes a message, up to its last closing token, and what follows."""
    ends = [text.rfind(word) + len(word) for word in stop_words if word in text]
    end = max(ends, default=0)
    while spaces and end and text[end : end + 1].isspace():
        end += 1
    return text[:end], text[end:]


def _unsayable(reason: str) -> Unservable:
    return Unservable(
        f"the chat template cannot be said in LMDeploy's JSON form: {reason}; name a built-in template of LMDeploy "
        "that fits (`lmdeploy list`), or base, and prompt the server with text",
        key=KEY,
    )


def _tokenizer(model: Model) -> Any:
    from transformers import AutoTokenizer  # imports torch

    with TemporaryDirectory() as folder:
        model.write_files(Path(folder))
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _system(content: str) -> Message:
    return {"role": "system", "content": content}


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
