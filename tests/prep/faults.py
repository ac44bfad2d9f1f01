"""Known faults of templates and masks, each a small change of something right, with the name `check` has for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.prep.folders import SPECIAL

RIGHT = """\
{{- bos_token -}}
{%- if tools -%}{{- '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' -}}{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}
{%- if message['reasoning_content'] is defined -%}
{{- '<think>' + message['reasoning_content'] + '</think>' -}}
{%- endif -%}
{{- message['content'] or '' -}}
{%- for call in message['tool_calls'] or [] -%}{{- '\\ncall ' + (call['function'] | tojson) -}}{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}{{- message['content'] + '<|im_end|>' -}}{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
"""A chat template with a form for everything, and with generation blocks."""

UNMARKED = RIGHT.replace("{%- generation -%}\n", "").replace("{%- endgeneration -%}\n", "")
"""The same without generation blocks."""

_BLOCK = RIGHT[RIGHT.index("{%- generation -%}") : RIGHT.index("{%- else -%}")]
_ROLE = "{{- '<|im_start|>' + message['role'] + '\\n' -}}\n"
_PROMPT = "{{- '<|im_start|>assistant\\n' -}}"
_CLOSE = "{{- '<|im_end|>' -}}\n"


@dataclass(frozen=True)
class TemplateFault:
    """A template that is nearly right."""

    kind: str
    what: str
    source: str
    """Of the template."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of [template]."""
    special: Sequence[str] = tuple(SPECIAL)
    config: Mapping[str, Any] = field(default_factory=dict)
    """Of the tokenizer."""


def _changed(*pairs: tuple[str, str], source: str = RIGHT) -> str:
    for old, new in pairs:
        assert old in source, old
        source = source.replace(old, new)
    return source


def _fault(kind: str, what: str, *pairs: tuple[str, str], source: str = RIGHT, **more: Any) -> TemplateFault:
    return TemplateFault(kind, what, _changed(*pairs, source=source), **more)


TEMPLATE_FAULTS = [
    # --- how a conversation begins
    _fault("two-bos", "BOS twice", ("{{- bos_token -}}", "{{- bos_token + bos_token -}}")),
    _fault("bos-within", "BOS before every message", (_ROLE, "{{- bos_token -}}" + _ROLE), ("<|im_end|>", "!")),
    _fault("no-bos", "BOS left out", ("{{- bos_token -}}\n", "")),
    # --- how an answer ends
    _fault("end-missing", "answers without an end", (_CLOSE, "")),
    _fault("end-missing", "an end of another family", ("'<|im_end|>'", "'<|eot_id|>'")),
    _fault("end-missing", "EOS of a tokenizer without one", (_CLOSE, "{{- eos_token or '' -}}\n"),
           config={"eos_token": None}),
    _fault("end-missing", "an end behind the last answer alone", (_CLOSE, "{{- '<|im_end|>' if loop.last -}}\n")),
    _fault("end-untrained", "the end outside of the block, behind a line feed", (_CLOSE, ""),
           ("{%- endgeneration -%}", "{%- endgeneration -%}{{- '\\n<|im_end|>' -}}")),
    _fault("end-not-chosen", "an end that is not to be trained", settings={"loss": {"end_of_turn": False}}),
    # --- which tokens are trained
    _fault("mask-empty", "a block that is never reached", ("{%- generation -%}", "{%- if false -%}{%- generation -%}"),
           ("{%- endgeneration -%}", "{%- endgeneration -%}{%- else -%}" + _BLOCK.replace("{%- generation -%}", "")
            .replace("{%- endgeneration -%}", "") + "{%- endif -%}")),
    TemplateFault("mask-full", "one block around everything", "{% generation %}" + UNMARKED + "{% endgeneration %}"),
    _fault("header-trained", "a block that begins before the header", (_ROLE, ""),
           ("{%- generation -%}\n", "{%- generation -%}" + _ROLE), ("{%- else -%}", "{%- else -%}" + _ROLE)),
    _fault("answer-untrained", "a block around the header alone", ("{%- generation -%}\n", ""),
           ("{%- endgeneration -%}\n", ""),
           (_ROLE, "{%- if message['role'] == 'assistant' -%}{%- generation -%}" + _ROLE
            + "{%- endgeneration -%}{%- else -%}" + _ROLE + "{%- endif -%}\n")),
    _fault("prompt-trained", "blocks around questions too", ("{%- else -%}", "{%- else -%}{%- generation -%}"),
           ("'<|im_end|>' -}}{%- endif -%}", "'<|im_end|>' -}}{%- endgeneration -%}{%- endif -%}")),
    _fault("answer-untrained", "blocks around questions instead", ("{%- generation -%}\n", ""),
           ("{%- endgeneration -%}\n", ""), ("{%- else -%}", "{%- else -%}{%- generation -%}"),
           ("'<|im_end|>' -}}{%- endif -%}", "'<|im_end|>' -}}{%- endgeneration -%}{%- endif -%}")),
    _fault("answer-untrained", "the last answer alone", (_BLOCK, "{%- if loop.last -%}" + _BLOCK + "{%- else -%}"
           + _BLOCK.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "") + "{%- endif -%}")),
    _fault("answer-untrained", "the first answer alone", (_BLOCK, "{%- if loop.index <= 2 -%}" + _BLOCK
           + "{%- else -%}" + _BLOCK.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")
           + "{%- endif -%}")),
    _fault("answer-untrained", "a block that ends before the tool calls",
           ("{%- for call", "{%- endgeneration -%}{%- for call"), ("{%- endgeneration -%}\n{%- else", "{%- else")),
    _fault("answer-start-untrained", "a block that begins behind the reasoning", ("{%- generation -%}\n", ""),
           ("{{- message['content'] or '' -}}", "{%- generation -%}{{- message['content'] or '' -}}")),
    _fault("answer-start-untrained", "a block that begins one character late", ("{%- generation -%}\n", ""),
           ("{{- message['content'] or '' -}}",
            "{{- (message['content'] or '')[:1] -}}{%- generation -%}{{- (message['content'] or '')[1:] -}}")),
    _fault("after-end-trained", "a block that ends behind the line feed",
           (_CLOSE, "{{- '<|im_end|>\\n' -}}\n"), ("{{- '\\n' -}}", "{{- '\\n' if message['role'] != 'assistant' -}}")),
    _fault("roles-trained", "questions chosen", settings={"name": "internlm2_chat",
           "loss": {"roles": ["assistant", "user"]}}),
    _fault("answers-not-chosen", "answers not chosen", settings={"name": "internlm2_chat",
           "loss": {"roles": ["user"]}}),
    # --- how the model is asked
    _fault("prompt-differs", "another role in the prompt", (_PROMPT, _PROMPT.replace("assistant", "model"))),
    _fault("prompt-differs", "reasoning begun in the prompt alone", (_PROMPT, _PROMPT.replace("\\n", "\\n<think>"))),
    _fault("prompt-differs", "a space behind the prompt", (_PROMPT, _PROMPT.replace("\\n", "\\n "))),
    _fault("prompt-differs", "the last message written otherwise",
           ("message['content'] + '<|im_end|>'", "message['content'] + ('' if loop.last else ' ') + '<|im_end|>'")),
    _fault("answer-start-untrained", "a prompt without its line feed", (_PROMPT, _PROMPT.replace("\\n", ""))),
    _fault("no-generation-prompt", "no prompt", ("{%- if add_generation_prompt", "{%- if false")),
    _fault("prompt-behind-answer", "a prompt always", ("{%- if add_generation_prompt -%}", "{%- if true -%}")),
    # --- what is left out or changed
    _fault("system-lost", "the system message dropped",
           ("{{- '<|im_start|>' +", "{%- if message['role'] == 'system' -%}{%- continue -%}{%- endif -%}"
            "{{- '<|im_start|>' +")),
    _fault("system-lost", "the system message in capitals",
           ("{{- message['content'] +", "{%- if message['role'] == 'system' -%}{{- message['content'] | upper -}}"
            "{%- else -%}{{- message['content'] -}}{%- endif -%}{{- '' +")),
    _fault("user-lost", "whitespace within questions eaten",
           ("{{- message['content'] +", "{{- message['content'].split() | join(' ') +")),
    _fault("user-lost", "a key that is misspelt", ("{{- message['content'] +", "{{- (message['contents'] or '') +")),
    _fault("user-lost", "all but the last question forgotten", ("for message in messages",
           "for message in messages[-2:]"), ("message['role'] == 'assistant'", "message['role'] == 'assistant'")),
    _fault("assistant-lost", "answers cut short", ("{{- message['content'] or '' -}}",
           "{{- (message['content'] or '')[:4] -}}")),
    _fault("assistant-lost", "the last answer dropped", ("for message in messages",
           "for message in (messages if add_generation_prompt else messages[:-1])")),
    _fault("tool-lost", "what tools returned dropped",
           ("{{- message['content'] +", "{{- ('' if message['role'] == 'tool' else message['content']) +")),
    _fault("tools-lost", "tools read and not written", ("+ (tools | tojson) +", "+ (tools | length | string) +")),
    _fault("tool-calls-lost", "arguments of calls dropped",
           ("(call['function'] | tojson)", "call['function']['name']")),
    _fault("reasoning-lost", "reasoning read and not written", ("message['reasoning_content'] + '</think>'",
           "'</think>'")),
    _fault("text-twice", "questions written twice",
           ("{{- message['content'] +", "{{- message['content'] + ' ' + message['content'] +")),
    _fault("order", "messages backwards", ("for message in messages -%}",
           "for message in ([messages[0]] + messages[1:-1] | reverse | list + messages[-1:] if messages | length > 3 "
           "else messages) -%}")),
    _fault("roles-alike", "roles not written", ("'<|im_start|>' + message['role'] + '\\n'", "'<|im_start|>'"),
           (_PROMPT, "{{- '<|im_start|>' -}}")),
    _fault("refuses", "several turns refused",
           ("{{- bos_token -}}", "{{- bos_token -}}{%- if messages | length > 3 and messages[2]['role'] == 'user' -%}"
            "{{- raise_exception('one turn') -}}{%- endif -%}")),
    TemplateFault("refuses-everything", "everything refused", "{{- raise_exception('no') -}}"),
    _fault("refuses", "earlier answers written otherwise", ("{{- message['content'] or '' -}}",
           "{{- message['content'] if loop.last else '(...)' -}}"), source=UNMARKED),
    # --- tokens
    _fault("marker-not-token", "special tokens that are none", ("'<|im_start|>'", "'<|turn|>'"),
           ("'<|im_start|>assistant", "'<|turn|>assistant"), ("'<|im_start|>tools", "'<|turn|>tools")),
    _fault("special-text", "text that becomes special tokens", settings={"special_text": "allow"}),
    _fault("served-differs-later", "a token across the beginning of an answer",
           ("+ message['role'] + '\\n'", "+ message['role'] + ' \\n  '"), ("assistant\\n", "assistant \\n  "),
           ("{{- message['content'] or '' -}}", "{{- ' ' + (message['content'] or '') -}}")),
]  # fmt: skip

