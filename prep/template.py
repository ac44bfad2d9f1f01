"""The one object that renders training samples, prompts and the exported chat template, so that they cannot drift.

It is built from [template] and a tokenizer. A sample is made in two steps: `render` turns a conversation into spans,
each one special token or one run of plain text with a single answer to "does it carry loss?", and the runs are
tokenized. So masks come from what was rendered, never from searching text, and text that spells a special token
stays text.
"""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Protocol

from pipelines import schema
from pipelines.errors import ConfigError
from prep.chat_template import ChatTemplate
from prep.conversation import Conversation, Json, Message, RecordError
from prep.named_template import NamedTemplate, layouts
from prep.plain_text import PlainText
from prep.spans import Span, audible
from prep.tokenizer import Tokenizer


class Template:
    """Conversations to tokens with loss.

    Args:
        settings: the [template] table.
        tokenizer: what tokenizes, and whose chat template `name = "tokenizer"` takes.
        expendable: this process may be lost to a chat template that takes too much; otherwise another renders it.
    Raises:
        ConfigError: if the settings and the tokenizer do not go together.
    """

    def __init__(self, settings: schema.Template, tokenizer: Tokenizer, *, expendable: bool = False) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._escape = settings.special_text != "allow"
        self._renderer = _renderer(settings, tokenizer, expendable)
        self._bos = tokenizer.named_tokens.get("bos_token", "")
        self._special = re.compile("|".join(map(re.escape, filter(None, tokenizer.special_tokens))) or "(?!)")

    @property
    def jinja(self) -> str | None:
        """The chat template to export; None where samples are plain text."""
        jinja = self._renderer.jinja
        return jinja and _default_system(self._settings.system) + jinja

    @property
    def stop_tokens(self) -> Sequence[int]:
        """Ids that end an answer."""
        return self._renderer.stop_tokens

    def render(self, conversation: Conversation) -> list[Span]:
        """The conversation as it is trained on.

        Raises:
            RecordError: if it has no form in this template, or special_text = "error" finds such text in it.
            RunawayTemplate: if the template takes too much.
        """
        try:
            conversation = self._prepared(conversation)
            spans = self._renderer.spans(conversation, _trained(conversation.messages, self._settings.loss))
        except RecursionError as error:  # a map of the user's own can return anything
            raise RecordError("messages", "nested too deep; flatten what its tools and tool calls hold") from error
        _refuse_half_pairs(spans)
        if len(spans) > 1 and spans[0].special and spans[:2] == [spans[0]] * 2 and spans[0].text == self._bos:
            raise RecordError("", f"begins with {self._bos} twice; let the template write it once")
        rendered = spans[1:] if spans[:1] and spans[0].special else spans  # BOS is never trained
        if self._settings.name != "none" and rendered and all(span.loss for span in rendered):
            raise RecordError(
                "",
                "every token would carry loss; does a generation block of the template enclose more than the answers, "
                "do template.loss.roles and the messages' own loss leave no message out, or is it plain text, which "
                'wants template = "none"?',
            )
        return spans

    def sample(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """Token ids and, for each, whether it is trained as a target."""
        return self.tokens(self.render(conversation))

    def prompt(self, conversation: Conversation) -> list[int]:
        """Token ids up to where the next answer begins."""
        return self.tokens(self._renderer.prompt(self._prepared(conversation)))[0]

    def served(self, conversation: Conversation) -> list[int]:
        """`prompt` as a reader of the exported template gets it, who tokenizes the whole rendering at once.

        It differs where a token reaches across the beginning of an earlier answer, for instance where a template
        ends the question with a space, and where a special token swallows whitespace that is text to us.
        """
        assert self.jinja is not None
        reader = ChatTemplate(self.jinja, self._tokenizer, end_of_turn=True, escape=self._escape)
        return self.tokens(reader.whole(conversation))[0]

    def tokens(self, spans: Sequence[Span]) -> tuple[list[int], list[bool]]:
        """Token ids of rendered spans, and whether each carries loss."""
        plain = [span for span in spans if not span.special]
        runs = iter(self._tokenizer.encode_batch([span.text for span in plain], [span.opens for span in plain]))
        special = self._tokenizer.special_tokens
        tokens: list[int] = []
        loss: list[bool] = []
        for span in spans:
            ids = [special[span.text]] if span.special else next(runs)
            tokens += ids
            loss += audible(span, ids, self._tokenizer) if span.mute else [span.loss] * len(ids)
        return tokens, loss

    def _prepared(self, conversation: Conversation) -> Conversation:
        """With the default system text, and nothing in it that the settings refuse."""
        for index, message in enumerate(conversation.messages):
            if not _ROLE.fullmatch(message.role):
                raise RecordError(f"messages[{index}].role", f"expected a word, found {message.role!r}")
        if self._settings.special_text == "error":
            self._refuse_special_text(conversation)
        system = self._settings.system
        if system and all(message.role != "system" for message in conversation.messages):
            return Conversation((Message("system", system), *conversation.messages), conversation.tools)
        return conversation

    def _refuse_special_text(self, conversation: Conversation) -> None:
        tables: list[Json] = [[message.content, dict(message.extra)] for message in conversation.messages]
        for path, value in (
            *((f"messages[{i}]", table) for i, table in enumerate(tables)),
            ("tools", conversation.tools),
        ):
            if found := next((match for text in _texts(value) if (match := self._special.search(text))), None):
                raise RecordError(path, f'holds the special token {found.group()!r} as text (special_text = "error")')


def is_program(settings: schema.Template) -> bool:
    """Whether a [template] table names a chat template, which is somebody's program, and not fixed text."""
    return settings.name in ("tokenizer", "custom")


class _Renderer(Protocol):
    @property
    def jinja(self) -> str | None: ...
    @property
    def stop_tokens(self) -> Sequence[int]: ...
    def spans(self, conversation: Conversation, trained: Sequence[bool]) -> list[Span]: ...
    def prompt(self, conversation: Conversation) -> list[Span]: ...


_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_ -]*")


