"""The named templates: fixed strings around system, user and assistant text, most after XTuner's of the same names.

A conversation is a sequence of turns: a system text, the user's text, the answer; one of the first two may be missing.
Each turn is laid out as

    BOS                 in the first turn, and again after a turn that ended with EOS
    system + user text  one text, with the template's strings around both
    answer + closing    one text
    EOS                 unless the closing plays its part
    separator           one text

Each of these texts is tokenized by itself, as one that opens: a tokenizer that puts a space before texts does so
here, and the Jinja form for export writes that space.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tomli

from pipelines.errors import ConfigError
from prep.conversation import Conversation, RecordError
from prep.spans import Span, cut, extend
from prep.tokenizer import Tokenizer


@dataclass(frozen=True)
class Layout:
    """The strings of one named template."""

    name: str
    user: tuple[str, str]
    """Before and behind the user's text; what is behind it opens the answer."""
    separator: str
    """Behind each turn."""
    system: tuple[str, str] | None = None
    """Before and behind the system text; None where there cannot be one."""
    closing: str = ""
    """Behind each answer."""
    closing_is_eos: bool = False
    """No EOS token follows, and no BOS opens the next turn."""
    stop: tuple[str, ...] = ()
    """Special tokens that end an answer besides closing and EOS."""


@cache
def layouts() -> Mapping[str, Layout]:
    """Every named template by its name."""
    tables = tomli.loads((Path(__file__).parent / "templates" / "named.toml").read_text(encoding="utf-8"))
    return {name: _layout(name, tables[table.get("same_as", name)]) for name, table in tables.items()}


def _layout(name: str, table: Mapping[str, Any]) -> Layout:
    return Layout(
        name=name,
        user=tuple(table["user"]),
        separator=table["separator"],
        system=tuple(table["system"]) if "system" in table else None,
        closing=table.get("closing", ""),
        closing_is_eos=table.get("closing_is_eos", False),
        stop=tuple(table.get("stop", ())),
    )


