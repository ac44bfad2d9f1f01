"""What a template makes of probe conversations, held against what it should: every answer trained from where the model
begins to where it stops and nothing else, every text there, begun once, served as it is trained.

What should be trained is worked out from prompts and stop tokens, and what is served from the files of the export; the
masks and the spans of the renderer are only what is judged.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

from pipelines import schema
from pipelines.findings import Finding
from prep.answers import Answer, Fault, answer_from, mask_faults
from prep.conversation import Conversation, Message, RecordError
from prep.served import Served
from prep.spans import Span
from prep.template import Template
from prep.tokenizer import Tokenizer
from prep.tokenizer_files import write_tokenizer_files


@dataclass
class Findings:
    """What a template does with the probes."""

    same: list[str] = field(default_factory=list)
    """Probes that a reader of the exported template tokenizes as they were trained."""
    other: list[str] = field(default_factory=list)
    """Probes that such a reader tokenizes otherwise, with the first difference."""
    refused: list[str] = field(default_factory=list)
    """Probes that the template has no form for."""
    begins: bool = False
    """Samples begin with BOS."""
    findings: list[Finding] = field(default_factory=list)
    """What is wrong, each kind once; the caller puts the template's place before it."""

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
    """
    template = Template(settings, tokenizer)
    if settings.name == "none":
        return _PlainTexts(settings, tokenizer, template).check()
    with TemporaryDirectory() as folder:
        write_tokenizer_files(tokenizer, settings, Path(folder), chat=True)
        return _Chats(settings, tokenizer, template, Served(Path(folder))).check()


class _Check:
    """Collects findings, of each kind the first."""

    def __init__(self, settings: schema.Template, tokenizer: Tokenizer, template: Template) -> None:
        self._settings = settings
        self._tokenizer = tokenizer
        self._template = template
        self._found: dict[str, Finding] = {}
        self._result = Findings()

    def _finished(self) -> Findings:
        self._result.findings = list(self._found.values())
        return self._result

    def _tell(self, kind: str, probe: str, text: str, *, warning: bool = False) -> None:
        made = Finding.warning if warning else Finding
        self._found.setdefault(kind, made(kind, f"probe {probe!r}: {text}" if probe else text))

    def _decoded(self, tokens: Sequence[int]) -> str:
        return repr(self._tokenizer.decode(tokens))

    def _apart(self, others: Sequence[int], trained: Sequence[int]) -> str:
        """The first place where ids differ, as text."""
        place = next((i for i, (a, b) in enumerate(zip(others, trained, strict=False)) if a != b), None)
        place = min(len(others), len(trained)) if place is None else place
        there, here = others[place : place + 1], trained[place : place + 1]
        return (
            f"token {place} is {self._decoded(there) if there else 'missing'}, and "
            f"{self._decoded(here) if here else 'nothing'} as trained"
        )


class _PlainTexts(_Check):
    """Texts without a template: one BOS where the tokenizer puts one, and an end that is trained."""

    def check(self) -> Findings:
        for name, text in _TEXTS.items():
            conversation = _talk(("assistant", text))
            tokens, loss = self._template.sample(conversation)
            prompt = self._template.prompt(conversation)
            if tokens[: len(prompt)] == prompt:
                self._result.same.append(name)
            else:
                self._tell("prompt-differs", name, self._apart(prompt, tokens))
            bos = self._tokenizer.bos_id
            self._result.begins = bos is not None and tokens[:1] == [bos]
            if not all(loss[1:]):
                self._tell("answer-part-untrained", name, "not all of the text is trained")
            if tokens[-1:] != [self._tokenizer.eos_id]:
                self._tell(
                    "end-missing", name,
                    "texts do not end with EOS, so a model does not learn to end one; set template.eos = "
                    '"auto" and give the tokenizer an eos_token, unless texts are meant to be parts of longer ones',
                    warning=True,
                )  # fmt: skip
        return self._finished()


class _Chats(_Check):
    """Conversations by a template."""

    def __init__(self, settings: schema.Template, tokenizer: Tokenizer, template: Template, served: Served) -> None:
        super().__init__(settings, tokenizer, template)
        self._served = served
        self._stops = frozenset(template.stop_tokens)

    def check(self) -> Findings:
        reasons: dict[str, str] = {}
        for name, conversation in PROBES.items():
            try:
                self._probe(name, conversation)
            except RecordError as error:
                self._result.refused.append(name)
                reasons[name] = str(error)
        self._refusals(reasons)
        if len(reasons) < len(PROBES):
            self._roles()
            self._markers()
            self._special_text()
            self._settings_of_loss()
        return self._finished()

    def _refusals(self, reasons: Mapping[str, str]) -> None:
        if len(reasons) == len(PROBES):
            kinds = {"twice": "two-bos", "every token would carry loss": "mask-full"}
            first = next(iter(reasons.values()))
            kind = next((kind for words, kind in kinds.items() if words in first), "refuses-everything")
            self._tell(
                kind, "", f"refuses every probe conversation; is it one for chats? It says of the first: {first}"
            )
            return
        for name in _BASIC:
            if name in reasons:
                self._tell("refuses", name, f"has no form for it: {reasons[name]}")

    def _probe(self, name: str, conversation: Conversation) -> None:
        spans = self._template.render(conversation)
        tokens, loss = self._template.tokens(spans)
        since, answers = self._answers(name, conversation, spans, tokens)
        self._contents(name, conversation, "".join(span.text for span in spans))
        if answers and not self._has_untrained_parts(conversation):
            judged = [False] * since + loss[since:]
            for fault in mask_faults(judged, answers, end_of_turn=self._settings.loss.end_of_turn):
                self._mask(name, fault, tokens)
        self._ends(name, conversation, tokens, answers)
        self._bos(name, tokens)
        self._serving(name, conversation, tokens)

    def _has_untrained_parts(self, conversation: Conversation) -> bool:
        """Whether parts of answers are to carry no loss, so that a mask is not that of whole answers."""
        left_out = [
            *(() if self._settings.loss.reasoning else ("reasoning_content",)),
            *(() if self._settings.loss.tool_calls else ("tool_calls",)),
        ]
        return any(key in message.extra for key in left_out for message in conversation.messages)

    def _answers(
        self, name: str, conversation: Conversation, spans: Sequence[Span], tokens: Sequence[int]
    ) -> tuple[int, list[Answer]]:
        """Where the answers have to be, and from which token on that is known.

        Where a template renders earlier answers otherwise than it asked for them, it is known of the last alone.
        """
        numbers = [i for i, message in enumerate(conversation.messages) if message.role == "assistant"]
        prompts = [self._template.prompt(Conversation(conversation.messages[:i], conversation.tools)) for i in numbers]
        last = prompts[-1]
        if list(tokens[: len(last)]) != last:
            self._tell(
                "prompt-differs", name,
                "the sample does not begin as its prompt, so the model would be asked in other tokens than it was "
                f"trained on: {self._apart(last, tokens)}; let the template write the generation prompt as it writes "
                "an answer's beginning",
            )  # fmt: skip
            return 0, []
        begins = [len(prompt) for prompt in prompts]
        trained = "assistant" in self._settings.loss.roles
        chosen = [trained and (self._settings.loss.turns == "all" or i == numbers[-1]) for i in numbers]
        answers = [
            answer_from(tokens, begin, self._until(conversation, i, spans, begin), self._stops, trained=train)
            for i, begin, train in zip(numbers, begins, chosen, strict=True)
        ]
        if all(list(tokens[: len(prompt)]) == prompt for prompt in prompts):
            return 0, answers
        return begins[-1], answers[-1:]

    def _until(self, conversation: Conversation, index: int, spans: Sequence[Span], begin: int) -> int:
        """The first token of the span with the text of the message behind message `index`; or the end."""
        core = next((core for one in conversation.messages[index + 1 :] if (core := (one.content or "").strip())), None)
        at = 0
        for span in spans:
            if core is not None and core in span.text and at >= begin:
                return at
            at += len(self._template.tokens([span])[0])
        return at

    def _mask(self, name: str, fault: Fault, tokens: Sequence[int]) -> None:
        if fault.kind in ("prompt-trained", "mask-full") and set(self._settings.loss.roles) - {"assistant"}:
            return  # as asked for
        text = self._decoded(tokens[fault.begin : fault.end])
        what = {
            "mask-empty": "nothing of it is trained; do the template's generation blocks enclose the answers?",
            "mask-full": "all of it is trained, questions too; let the generation blocks enclose the answers alone",
            "mask-late": "the mask is one token late",
            "mask-early": "the mask is one token early",
            "answer-untrained": f"answer {fault.answer + 1}, {text}, is not trained; let generation blocks enclose "
            "every answer",
            "answer-part-untrained": f"{text} of answer {fault.answer + 1} is not trained; let the generation block "
            "enclose all that the model writes",
            "answer-start-untrained": f"answer {fault.answer + 1} is trained only behind {text}, which the model has "
            "to write first; let the generation prompt end with it, or the generation block begin before it",
            "end-untrained": f"the closing {text} of answer {fault.answer + 1} is not trained, so the model would not "
            "learn to stop; let the template close answers within its generation block, or set "
            "template.loss.end_of_turn = false",
            "end-trained": f"the closing {text} is trained, and template.loss.end_of_turn is false",
            "header-trained": f"{text} before answer {fault.answer + 1} is trained, which the prompt already holds; "
            "let the generation block begin behind it",
            "after-end-trained": f"{text} behind the end of answer {fault.answer + 1} is trained, and nothing is "
            "generated there; let the generation block end with the closing token",
            "prompt-trained": f"{text} is trained, which is no answer; let generation blocks enclose answers alone",
            "answer-trained": f"{text} of an answer is trained that should not be",
        }[fault.kind]
        self._tell(fault.kind, name, what)

    def _ends(self, name: str, conversation: Conversation, tokens: Sequence[int], answers: Sequence[Answer]) -> None:
        said = [message for message in conversation.messages if message.role == "assistant"][-len(answers) :]
        for number, (answer, message) in enumerate(zip(answers, said, strict=False), 1):
            if answer.is_closed or not answer.trained:
                continue
            expected = " or ".join(self._decoded([token]) for token in self._template.stop_tokens) or "a special token"
            self._tell(
                "call-end-missing" if "tool_calls" in message.extra else "end-missing", name,
                f"answer {number} should end with {expected}, trained, but it is "
                f"{self._decoded(tokens[answer.begin : answer.end])}; let the template close answers with a special "
                "token of the tokenizer, within the generation block if it has one",
                warning="tool_calls" in message.extra or not self._settings.loss.end_of_turn,
            )  # fmt: skip

    def _contents(self, name: str, conversation: Conversation, text: str) -> None:
        """Every text of the conversation stands in the rendering, once and in order."""
        at = -1
        for index, message in enumerate(conversation.messages):
            core = (message.content or "").strip()
            if not core:
                continue
            role = message.role
            if core not in text:
                self._tell(
                    f"{role}-lost", name,
                    f"the text of messages[{index}], of role {role!r}, is left out or changed; let the template write "
                    "its content as it is, or refuse such messages by raise_exception",
                )  # fmt: skip
                continue
            if text.count(core) > 1:
                self._tell("text-twice", name, f"the text of messages[{index}] is written {text.count(core)} times")
            if role in ("user", "assistant", "tool"):
                if text.index(core) < at:
                    self._tell("order", name, f"messages[{index}] stands before messages that it follows")
                at = text.index(core)
        for kind, what, values in _extras(conversation):
            if lost := [value for value in values if value not in text]:
                self._tell(kind, name, f"reads {what} and leaves out {lost[0]!r} of it; write it, or do not read it")

    def _bos(self, name: str, tokens: Sequence[int]) -> None:
        bos = self._tokenizer.bos_id
        if bos is None:
            return
        self._result.begins = list(tokens[:1]) == [bos]
        places = [at for at, token in enumerate(tokens) if token == bos]
        for before, behind in pairwise(places):
            if bos in self._stops or any(token in self._stops for token in tokens[before:behind]):
                continue  # a turn that ended with EOS can be followed by one that begins with BOS
            kind = "two-bos" if behind == before + 1 else "bos-within"
            self._tell(
                kind, name,
                f"BOS {self._decoded([bos])} stands at tokens {before} and {behind}, and nothing ended between them; "
                "let the template write it once",
            )  # fmt: skip
        if self._tokenizer.adds_bos and not places and self._settings.bos != "never":
            self._tell(
                "no-bos", name,
                f"begins without BOS, which the tokenizer puts before a text: {self._decoded([bos])}; let the "
                "template write bos_token, unless the model was trained without it",
                warning=True,
            )  # fmt: skip

    def _serving(self, name: str, conversation: Conversation, tokens: Sequence[int]) -> None:
        """Compare with what a reader of the exported files tokenizes: the prompt, and the whole conversation."""
        asked = Conversation(conversation.messages[:-1], conversation.tools)
        trained = self._template.prompt(asked)
        try:
            served = self._served.ids(asked, prompt=True)
            whole = self._served.ids(conversation, prompt=False)
            bare, open_ = self._served.text(asked, prompt=False), self._served.text(asked, prompt=True)
            text = self._served.text(conversation, prompt=False)
        except RecordError as error:
            self._tell("served-refuses", name, f"{error}, and training does not")
            return
        alone = len(conversation.messages) <= 3
        if served == trained:
            self._result.same.append(name)
        else:
            self._result.other.append(f"{name}, where {self._apart(served, trained)}")
            self._tell(
                "served-differs" if alone else "served-differs-later", name,
                f"a server asks in other tokens than were trained: {self._apart(served, trained)}; does a token reach "
                "across the beginning of an answer, or a special token swallow whitespace (lstrip, rstrip)?",
                warning=not alone,
            )  # fmt: skip
        if served == trained and whole != list(tokens):
            self._tell(
                "sample-differs", name,
                "a reader of the exported template tokenizes the conversation otherwise than it is trained: "
                f"{self._apart(whole, tokens)}; is there a token that reaches across the beginning of an answer?",
                warning=True,
            )  # fmt: skip
        answer = (conversation.messages[-1].content or "").strip()
        before, _, behind = text.rpartition(answer)
        header = before.rpartition((conversation.messages[-2].content or "").strip())[2]
        if header.strip() and behind.endswith(header):
            self._tell(
                "prompt-behind-answer", name,
                f"ends with the generation prompt, {header!r}, where none is asked for; write it only if "
                "add_generation_prompt is set",
            )  # fmt: skip
        if open_ == bare and answer and _is_header(before.removeprefix(bare)) and before.startswith(bare):
            self._tell(
                "no-generation-prompt", name,
                f"writes {before.removeprefix(bare)!r} before an answer, but no generation prompt when asked for one, "
                "so the model has to write it; write it if add_generation_prompt is set",
            )  # fmt: skip

    def _roles(self) -> None:
        """What stands before a question differs from what stands before an answer."""
        turns = (("user", "first-asked"), ("assistant", "first-said"), ("user", "then-asked"), ("assistant", "x"))
        try:
            text = "".join(span.text for span in self._template.render(_talk(*turns)))
        except RecordError:
            return
        places = [(text.find(said), text.find(said) + len(said)) for _, said in turns[:3]]
        if any(begin < 0 for begin, _ in places):
            return
        (_, first), (begin, end), (then, _) = places
        if text[first:begin] == text[end:then]:
            self._tell(
                "roles-alike", "",
                f"writes {text[first:begin]!r} between messages whoever speaks; let it write the role",
            )  # fmt: skip

    def _markers(self) -> None:
        """Strings that look like special tokens and are none of the tokenizer's."""
        try:
            spans = self._template.render(_talk(("user", "question"), ("assistant", "answer")))
        except RecordError:
            return
        for span in spans:
            if not span.special and (match := _MARKER.search(span.text)):
                count = len(self._tokenizer.encode(match.group(), opens=False))
                self._tell(
                    "marker-not-token", "",
                    f"writes {match.group()!r}, which is no special token of the tokenizer and becomes {count} tokens "
                    "of text; add it by tokenizer.add_special_tokens, or name the template that belongs to the model",
                    warning=True,
                )  # fmt: skip

    def _special_text(self) -> None:
        """Whether text of a record can become a special token."""
        names = sorted(filter(None, self._tokenizer.special_tokens), key=len)
        closing = next((name for name in names if self._tokenizer.special_tokens[name] in self._stops), None)
        if closing is None:
            return

        def stops_in(text: str) -> int:
            asked = _talk(("user", text), ("assistant", "answer"))
            return sum(token in self._stops for token in self._template.sample(asked)[0])

        try:
            if stops_in(f"a {closing} b") > stops_in("a b"):
                self._tell(
                    "special-text", "",
                    f"text of a record that spells {closing!r} becomes that token, so a record can end a turn; set "
                    'template.special_text = "escape", unless records are meant to hold special tokens',
                    warning=True,
                )  # fmt: skip
        except RecordError:
            return  # special_text = "error"

    def _settings_of_loss(self) -> None:
        loss = self._settings.loss
        if "assistant" not in loss.roles:
            self._tell(
                "answers-not-chosen", "",
                "template.loss.roles leaves the assistant out, so only messages that say loss themselves are trained",
                warning=True,
            )  # fmt: skip
        if others := [role for role in loss.roles if role != "assistant"]:
            self._tell(
                "roles-trained", "",
                f"template.loss.roles trains the text of role {others[0]!r}, which a model is not asked to write",
                warning=True,
            )  # fmt: skip
        if not loss.end_of_turn:
            self._tell(
                "end-not-chosen", "",
                "template.loss.end_of_turn is false, so the model does not learn to end its answers",
                warning=True,
            )  # fmt: skip


