"""Text that spells special tokens, in any place of a record and with any template and tokenizer: it stays text."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines import schema
from prep.conversation import Conversation, Json, Message
from prep.named_template import layouts
from prep.template import Template
from prep.tokenizer import Tokenizer
from tests.prep.folders import byte_level, spm
from tests.prep.test_named_template import SPECIAL
from tests.prep.test_template import AGENT

TOOLS = "{{- tools | tojson if tools else '' -}}" + AGENT.replace("message.content + '<|im_end|>'",
    "(message.name or '') + message.content + '<|im_end|>'")  # fmt: skip
CONFIG = {"chat_template": TOOLS}


def fast(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, served by the fast library."""
    return tokenizer.served_by(tokenizer.fast())


KINDS: Mapping[str, Callable[[Path], Tokenizer]] = {
    "byte-level": lambda folder: Tokenizer(byte_level(folder, special=SPECIAL, config=CONFIG)),
    "byte-level, fast": lambda folder: fast(Tokenizer(byte_level(folder, special=SPECIAL, config=CONFIG))),
    "sentencepiece": lambda folder: Tokenizer(spm(folder, special=SPECIAL, config=CONFIG)),
    "sentencepiece without a space": lambda folder: Tokenizer(
        spm(folder, special=SPECIAL, add_dummy_prefix=False, config=CONFIG)
    ),
}

PIECES = ["<", "<|", "|>", "<|im_", "im_end", "end|>", "s>", "</", "[", "INST]", "｜", " ", "\n", "x", "上", "\\", '"']
TEXTS = st.lists(st.sampled_from([*SPECIAL[:8], *SPECIAL, *PIECES]), max_size=5).map("".join)


@dataclass
class Served:
    """A tokenizer with every template."""

    templates: Mapping[str, Template]
    special_ids: frozenset[int]

    def special(self, name: str, conversation: Conversation) -> Counter[int]:
        """How often each special token stands in a sample."""
        tokens, _ = self.templates[name].sample(conversation)
        return Counter(token for token in tokens if token in self.special_ids)


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """Every template with each kind of tokenizer."""
    if "fast" in request.param and find_spec("fastokens") is None:
        pytest.skip("needs fastokens")
    tokenizer = KINDS[request.param](tmp_path_factory.mktemp("tokenizer"))
    templates = {name: Template(schema.Template(name=name), tokenizer) for name in (*layouts(), "tokenizer", "none")}
    return Served(templates, frozenset(tokenizer.special_tokens.values()))


def talk(texts: Sequence[str], *, system: bool) -> Conversation:
    """Two turns of the texts."""
    messages = [Message(role, text) for role, text in zip(["user", "assistant"] * 2, texts, strict=False)]
    return Conversation((*([Message("system", texts[4])] if system else []), *messages))


def agent_talk(texts: Sequence[str]) -> Conversation:
    """The texts everywhere that a record has text: names, arguments and their keys, tools, reasoning."""
    called: Json = {"function": {"name": texts[0], "arguments": {texts[1]: texts[2]}}}
    as_text: Json = {"function": {"name": texts[0], "arguments": texts[3]}}
    return Conversation(
        (
            Message("system", texts[4]),
            Message("user", texts[1], None, {"name": texts[0]}),
            Message("assistant", texts[2], None, {"reasoning_content": texts[3], "tool_calls": [called, as_text]}),
            Message("tool", texts[3], None, {"name": texts[2], "tool_call_id": texts[1]}),
            Message("assistant", texts[4]),
        ),
        ({"name": texts[0], texts[1]: [texts[2], {"enum": texts[3]}]},),
    )


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXTS.map(lambda text: text or "x"), min_size=5, max_size=5))
def test_text_adds_no_special_token_to_a_sample(served: Served, texts: list[str]) -> None:
    for name, layout in layouts().items():
        system = layout.system is not None
        plain = served.special(name, talk(["x"] * 5, system=system))
        assert (name, served.special(name, talk(texts, system=system))) == (name, plain)
    assert served.special("tokenizer", agent_talk(texts)) == served.special("tokenizer", agent_talk(["x"] * 5))
    document, short = (Conversation((Message("assistant", text),)) for text in (texts[0], "x"))
    assert served.special("none", document) == served.special("none", short)
