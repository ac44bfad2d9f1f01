"""A Jinja chat template, rendered as Transformers renders it, that knows which of its output is an answer.

Answers are found in one of three ways, never by searching the output for their text:

- `{% generation %}` blocks in the template say so themselves;
- otherwise by prefixes: the conversation before an answer, rendered with the generation prompt, must be how the
  rendering with the answer begins, and that must be how the whole rendering begins;
- where later messages change how an answer is rendered (Qwen3 drops earlier reasoning), by the generation prompt: an
  answer is what stands between it and the closing token, if it holds special tokens, which no text of a message can
  spell, stands there once for each answer, and every message's content lies on its side of these borders.

A clock has no place in data: `strftime_now` is undefined here, and templates that can do without it fall back to
their fixed date. The exported template is fixed to the same.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from pipelines.bounds import USUAL, Bounds, RunawayTemplate
from pipelines.errors import ConfigError
from pipelines.template_process import TemplateFault
from prep.conversation import Conversation, Json, Message, RecordError
from prep.jinja import MARKS, Elsewhere, Here, Rendering
from prep.spans import Span, cut
from prep.stand_ins import Place, Shield, StandIns, strings
from prep.tokenizer import Tokenizer

_NO_CLOCK = "{%- set strftime_now = undefined -%}"
"""Before a template that asks for the date: the name becomes undefined in Transformers too."""


class ChatTemplate:
    """Conversations to spans by a Jinja template.

    Args:
        source: the template's text.
        tokenizer: finds the special tokens in what is rendered.
        end_of_turn: answers' closing token carries loss as they do.
        tool_calls: what answers' tool calls are rendered as carries loss as they do.
        reasoning: what answers' reasoning_content is rendered as carries loss as they do.
        escape: special-token text in messages stays plain text; otherwise it becomes the special token.
        origin: what an error names the template by.
        expendable: this process may be lost, so the template is rendered in it and not by another.
    Raises:
        ConfigError: if the template is not valid, or takes too much.
    """

    def __init__(
        self,
        source: str,
        tokenizer: Tokenizer,
        *,
        end_of_turn: bool,
        escape: bool,
        tool_calls: bool = True,
        reasoning: bool = True,
        origin: str = "the chat template",
        expendable: bool = False,
    ) -> None:
        self.jinja = _NO_CLOCK + source if "strftime_now" in source else source
        """The template as it is exported."""
        self._tokenizer = tokenizer
        self._end_of_turn = end_of_turn
        self._tool_calls = tool_calls
        self._reasoning = reasoning
        self._origin = origin
        self._shield = Shield(tokenizer if escape else None, source)
        name = f"{origin} of {tokenizer.folder}" if origin == "the chat template" else origin
        self._template: Rendering
        try:
            self._template = (Here if expendable else Elsewhere)(source, name)
        except TemplateFault as fault:
            raise ConfigError(f"{origin}:{fault.line}: {fault.message}") from fault
        except RunawayTemplate as error:
            raise ConfigError(str(error)) from error
        self._formless = [key for key, names in _FORMS.items() if not any(name in source for name in names)]
        self._marks_answers = bool(re.search(r"\{%[-+]?\s*generation\b", source))
        try:
            with self._template.within(USUAL):
                self._closing = self._closing_token()
        except RunawayTemplate as error:
            raise ConfigError(str(error)) from error

    @property
    def stop_tokens(self) -> list[int]:
        """Ids that end an answer."""
        ids = (self._tokenizer.special_tokens.get(self._closing or ""), self._tokenizer.eos_id)
        return [*dict.fromkeys(id_ for id_ in ids if id_ is not None)]

    def spans(self, conversation: Conversation, trained: Sequence[bool]) -> list[Span]:
        """The whole conversation.

        Args:
            conversation: what to render.
            trained: [messages] whether the message carries loss; only an assistant's can.
        Raises:
            RecordError: if the template refuses it, or its answers cannot be told apart.
            RunawayTemplate: if it takes too much.
        """
        with self._template.within(_bounds(conversation)):
            return self._spans(conversation, trained)

    def _spans(self, conversation: Conversation, trained: Sequence[bool]) -> list[Span]:
        for index, (message, train) in enumerate(zip(conversation.messages, trained, strict=True)):
            if train and not _answers(message):
                raise RecordError(
                    f"messages[{index}].loss",
                    f"{self._origin} shows only which text is the assistant's, not that of role {message.role!r}",
                )
        self._refuse_formless(conversation)
        flags = [train for message, train in zip(conversation.messages, trained, strict=True) if _answers(message)]
        stand_ins = self._shield.stand_ins(conversation)
        if self._marks_answers:
            text, answers = self._marked(conversation, stand_ins, flags)
        else:
            text, answers = self._unmarked(conversation, stand_ins, flags)
        mute: list[Place] = []
        if not self._reasoning:
            mute += self._thoughts(conversation, trained, stand_ins, text)
        if not self._tool_calls:
            mute += self._calls(conversation, trained, stand_ins, text)
        return self._cut(text, answers, stand_ins, sorted(mute))

    def prompt(self, conversation: Conversation) -> list[Span]:
        """The conversation up to where the next answer begins, in the runs it is trained in.

        Raises:
            RecordError, RunawayTemplate: as for `spans`.
        """
        with self._template.within(_bounds(conversation)):
            return self._prompt(conversation)

    def _prompt(self, conversation: Conversation) -> list[Span]:
        self._refuse_formless(conversation)
        flags = [False for message in conversation.messages if _answers(message)]
        stand_ins = self._shield.stand_ins(conversation)
        text, answers = stand_ins.unmark(self._render(conversation, conversation.messages, stand_ins, prompt=True))
        if not self._marks_answers:
            earlier, found = self._unmarked(conversation, stand_ins, flags)
            answers = [(begin, end) for begin, end, _ in found]
            if answers and not text.startswith(earlier[: answers[-1][1]]):
                raise RecordError("messages", f"{self._origin} renders earlier answers otherwise when it asks for one")
        return self._cut(text, [(begin, end, False) for begin, end in answers], stand_ins)

    def whole(self, conversation: Conversation) -> list[Span]:
        """`prompt` as a reader of the template tokenizes it, who does not know where answers begin."""
        stand_ins = self._shield.stand_ins(conversation)
        with self._template.within(_bounds(conversation)):
            text, _ = stand_ins.unmark(self._render(conversation, conversation.messages, stand_ins, prompt=True))
            return self._cut(text, [], stand_ins)

    def _refuse_formless(self, conversation: Conversation) -> None:
        for key in self._formless:
            paths = [f"messages[{i}].{key}" for i, message in enumerate(conversation.messages) if key in message.extra]
            if paths or (key == "tools" and conversation.tools):
                raise RecordError(
                    paths[0] if paths else key,
                    f"{self._origin} has no form for it and would leave it out; name a template that has, or let a "
                    "python map take it out of the record",
                )

    def _marked(
        self, conversation: Conversation, stand_ins: StandIns, flags: Sequence[bool]
    ) -> tuple[str, list["_Answer"]]:
        text, places = stand_ins.unmark(self._render(conversation, conversation.messages, stand_ins))
        if len(places) != len(flags) and len(set(flags)) > 1:
            raise RecordError(
                "messages",
                f"{self._origin} marks {len(places)} answers in {len(flags)} assistant messages, so that one message "
                "cannot be trained and another not; use a named template, or give all of them the same loss",
            )
        same = len(places) == len(flags)
        return text, [(begin, end, flags[index] if same else any(flags)) for index, (begin, end) in enumerate(places)]

    def _unmarked(
        self, conversation: Conversation, stand_ins: StandIns, flags: Sequence[bool]
    ) -> tuple[str, list["_Answer"]]:
        try:
            return self._by_prefix(conversation, stand_ins, flags)
        except _ChangedLaterError:
            text = self._render(conversation, conversation.messages, stand_ins)
            places = self._by_header(conversation, stand_ins, text) or self._by_prompt(conversation, stand_ins, text)
            if places is None:
                raise
            return text, [(begin, end, train) for (begin, end), train in zip(places, flags, strict=True)]

    def _by_header(self, conversation: Conversation, stand_ins: StandIns, text: str) -> list[Place] | None:
        """Where each answer is in the rendered text; None where that is not certain."""
        messages = conversation.messages
        first = next(index for index, message in enumerate(messages) if _answers(message))
        before = self._render(conversation, messages[:first], stand_ins)
        asked = self._render(conversation, messages[:first], stand_ins, prompt=True)
        header = asked.removeprefix(before) if asked.startswith(before) else ""
        if self._closing is None or all(id_ is None for _, id_ in self._tokenizer.split(header)):
            return None
        answered = [index for index, message in enumerate(messages) if _answers(message)]
        if text.count(header) != len(answered):  # or the search below would take the square of the text
            return None
        pattern = f"{re.escape(header)}(.*?){re.escape(self._closing)}"
        places = [found.span(1) for found in re.finditer(pattern, text, re.DOTALL)]
        places = [(begin, end + len(self._closing)) for begin, end in places]
        if len(places) != len(answered):
            return None
        contents = self._contents(conversation, stand_ins, text)
        if contents is None:
            return None
        own = dict(zip(answered, places, strict=True))
        for index, (begin, end) in contents.items():
            if any((first <= begin and end <= last) != (index == i) for i, (first, last) in own.items()):
                return None
        for index in answered:
            if "tool_calls" in messages[index].extra:
                place = self._call(conversation, index, stand_ins, text)
                if place is None or not own[index][0] <= place[0] <= place[1] <= own[index][1]:
                    return None
        return places

    def _by_prompt(self, conversation: Conversation, stand_ins: StandIns, text: str) -> list[Place] | None:
        """Where each answer is if what stands behind the last one alone differs; None where that is not certain.

        An answer begins behind its prompt and ends with the special token behind its content, behind which the next
        message begins. An earlier one that ends otherwise than the last, with no end of what is generated, is trained
        without that token.
        """
        messages = conversation.messages
        contents = self._contents(conversation, stand_ins, text)
        opener = self._opener(stand_ins)
        if contents is None or opener is None:
            return None
        places: list[Place] = []
        for index, message in enumerate(messages):
            if not _answers(message):
                continue
            prompt = self._render(conversation, messages[:index], stand_ins, prompt=True)
            if index not in contents or "tool_calls" in message.extra or not text.startswith(prompt):
                return None
            begin, end = contents[index]
            if begin < len(prompt):
                return None
            last = index + 1 == len(messages)
            if not last and index + 1 not in contents:
                return None
            behind = text[end:] if last else text[end : contents[index + 1][0]]
            parts = self._parts(behind)
            if parts and _separates(parts[0]):
                parts = parts[1:]
            if not parts or parts[0][1] is None or not (last or behind[parts[0][2] :].lstrip().startswith(opener)):
                return None
            places.append((len(prompt), end + parts[0][2] if parts[0][0] == self._closing else end))
        return places

    def _opener(self, stand_ins: StandIns) -> str | None:
        """The special token that messages begin with, found by rendering one."""
        question = (Message("user", "question"),)
        text = self._render(Conversation(question), question, stand_ins)
        bos = self._tokenizer.bos_id
        return next((part for part, id_ in self._tokenizer.split(text) if id_ is not None and id_ != bos), None)

    def _contents(self, conversation: Conversation, stand_ins: StandIns, text: str) -> Mapping[int, Place] | None:
        """Where the rendered text has the content of each message, none repeated, left out or changed; else None."""
        messages = conversation.messages
        cores = {
            i: stand_ins.hide(m.content).strip() for i, m in enumerate(messages) if m.content and m.content.strip()
        }
        rendered = self._render(conversation, messages, stand_ins, quiet=dict.fromkeys(cores, ("content",)))
        unmarked, places = stand_ins.unquiet(rendered)
        if unmarked != text or places is None or [text[a:b] for a, b in places] != [*cores.values()]:
            return None
        return dict(zip(cores, places, strict=True))

    def _by_prefix(
        self, conversation: Conversation, stand_ins: StandIns, flags: Sequence[bool]
    ) -> tuple[str, list["_Answer"]]:
        whole = self._render(conversation, conversation.messages, stand_ins)
        answers: list[_Answer] = []
        train = iter(flags)
        for index, message in enumerate(conversation.messages):
            if not _answers(message):
                continue
            before = self._render(conversation, conversation.messages[:index], stand_ins, prompt=True)
            last = index + 1 == len(conversation.messages)
            after = whole if last else self._render(conversation, conversation.messages[: index + 1], stand_ins)
            if not (after.startswith(before) and whole.startswith(after)):
                changed = after.startswith(before)
                reason = (
                    "later messages change how it is rendered (reasoning belongs into reasoning_content, not content)"
                    if changed
                    else ("its generation prompt is not how the answer begins")
                )
                raise (_ChangedLaterError if changed else RecordError)(
                    f"messages[{index}]",
                    f"{self._origin} does not show which text of it is the answer: {reason}; use a template with "
                    "generation blocks, or one of the named templates",
                )
            end = len(before) + self._end(after[len(before) :])
            answers.append((len(before), end, next(train)))
        return whole, answers

    def _end(self, text: str) -> int:
        """Where an answer ends in what is rendered from its beginning on.

        Whitespace behind a special token separates turns. So does whitespace behind the closing token where special
        tokens alone follow, such as an EOS behind the last turn.
        """
        parts = self._parts(text)
        closing = max((at for at, (part, _, _) in enumerate(parts) if part == self._closing), default=len(parts))
        behind = parts[closing + 1 :]
        if behind and _separates(behind[0]) and all(id_ is not None or part.isspace() for part, id_, _ in behind):
            return parts[closing][2]
        return parts[-2][2] if len(parts) > 1 and _separates(parts[-1]) else len(text)

    def _parts(self, text: str) -> list["_Part"]:
        """Text cut at its special tokens; one that swallows whitespace ends behind it."""
        parts = self._tokenizer.split(text)
        begins, at = [], 0
        for part, _ in parts:
            begins.append(text.index(part, at))
            at = begins[-1] + len(part)
        ends = [*begins[1:], len(text)]
        return [(part, id_, end) for (part, id_), end in zip(parts, ends, strict=True)]

    def _thoughts(
        self, conversation: Conversation, trained: Sequence[bool], stand_ins: StandIns, text: str
    ) -> list[Place]:
        """Where the rendered text has reasoning of trained messages: between marks that are put around it."""
        messages = conversation.messages
        chosen = [i for i, train in enumerate(trained) if train and messages[i].extra.get("reasoning_content")]
        if not chosen:
            return []
        rendered = self._render(conversation, messages, stand_ins, quiet=dict.fromkeys(chosen, _REASONING))
        unmarked, places = stand_ins.unquiet(rendered)
        if unmarked != text or places is None:
            raise RecordError(
                f"messages[{chosen[0]}].reasoning_content",
                f"{self._origin} changes it, so that its text cannot be told from the answer's; set "
                "template.loss.reasoning = true, or use a template that writes it as it is",
            )
        return places

    def _calls(
        self, conversation: Conversation, trained: Sequence[bool], stand_ins: StandIns, text: str
    ) -> list[Place]:
        """Where the rendered text has tool calls of trained messages: what is missing when it is rendered without."""
        places = []
        messages = conversation.messages
        for index, message in enumerate(messages):
            if trained[index] and "tool_calls" in message.extra:
                place = self._call(conversation, index, stand_ins, text)
                if place is None:
                    raise RecordError(
                        f"messages[{index}].tool_calls",
                        f"{self._origin} renders the message otherwise without them, so that their text cannot be told "
                        "from the rest; set template.loss.tool_calls = true, or use another template",
                    )
                places.append(place)
        return places

    def _call(self, conversation: Conversation, index: int, stand_ins: StandIns, text: str) -> Place | None:
        """The part of the text that a message adds to what stands there without its tool calls."""
        messages = conversation.messages
        extra = {key: value for key, value in messages[index].extra.items() if key != "tool_calls"}
        bare = replace(messages[index], content=messages[index].content or "", extra=extra)
        # Some templates insist on what follows a call; they are asked about the conversation up to it.
        for end in (len(messages), index + 1):
            try:
                whole, _ = stand_ins.unmark(self._render(conversation, messages[:end], stand_ins))
                without = (*messages[:index], bare, *messages[index + 1 : end])
                rest, _ = stand_ins.unmark(self._render(conversation, without, stand_ins))
            except RecordError:
                continue
            place = _inserted(whole, rest, self._tokenizer)
            if place is not None and text.startswith(whole[: place[1]]):
                return place
        return None

    def _cut(
        self, text: str, answers: Sequence["_Answer"], stand_ins: StandIns, mute: Sequence[Place] = ()
    ) -> list[Span]:
        spans: list[Span] = []
        end = 0
        for begin, until, train in answers:
            spans += cut(text[end:begin], self._tokenizer, opens=end == 0)
            inside = cut(text[begin:until], self._tokenizer, opens=begin == 0, loss=train)
            if train and mute:
                inside = _muted(inside, text, begin, mute)
            closings = [i for i, span in enumerate(inside) if span.special and span.text == self._closing]
            closed = closings[-1] if closings else None
            if closed is None and self._closing and text.startswith(self._closing, until):
                closed = len(inside)  # the template's block leaves the closing token out
                inside.append(Span(self._closing, train, special=True))
                until += len(self._closing)
            if train and closed is not None and not self._end_of_turn:
                inside[closed:] = [span._replace(loss=False, mute=()) for span in inside[closed:]]
            spans += inside
            end = until
        spans += cut(text[end:], self._tokenizer, opens=end == 0)
        return stand_ins.restore(spans)

    def _closing_token(self) -> str | None:
        """The special token right after an answer, found by rendering one."""
        messages = (Message("user", "question"), Message("assistant", "answer-to-find"))
        conversation = Conversation(messages)
        stand_ins = self._shield.stand_ins(conversation)
        try:
            text, _ = stand_ins.unmark(self._render(conversation, messages, stand_ins))
        except RecordError:
            return None
        rest = text.rpartition("answer-to-find")[2]
        return next((part for part, id_ in self._tokenizer.split(rest) if id_ is not None), None)

    def _render(
        self,
        conversation: Conversation,
        messages: Sequence[Message],
        stand_ins: StandIns,
        *,
        prompt: bool = False,
        quiet: Mapping[int, Sequence[str]] = MappingProxyType({}),
    ) -> str:
        """Rendered text with stand-ins and marks; `quiet` has keys of messages to put marks around, by their number."""
        called = any("tool_calls" in message.extra for message in messages)
        # Most templates write a call's arguments as JSON themselves; the others put its text into theirs. And some
        # take text alone for the content that a call leaves out.
        forms = [(False, False), (True, False), (False, True), (True, True)] if called else [(False, False)]
        refused: RecordError | None = None
        for arguments_as_text, content_as_text in forms:
            tables = [
                stand_ins.table(message, quiet=quiet.get(i, ()), arguments_as_text=arguments_as_text)
                for i, message in enumerate(messages)
            ]
            if content_as_text:
                tables = [table | {"content": table["content"] or ""} for table in tables]
            try:
                return self._rendered(tables, conversation, stand_ins, prompt)
            except RecordError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def _rendered(
        self, messages: Sequence[dict[str, Json]], conversation: Conversation, stand_ins: StandIns, prompt: bool
    ) -> str:
        values = {
            "messages": messages,
            "tools": stand_ins.hide([*conversation.tools]) or None,
            "documents": None,
            "add_generation_prompt": prompt,
            **self._tokenizer.named_tokens,
            MARKS: stand_ins.marks,
        }
        try:
            return self._template.render(values)
        except TemplateFault as fault:
            if fault.kind == "undefined" and "strftime_now" in fault.message:
                raise ConfigError(
                    f"{self._origin}: asks for today's date (strftime_now), which would put the clock into the data; "
                    "write a fixed date into the template"
                ) from fault
            verb = "refuses" if fault.kind == "refused" else "fails on"
            raise RecordError("messages", f"{self._origin} {verb} it: {fault.message}") from fault


_FORMS: Mapping[str, Sequence[str]] = {
    "tools": ("tools",),
    "tool_calls": ("tool_calls",),
    "reasoning_content": ("reasoning_content", "thinking"),
}
"""What a record may have, and the names by which a template that has a form for it reads it."""
_Answer = tuple[int, int, bool]
"""Begin and end of an answer in the rendered text, and whether it is trained."""

_Part = tuple[str, int | None, int]
"""Plain text or a special token, the token's id, and where it ends."""