_MARKER = re.compile(r"<\|[^<>|\s]{1,40}\|>|<[a-z]+_of_[a-z]+>|<｜[^<>｜]{1,40}｜>")


def _is_header(text: str) -> bool:
    """Whether text before an answer is more than whitespace, and not the reasoning that an answer may begin with."""
    return bool(text.strip()) and not text.lstrip().startswith("<think>")


def _extras(conversation: Conversation) -> Iterator[tuple[str, str, list[str]]]:
    """What a conversation has besides its texts: the kind of finding if it is lost, its name, and parts of it."""
    for tool in conversation.tools:
        function = tool["function"]
        yield "tools-lost", "tools", [function["name"], *function["parameters"]["properties"]]
    for message in conversation.messages:
        for call in message.extra.get("tool_calls", ()):
            function = call["function"]
            yield (
                "tool-calls-lost",
                "tool_calls",
                [function["name"], *(str(value) for value in function["arguments"].values())],
            )
        if (reasoning := message.extra.get("reasoning_content")) is not None:
            yield "reasoning-lost", "reasoning_content", [reasoning]


def _talk(*turns: tuple[str, str], tools: Sequence[Mapping[str, object]] = ()) -> Conversation:
    return Conversation(tuple(Message(role, content) for role, content in turns), tuple(tools))


_CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "add_numbers", "arguments": {"left": 217, "right": 361}},
}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add_numbers",
        "description": "Adds two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"left": {"type": "number"}, "right": {"type": "number"}},
            "required": ["left", "right"],
        },
    },
}

_BASIC = ("a question", "Chinese", "several turns")
"""What every template for chats has a form for."""

PROBES: Mapping[str, Conversation] = {
    "a question": _talk(("user", "How far is the Moon?"), ("assistant", "About 384,400 km.")),
    "Chinese": _talk(("user", "请用一句话介绍上海。"), ("assistant", "它是一座位于长江入海口的城市。")),
    "a system message": _talk(
        ("system", "Reply in few words."), ("user", "Name a colour."), ("assistant", "Crimson, for one.")
    ),
    "an empty system message": _talk(("system", ""), ("user", "Name a colour."), ("assistant", "Crimson, for one.")),
    "several turns": _talk(
        ("user", "Hello!"),
        ("assistant", "Good day, how can I help?"),
        ("user", "  Repeat:\n\tthis, twice\n "),
        ("assistant", "this and this"),
    ),
    "several turns in Chinese": _talk(
        ("user", "café 🙂 x=1;\r\n\r\n    y"),
        ("assistant", "1. 一\n2. 二"),
        ("user", "接下来呢？"),
        ("assistant", "第三个数"),
    ),
    "tools": _talk(("user", "What is 217 + 361?"), ("assistant", "The sum is 578."), tools=(_TOOL,)),
    "a tool call": Conversation(
        (
            Message("user", "Please sum them up."),
            Message("assistant", "", None, {"tool_calls": [_CALL]}),
            Message("tool", "result: 578", None, {"name": "add_numbers", "tool_call_id": "call00001"}),
            Message("assistant", "They make 578 in all."),
        ),
        (_TOOL,),
    ),
    "reasoning": Conversation(
        (
            Message("user", "Is 91 a prime?"),
            Message("assistant", "No, it is not.", None, {"reasoning_content": "Seven times thirteen makes it."}),
        )
    ),
}

_TEXTS: Mapping[str, str] = {"text": "Once upon a time", "Chinese": "上海是一座城市。\n"}