class NamedTemplate:
    """Conversations to spans by a layout.

    Args:
        layout: the template's strings.
        tokenizer: says which of them are special tokens, and has BOS and EOS.
        bos: "auto": BOS where the layout says, if the tokenizer has one; "always": it must have one; "never".
        eos: "auto": turns end with EOS as the layout says; "always": also behind a closing that plays its part;
            "never": not at all.
        end_of_turn: closing and EOS carry loss as the answer does.
        escape: special-token text in messages stays plain text; otherwise it becomes the special token.
    Raises:
        ConfigError: if the tokenizer lacks a token without which answers would not end.
    """

    def __init__(
        self, layout: Layout, tokenizer: Tokenizer, *, bos: str, eos: str, end_of_turn: bool, escape: bool
    ) -> None:
        self._layout = layout
        self._tokenizer = tokenizer
        self._end_of_turn = end_of_turn
        self._escape = escape
        self._bos = _bos(tokenizer, layout) if bos != "never" else ()
        if bos == "always" and not self._bos:
            raise ConfigError('template.bos = "always": the tokenizer has no bos_token to begin with; set it to "auto"')
        self._appends_eos = eos == "always" or (eos == "auto" and not layout.closing_is_eos)
        self._eos = tokenizer.named_tokens.get("eos_token", "") if self._appends_eos else ""
        if self._appends_eos and not self._eos:
            raise ConfigError(
                f"template.name = {layout.name!r} ends answers with EOS, and the tokenizer has no eos_token"
            )
        self._counts_rounds = any("{round}" in text for text in layout.user)
        self._constants: dict[tuple[str, bool, bool], list[Span]] = {}
        if layout.closing_is_eos and layout.closing not in tokenizer.special_tokens:
            raise ConfigError(
                f"template.name = {layout.name!r} ends answers with {layout.closing!r}, which is not a special token "
                "of the tokenizer; choose another template, or add the token"
            )

    @property
    def stop_tokens(self) -> list[int]:
        """Ids that end an answer."""
        texts = (self._layout.closing, self._eos, *self._layout.stop)
        ids = (self._tokenizer.special_tokens.get(text) for text in texts)
        return [*dict.fromkeys(id_ for id_ in ids if id_ is not None)]

    def spans(self, conversation: Conversation, trained: Sequence[bool]) -> list[Span]:
        """The whole conversation.

        Args:
            conversation: what to render.
            trained: [messages] whether the message's text carries loss.
        Raises:
            RecordError: for a message that has no place in turns.
        """
        spans: list[Span] = []
        for number, turn in enumerate(self._turns(conversation, trained), 1):
            if turn.answer is None:
                raise RecordError(
                    f"messages[{len(conversation.messages) - 1}]",
                    "the conversation ends before an answer; remove what follows the last assistant message",
                )
            self._question(spans, turn, number)
            self._answer(spans, *turn.answer)
        return spans

    def prompt(self, conversation: Conversation) -> list[Span]:
        """The conversation up to where the next answer begins."""
        spans: list[Span] = []
        for number, turn in enumerate(self._turns(conversation, [False] * len(conversation.messages)), 1):
            self._question(spans, turn, number)
            if turn.answer:
                self._answer(spans, *turn.answer)
        return spans

    def _turns(self, conversation: Conversation, trained: Sequence[bool]) -> Iterator["_Turn"]:
        if conversation.tools:
            raise RecordError("tools", f"the {self._layout.name} template has no form for tools")
        turn = _Turn()
        for index, (message, train) in enumerate(zip(conversation.messages, trained, strict=True)):
            path = f"messages[{index}]"
            if message.extra:
                raise RecordError(
                    f"{path}.{next(iter(message.extra))}", f"the {self._layout.name} template has no form for it"
                )
            assert message.content is not None  # only where there are tool calls
            text = (message.content, train)
            if message.role == "system":
                if turn.system or turn.user:
                    raise RecordError(path, "a system message stands alone before a turn's user message")
                if message.content and self._layout.system is None:
                    raise RecordError(path, f"the {self._layout.name} template has no form for a system message")
                turn.system = text if message.content else None
            elif message.role == "user":
                turn.user.append(text)
            elif message.role == "assistant":
                if not turn.user and not turn.system:
                    raise RecordError(path, "an assistant message without a user message before it")
                turn.answer = text
                yield turn
                turn = _Turn()
            else:
                raise RecordError(f"{path}.role", f'expected "system", "user" or "assistant", found "{message.role}"')
        if turn.user or turn.system:
            yield turn

    def _question(self, spans: list[Span], turn: "_Turn", number: int) -> None:
        if number == 1 or self._appends_eos:
            spans += (Span(text, special=True) for text in self._bos)
        before, behind = self._layout.user
        if self._counts_rounds:
            before, behind = before.replace("{round}", str(number)), behind.replace("{round}", str(number))
        parts: list[_Part] = []
        if turn.system:
            assert self._layout.system is not None  # checked with the turns
            parts += [_Part(self._layout.system[0]), _Part(*turn.system, ours=False), _Part(self._layout.system[1])]
        if turn.user:
            parts.append(_Part(before))
            parts += [_Part(text, train, ours=False) for text, train in turn.user]
            closing = self._layout.closing
            if self._end_of_turn and closing and turn.user[-1][1] and behind.startswith(closing):
                parts.append(_Part(closing, True))
                behind = behind.removeprefix(closing)
        parts.append(_Part(behind))
        self._text(spans, parts)

    def _answer(self, spans: list[Span], content: str, train: bool) -> None:
        closes = train and self._end_of_turn
        self._text(spans, (_Part(content, train, ours=False), _Part(self._layout.closing, closes)))
        if self._eos:
            spans.append(Span(self._eos, closes, special=True))
        self._text(spans, (_Part(self._layout.separator),))

    def _text(self, spans: list[Span], parts: Iterable["_Part"]) -> None:
        """Append parts that are tokenized as one text."""
        opens = True
        for text, loss, ours in parts:
            if not text:
                continue
            if ours:
                more = self._constants.get((text, loss, opens))
                if more is None:
                    more = self._constants[text, loss, opens] = cut(text, self._tokenizer, opens=opens, loss=loss)
            elif self._escape:
                more = [Span(text, loss, opens=opens)]
            else:
                more = cut(text, self._tokenizer, opens=opens, loss=loss)
            extend(spans, more)
            opens = more[-1].special and self._tokenizer.prefix == "always"

    @cached_property
    def jinja(self) -> str:
        """The same layout as a chat template for Transformers, which tokenizes the whole rendering at once."""
        layout = self._layout
        before, behind = layout.user
        content = "message['content']"
        if layout.system is None:
            system = "{%- if message['content'] -%}{{- raise_exception('this template takes no system message') -}}"
        else:
            prefix, suffix = layout.system
            system = (
                "{%- if message['content'] -%}"
                + self._opening(prefix or "text")
                + _put(_quote(prefix), content, _quote(suffix))
            )
        answer_space = self._space(behind, "answer")
        answered = layout.closing + self._eos or "answer"
        separator = self._space(answered, layout.separator) + layout.separator if layout.separator else ""
        return "".join(
            (
                "{%- set ns = namespace(turn=0, begun=false, asked=false) -%}\n",
                "{%- for message in messages -%}\n",
                "{%- if message['role'] == 'system' and not ns.begun -%}\n",
                system + "{%- endif -%}\n",
                "{%- elif message['role'] == 'user' -%}\n",
                "{%- if not ns.asked -%}" + self._opening(before),
                _put(_quote(before).replace("{round}", '" ~ ns.turn ~ "')),
                "{%- set ns.asked = true -%}{%- endif -%}\n",
                _put(content) + "\n",
                "{%- elif message['role'] == 'assistant' and ns.begun -%}\n",
                _put(_quote(behind)) + "\n{%- generation -%}",
                _put(_quote(answer_space), content, _quote(layout.closing + self._eos)),
                "{%- endgeneration -%}\n",
                _put(_quote(separator)) + "\n",
                "{%- set ns.asked = false -%}{%- set ns.begun = false -%}\n",
                "{%- else -%}\n",
                "{{- raise_exception('this template takes an optional system message, user messages and an assistant "
                "message, again and again; found ' ~ message['role'] ~ ' out of place') -}}\n",
                "{%- endif -%}\n{%- endfor -%}\n",
                "{%- if ns.begun -%}" + _put(_quote(behind)) + "{%- endif -%}\n",
            )
        )

    def _opening(self, text: str) -> str:
        """What stands before the text that a turn begins with."""
        bos = "".join(self._bos)
        answered = self._layout.separator or self._layout.closing + self._eos or "answer"
        first = bos + self._space(bos, text)
        again = (bos if self._appends_eos else "") + self._space(bos if bos and self._appends_eos else answered, text)
        put = _put(_quote(first)) if first == again else _put(f"{_quote(first)} if ns.turn == 1 else {_quote(again)}")
        return (
            "{%- if not ns.begun -%}{%- set ns.begun = true -%}{%- set ns.turn = ns.turn + 1 -%}"
            + (put if first or again else "")
            + "{%- endif -%}"
        )

    def _space(self, before: str, text: str) -> str:
        """The space that the tokenizer puts before `text` as one of its own, but not where it follows `before`."""
        if not before or self._tokenizer.split(text)[0][1] is not None:
            return ""
        after_special = self._tokenizer.split(before)[-1][1] is not None
        missing = self._tokenizer.prefix == "first" if after_special else self._tokenizer.prefix != "none"
        return " " if missing else ""