_REASONING = ("reasoning_content", "thinking")


class _ChangedLaterError(RecordError):
    """An answer is rendered otherwise when more messages follow it."""


def _bounds(conversation: Conversation) -> Bounds:
    characters = sum(len(message.content) for message in conversation.messages if message.content)
    extras = [message.extra for message in conversation.messages if message.extra]
    if extras or conversation.tools:
        characters += sum(map(len, strings([*extras, *conversation.tools])))
    return Bounds.of(len(conversation.messages), characters)


def _answers(message: Message) -> bool:
    return message.role == "assistant"


def _inserted(whole: str, rest: str, tokenizer: Tokenizer) -> Place | None:
    """Where `whole` has more than `rest`, which is otherwise equal but for whitespace there; None if it is not."""
    special = [*_special_places(whole, tokenizer)], [*_special_places(rest, tokenizer)]
    begin = _common(whole, rest)
    # A special token is one thing: two that begin alike are not the same up to there.
    begin = min([begin, *(first for places in special for first, last in places if first < begin < last)])
    length = _common(whole[begin:][::-1], rest[begin:][::-1])
    for text, places in zip((whole, rest), special, strict=True):
        length = min([length, *(len(text) - last for first, last in places if first < len(text) - length < last)])
    if rest[begin : len(rest) - length].strip():
        return None
    return begin, len(whole) - length


def _common(one: str, other: str) -> int:
    """Characters that both begin with."""
    return len(os.path.commonprefix([one, other]))  # noqa: RUF071 (characters are meant)


def _separates(part: _Part) -> bool:
    return part[1] is None and part[0].isspace()


def _special_places(text: str, tokenizer: Tokenizer) -> Iterator[Place]:
    end = 0
    for part, id_ in tokenizer.split(text):
        begin = text.index(part, end)  # not `end`, where a token swallows whitespace
        end = begin + len(part)
        if id_ is not None:
            yield begin, end


def _muted(spans: Sequence[Span], text: str, begin: int, mute: Sequence[Place]) -> list[Span]:
    """The trained spans of text[begin:] with what they have of the muted places."""
    muted = []
    for span in spans:
        begin = text.index(span.text, begin)
        end = begin + len(span.text)
        inside = [(max(first, begin) - begin, min(last, end) - begin) for first, last in mute]
        inside = [(first, last) for first, last in inside if first < last]
        if inside == [(0, len(span.text))] or (inside and span.special):
            span = span._replace(loss=False)
        muted.append(span._replace(mute=tuple(inside)) if span.loss else span)
        begin = end
    return muted