BROKEN_TEMPLATES: Mapping[str, tuple[str, str]] = {
    "a syntax error": (_changed(("{%- endfor -%}\n{%- if add", "{%- if add")), "end of template"),
    "a clock": (_changed(("{{- bos_token -}}", "{{- bos_token + strftime_now('%d') -}}")), "strftime_now"),
}
"""Templates that cannot be used at all, and words of what is said of them."""


Mask = list[bool]
Tokens = list[int]


@dataclass(frozen=True)
class DataFault:
    """Tokenized data that is nearly right: a change of every sample's tokens and mask."""

    kind: str
    what: str
    change: Callable[[Tokens, Mask], tuple[Tokens, Mask]]


def _late(tokens: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
    return tokens, [False, *mask[:-1]]


def _early(tokens: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
    return tokens, [*mask[1:], False]


def _ends_untrained(tokens: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
    return tokens, [train and token != SPECIAL.index("<|im_end|>") for token, train in zip(tokens, mask, strict=True)]


def _ends_left_out(tokens: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
    kept = [at for at, token in enumerate(tokens) if not (mask[at] and token == SPECIAL.index("<|im_end|>"))]
    return [tokens[at] for at in kept], [mask[at] for at in kept]


def _header_trained(tokens: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
    return tokens, [train or after for train, after in zip(mask, [*mask[1:], False], strict=True)]


def _behind_trained(tokens: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
    return tokens, [train or before for train, before in zip(mask, [False, *mask[:-1]], strict=True)]


def _start_untrained(tokens: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
    return tokens, [train and before for train, before in zip(mask, [False, *mask[:-1]], strict=True)]


def _bos_within(tokens: Tokens, mask: Mask) -> tuple[Tokens, Mask]:
    return [*tokens[:3], SPECIAL.index("<s>"), *tokens[3:]], [*mask[:3], False, *mask[3:]]


DATA_FAULTS = [
    DataFault("tokens-mask-empty", "nothing trained", lambda tokens, mask: (tokens, [False] * len(mask))),
    DataFault("tokens-mask-full", "everything trained", lambda tokens, mask: (tokens, [True] * len(mask))),
    DataFault("tokens-mask-late", "labels shifted to the right", _late),
    DataFault("tokens-mask-early", "labels shifted for the loss already", _early),
    DataFault("tokens-prompt-trained", "the mask inverted", lambda tokens, mask: (tokens, [not one for one in mask])),
    DataFault("tokens-answer-untrained", "the mask inverted", lambda tokens, mask: (tokens, [not one for one in mask])),
    DataFault("tokens-end-untrained", "ends not trained, as where EOS is PAD", _ends_untrained),
    DataFault("tokens-end-missing", "ends left out", _ends_left_out),
    DataFault("tokens-header-trained", "the mask begins one token early", _header_trained),
    DataFault("tokens-after-end-trained", "the mask ends one token late", _behind_trained),
    DataFault("tokens-answer-start-untrained", "the mask begins one token late", _start_untrained),
    DataFault("tokens-two-bos", "BOS by template and tokenizer",
              lambda tokens, mask: ([tokens[0], *tokens], [False, *mask])),
    DataFault("tokens-bos-within", "BOS before a message", _bos_within),
    DataFault("tokens-no-bos", "BOS left out", lambda tokens, mask: (tokens[1:], mask[1:])),
    DataFault("no-answers", "another tokenizer's ids", lambda tokens, mask: ([id_ + 9 for id_ in tokens], mask)),
]  # fmt: skip