_ELSEWHERE = {
    "chatml": "qwen_chat",
    "qwen": "qwen_chat",
    "llama3": "llama3_chat",
    "intern2": "internlm2_chat",
    "tokenizer_default": "tokenizer",
}
"""What axolotl and LLaMA-Factory call a template, and its name here."""


def _renderer(settings: schema.Template, tokenizer: Tokenizer, expendable: bool) -> _Renderer:
    escape, end_of_turn = settings.special_text != "allow", settings.loss.end_of_turn
    if settings.name == "none":
        return PlainText(tokenizer, bos=settings.bos, eos=settings.eos, escape=escape)
    if (layout := layouts().get(settings.name)) is not None:
        return NamedTemplate(
            layout, tokenizer, bos=settings.bos, eos=settings.eos, end_of_turn=end_of_turn, escape=escape
        )
    if not is_program(settings):
        names = ("tokenizer", "custom", "none", *layouts())
        near = [_ELSEWHERE.get(settings.name.lower(), "")] if settings.name.lower() in _ELSEWHERE else []
        near = near or get_close_matches(settings.name, names, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
        raise ConfigError(f"template.name = {settings.name!r}: no such template, {hint}")
    if other := [role for role in settings.loss.roles if role != "assistant"]:
        raise ConfigError(
            f"template.loss.roles names {other[0]!r}, but a chat template shows only which text is the assistant's; "
            "use one of the named templates"
        )
    source, origin = _chat_template(settings, tokenizer)
    return ChatTemplate(
        source,
        tokenizer,
        end_of_turn=end_of_turn,
        tool_calls=settings.loss.tool_calls,
        reasoning=settings.loss.reasoning,
        escape=escape,
        origin=origin,
        expendable=expendable,
    )


def _chat_template(settings: schema.Template, tokenizer: Tokenizer) -> tuple[str, str]:
    """The Jinja text, and what an error calls it."""
    if settings.file is not None:
        try:
            return settings.file.read_text(encoding="utf-8"), str(settings.file)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"template.file = {str(settings.file)!r}: cannot be read as UTF-8 text: {error}"
            ) from error
    if tokenizer.chat_template is None:
        raise ConfigError(
            f'template.name = "tokenizer": {tokenizer.folder} has no chat template; name one of {", ".join(layouts())}'
        )
    return tokenizer.chat_template, "the chat template"


def _trained(messages: Sequence[Message], rule: schema.Loss) -> list[bool]:
    """Whether each message carries loss."""
    chosen = [index for index, message in enumerate(messages) if message.role in rule.roles]
    chosen = chosen[-1:] if rule.turns == "last" else chosen
    return [index in chosen if message.loss is None else message.loss for index, message in enumerate(messages)]


def _refuse_half_pairs(spans: Sequence[Span]) -> None:
    """Half a surrogate pair comes out of JSON in a string of a record, and out of maps; no tokenizer takes it."""
    for span in spans:
        if not span.text.isascii():
            try:
                span.text.encode()
            except UnicodeEncodeError as error:
                half = ascii(span.text[error.start])
                raise RecordError("messages", f"holds {half}, half of a surrogate pair; remove it") from error


def _default_system(system: str) -> str:
    """Jinja that gives a conversation without a system message the default one."""
    if not system:
        return ""
    text = system.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return (
        "{%- if messages | selectattr('role', 'equalto', 'system') | list | length == 0 -%}"
        f"{{%- set messages = [{{'role': 'system', 'content': \"{text}\"}}] + messages -%}}"
        "{%- endif -%}"
    )


def _texts(value: Json) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in _texts(part)]
    return [text for part in value for text in _texts(part)] if isinstance(value, list | tuple) else []