def _put(*expressions: str) -> str:
    kept = [expression for expression in expressions if expression != '""'] or ['""']
    return "{{- " + " + ".join(kept) + " -}}"


def _quote(text: str) -> str:
    """A Jinja string."""
    return json.dumps(text, ensure_ascii=False)


@dataclass
class _Turn:
    """One turn; every text with whether it is trained."""

    system: tuple[str, bool] | None = None
    user: list[tuple[str, bool]] = field(default_factory=list)
    answer: tuple[str, bool] | None = None


class _Part(NamedTuple):
    text: str
    loss: bool = False
    ours: bool = True
    """Written by the template, so its special tokens are meant."""


def _bos(tokenizer: Tokenizer, layout: Layout) -> tuple[str, ...]:
    # Some families begin a text in their own way, which their settings do not tell.
    if tokenizer.kind in ("QWenTokenizer", "QWen2Tokenizer", "Qwen2Tokenizer"):
        return ()
    if tokenizer.kind == "ChatGLMTokenizer" and {"[gMASK]", "sop"} <= tokenizer.special_tokens.keys():
        return ("[gMASK]", "sop")
    if tokenizer.bos_id is None and {"[gMASK]", "<sop>"} <= tokenizer.special_tokens.keys():  # GLM 4
        return ("[gMASK]", "<sop>")
    bos = tokenizer.named_tokens.get("bos_token", "")
    # Some tokenizers call the token that opens every message their BOS; there is one already then.
    return (bos,) if bos in tokenizer.special_tokens and not layout.user[0].startswith(bos) else ()
