"""The named templates: XTuner's strings, token layout and loss, and a Jinja form that Transformers tokenizes alike."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from pipelines import schema
from pipelines.errors import ConfigError
from prep.conversation import Conversation, Message, RecordError
from prep.named_template import layouts
from prep.template import Template
from prep.tokenizer import Tokenizer, load_tokenizer
from tests.prep.folders import byte_level, configured, converted, spm

os.environ["TOKENIZERS_PARALLELISM"] = "false"

NAMES = sorted(layouts())
OURS = {"deepseek_r1", "glm4"}
"""Not XTuner's, for models whose own template cannot be trained with."""

_STRINGS = [
    text
    for layout in layouts().values()
    for text in (*(layout.system or ()), *layout.user, layout.closing, *layout.stop)
]
_TOKENS = re.findall(r"<\|\w+\|>|<reserved_\d+>|<\w+_of_turn>|<eo\w>|<｜[^｜]+｜>", "".join(_STRINGS))
SPECIAL = [*dict.fromkeys(["<unk>", "<s>", "</s>", *_TOKENS])]
"""Every string of a template that is one token in its own model's tokenizer."""

KINDS: Mapping[str, Callable[[Path], Path]] = {
    "byte-level": lambda folder: byte_level(folder, special=SPECIAL, bos=True),
    "byte-level without BOS": lambda folder: byte_level(folder, special=SPECIAL, config={"bos_token": None}),
    "bare": lambda folder: spm(folder, special=SPECIAL, add_dummy_prefix=False),
    "prefixed": lambda folder: spm(folder, special=SPECIAL),
    "prefixed once": lambda folder: spm(folder, special=SPECIAL, config={"legacy": False}),
}
"""Tokenizers by where they put a space of their own."""

Turn = tuple[str, str, str]
"""System text, question, answer."""

TALKS: Sequence[Sequence[Turn]] = (
    [("", "What is it?", "A dog.")],
    [("Be brief.", "上海?", "a city\nin China"), ("", "and  the\nfox", "fox")],
    [("", " lead", "space\n"), ("Now in Chinese.", "\nline\n", "行"), ("", "<s> </s>", "the <|im_end|>")],
)


@dataclass
class Model:
    """A tokenizer, and Transformers' view of it."""

    tokenizer: Tokenizer
    theirs: Any

    def render(self, template: Template, conversation: Conversation) -> list[int]:
        """Token ids by the exported template."""
        messages = [{"role": message.role, "content": message.content} for message in conversation.messages]
        asks = conversation.messages[-1].role == "user"
        found = self.theirs.apply_chat_template(messages, chat_template=template.jinja, add_generation_prompt=asks)
        return list(found["input_ids"])


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Each kind of tokenizer."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model")
    KINDS[request.param](folder)
    tokenizer = load_tokenizer(folder)
    if not (folder / "tokenizer.json").is_file():
        folder = converted(folder, folder / "json")
    return Model(tokenizer, AutoTokenizer.from_pretrained(folder))


def named(name: str, tokenizer: Tokenizer, **settings: Any) -> Template:
    """The template called `name`."""
    return Template(schema.Template(name=name, **settings), tokenizer)


def talk(turns: Sequence[Turn], name: str = "default") -> Conversation:
    """The conversation of turns; without system texts where the template called `name` takes none."""
    takes_system = layouts()[name].system is not None
    messages: list[Message] = []
    for system, question, answer in turns:
        messages += [Message("system", system)] if system and takes_system else []
        messages += [Message("user", question), Message("assistant", answer)]
    return Conversation(tuple(messages))


def reference(name: str, tokenizer: Tokenizer, turns: Sequence[Turn]) -> Iterator[tuple[int, bool]]:
    """The layout the obvious way: strings put together, each text tokenized, tokens appended."""
    layout = layouts()[name]

    def whole(parts: Sequence[tuple[str, bool]]) -> Iterator[int]:
        # What the template wrote is cut at special tokens; plain neighbours are one run. The first run opens.
        cut = [piece for text, ours in parts for piece in (tokenizer.split(text) if ours else [(text, None)])]
        opens = True
        for id_, run in groupby(cut, lambda piece: piece[1]):
            if id_ is None:
                yield from tokenizer.encode("".join(text for text, _ in run), opens=opens)
            else:
                yield from (id_ for _ in run)
            opens = tokenizer.prefix == "always"

    begins = True
    for number, (system, question, answer) in enumerate(turns, 1):
        if begins and tokenizer.bos_id is not None:
            yield tokenizer.bos_id, False
        asked: list[tuple[str, bool]] = []
        if system and layout.system:
            asked += [(layout.system[0], True), (system, False), (layout.system[1], True)]
        before, behind = (text.replace("{round}", str(number)) for text in layout.user)
        asked += [(before, True), (question, False), (behind, True)]
        yield from ((id_, False) for id_ in whole(asked))
        yield from ((id_, True) for id_ in whole([(answer, False), (layout.closing, True)]))
        if not layout.closing_is_eos:
            assert tokenizer.eos_id is not None
            yield tokenizer.eos_id, True
        yield from ((id_, False) for id_ in whole([(layout.separator, True)]))
        begins = not layout.closing_is_eos


def test_tokens_and_loss_follow_the_layout(model: Model) -> None:
    for name in NAMES:
        for turns in TALKS:
            tokens, loss = named(name, model.tokenizer).sample(talk(turns, name))
            assert (name, list(zip(tokens, loss, strict=True))) == (name, list(reference(name, model.tokenizer, turns)))


def test_transformers_tokenizes_the_exported_template_alike(model: Model) -> None:
    for name in NAMES:
        template = named(name, model.tokenizer)
        for turns in TALKS[:2] if name != "deepseek_v2" else ():
            whole = talk(turns, name)
            asked = Conversation(whole.messages[:-1])
            assert (name, model.render(template, whole)) == (name, template.sample(whole)[0])
            assert (name, model.render(template, asked)) == (name, template.prompt(asked))
            assert template.served(asked) == template.prompt(asked)


def test_a_prompt_is_how_the_sample_begins(model: Model) -> None:
    for name in NAMES:
        template = named(name, model.tokenizer)
        tokens, loss = template.sample(talk(TALKS[1], name))
        prompt = template.prompt(Conversation(talk(TALKS[1], name).messages[:-1]))
        assert (name, tokens[: len(prompt)]) == (name, prompt)
        assert loss[len(prompt)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """One byte-level tokenizer with every special token."""
    return load_tokenizer(KINDS["byte-level"](tmp_path_factory.mktemp("tokenizer")))


def test_a_question_that_ends_with_a_space_runs_into_its_answer_when_read_as_one_text(tokenizer: Tokenizer) -> None:
    # Tokenized by itself, as deepseek_v2 has it, "Assistant: " keeps its space; as one text the answer takes it.
    template = named("deepseek_v2", tokenizer)
    first, second = (talk(turns) for turns in TALKS[:2])
    asked = Conversation(first.messages[:-1])
    assert template.prompt(asked) == template.served(asked)
    asked = Conversation(second.messages[:-1])
    assert template.prompt(asked) != template.served(asked)


GOLDEN = {
    "internlm2_chat": "<s><|im_start|>system\nS<|im_end|>\n<|im_start|>user\n1<|im_end|>\n<|im_start|>assistant\n"
    "[A<|im_end|>]\n<|im_start|>user\n2<|im_end|>\n<|im_start|>assistant\n[B<|im_end|>]\n",
    "chatglm2": "<s>S\n[Round 1]\n\n问：1\n\n答：[A</s>]\n\n<s>[Round 2]\n\n问：2\n\n答：[B</s>]\n\n",
    "gemma": "<s><start_of_turn>system\nS<end_of_turn>\n<start_of_turn>user\n1<end_of_turn>\n<start_of_turn>model\n"
    "[A<end_of_turn></s>]\n<s><start_of_turn>user\n2<end_of_turn>\n<start_of_turn>model\n[B<end_of_turn></s>]\n",
    "mistral": "<s>[INST] S [/INST]\n[INST] 1 [/INST][A</s>]\n<s>[INST] 2 [/INST][B</s>]\n",
    "moss_sft": "<s>S\n<|Human|>: 1<eoh>\n[A</s>]\n<s><|Human|>: 2<eoh>\n[B</s>]\n",
    "deepseek_v2": "<s>S\n\nUser: 1\n\nAssistant: [A<｜end▁of▁sentence｜>]User: 2\n\nAssistant: "
    "[B<｜end▁of▁sentence｜>]",
    "glm4": "<s><|system|>\nS<|user|>\n1<|assistant|>\n[A<|endoftext|>]<|user|>\n2<|assistant|>\n[B<|endoftext|>]",
    "deepseek_r1": "<s>S<｜User｜>1<｜Assistant｜>[A<｜end▁of▁sentence｜>]"
    "<｜User｜>2<｜Assistant｜>[B<｜end▁of▁sentence｜>]",
    "llama3_chat": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\n1<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n[A<|eot_id|>]"
    "<|start_header_id|>user<|end_header_id|>\n\n2<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    "[B<|eot_id|>]",
    "wizardlm": "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. S\n USER: 1 ASSISTANT:[A</s>]\n"
    "<s>USER: 2 ASSISTANT:[B</s>]\n",
}
"""Two turns with a system text, what carries loss in brackets."""


@pytest.mark.parametrize("name", GOLDEN)
def test_a_conversation_reads_as_its_template_has_it(name: str, tokenizer: Tokenizer) -> None:
    spans = named(name, tokenizer).render(talk([("S", "1", "A"), ("", "2", "B")]))
    runs = [("".join(span.text for span in run), loss) for loss, run in groupby(spans, lambda span: span.loss)]
    assert "".join(f"[{text}]" if loss else text for text, loss in runs) == GOLDEN[name]


def test_the_strings_are_xtuners() -> None:
    path = Path(__file__).parents[3] / "shared" / "design" / "prompt-templates.json"
    if not path.is_file():
        pytest.skip("needs the list of XTuner's templates")
    theirs = json.loads(path.read_bytes())["prompt_templates"]
    assert set(theirs) == set(layouts()) - OURS
    for name in theirs:
        layout = layouts()[name]
        assert "{input}".join(layout.user) == theirs[name]["instruction"]
        assert (layout.system and "{system}".join(layout.system)) == theirs[name]["system"]
        assert (layout.closing or None, layout.closing_is_eos) == (
            theirs[name]["suffix"],
            theirs[name]["suffix_as_eos"],
        )
        assert layout.separator == theirs[name]["sep"]
        assert {*layout.stop, layout.closing} - {""} >= {*theirs[name]["stop_words"]}


def test_any_role_can_be_trained(tokenizer: Tokenizer) -> None:
    turns = talk([("S", "1", "A")])
    everything = named("internlm2_chat", tokenizer, loss={"roles": ["system", "user", "assistant"]}).render(turns)
    assert [span.text for span in everything if span.loss] == ["S", "1", "<|im_end|>", "A", "<|im_end|>"]
    users = named("internlm2_chat", tokenizer, loss={"roles": ["user"], "end_of_turn": False}).render(turns)
    assert [span.text for span in users if span.loss] == ["1"]


def test_closing_and_eos_are_trained_with_their_answer_or_not(tokenizer: Tokenizer) -> None:
    turns = talk([("", "1", "A"), ("", "2", "B")])
    last = named("gemma", tokenizer, loss={"turns": "last"}).render(turns)
    assert [span.text for span in last if span.loss] == ["B", "<end_of_turn>", "</s>"]
    bare = named("gemma", tokenizer, loss={"end_of_turn": False}).render(turns)
    assert [span.text for span in bare if span.loss] == ["A", "B"]
    messages = (turns.messages[0], Message("assistant", "A", loss=False), *turns.messages[2:])
    override = named("gemma", tokenizer).render(Conversation(messages))
    assert [span.text for span in override if span.loss] == ["B", "<end_of_turn>", "</s>"]


def test_bos_and_eos_can_be_left_out_or_insisted_on(tokenizer: Tokenizer) -> None:
    turns = talk([("", "1", "A"), ("", "2", "B")])

    def rendered(name: str, **settings: Any) -> str:
        return "".join(span.text for span in named(name, tokenizer, **settings).render(turns))

    assert rendered("mistral", bos="never", eos="never") == "[INST] 1 [/INST]A\n[INST] 2 [/INST]B\n"
    always = rendered("internlm2_chat", bos="always", eos="always")
    assert always.count("<s>") == always.count("<|im_end|></s>") == 2
    assert rendered("internlm2_chat").count("<s>") == 1
    assert rendered("internlm2_chat").count("</s>") == 0


@pytest.mark.parametrize("settings", [{"bos": "never"}, {"eos": "never"}, {"eos": "always"}])
def test_the_exported_template_follows_bos_and_eos(settings: dict[str, str], model: Model) -> None:
    for name in ("internlm2_chat", "llama2_chat"):
        template = named(name, model.tokenizer, **settings)
        assert model.render(template, talk(TALKS[1])) == template.sample(talk(TALKS[1]))[0]


def test_qwen_chatglm_and_glm_begin_in_their_own_way(tmp_path: Path) -> None:
    special = [*SPECIAL, "[gMASK]", "sop", "<sop>"]
    begun = {}
    folder = byte_level(tmp_path / "glm4", special=special, config={"bos_token": None})
    spans = named("glm4", load_tokenizer(folder)).render(talk([("", "1", "A"), ("", "2", "B")]))
    assert "".join(span.text for span in spans).startswith(
        "[gMASK]<sop><|user|>\n1<|assistant|>\nA<|endoftext|><|user|>"
    )
    for kind in ("Qwen2TokenizerFast", "ChatGLMTokenizer", "PreTrainedTokenizerFast"):
        folder = configured(byte_level(tmp_path / kind, special=special), {"tokenizer_class": kind})
        begun[kind] = named("chatglm3", load_tokenizer(folder)).render(talk([("", "1", "A")]))
    assert begun["Qwen2TokenizerFast"][0].text == "<|user|>"
    assert [span.text for span in begun["ChatGLMTokenizer"]][:3] == ["[gMASK]", "sop", "<|user|>"]
    assert [span.text for span in begun["PreTrainedTokenizerFast"]][:2] == ["<s>", "<|user|>"]


def test_a_bos_that_opens_every_message_is_not_written_twice(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, special=SPECIAL, config={"bos_token": "<|im_start|>"})
    spans = named("qwen_chat", load_tokenizer(folder)).render(talk([("", "1", "A")]))
    assert [span.text for span in spans][:2] == ["<|im_start|>", "user\n1"]


def test_answers_end_with_the_tokens_of_the_template(tokenizer: Tokenizer) -> None:
    ends = {name: [tokenizer.decode([id_]) for id_ in named(name, tokenizer).stop_tokens] for name in NAMES}
    assert ends["internlm2_chat"] == ["<|im_end|>"]
    assert ends["qwen_chat"] == ["<|im_end|>", "<|endoftext|>"]
    assert ends["gemma"] == ["<end_of_turn>", "</s>"]
    assert ends["mistral"] == ["</s>"]


@pytest.mark.parametrize(
    ("messages", "finding"),
    [
        ([("assistant", "A")], r"messages\[0\]: an assistant message without a user message before it"),
        ([("user", "1"), ("assistant", "A"), ("assistant", "B")], r"messages\[2\]: an assistant message without"),
        ([("user", "1"), ("assistant", "A"), ("user", "2")], r"messages\[2\]: the conversation ends before an answer"),
        ([("user", "1"), ("system", "S"), ("assistant", "A")], r"messages\[1\]: a system message stands alone before"),
        ([("system", "S"), ("system", "S"), ("user", "1")], r"messages\[1\]: a system message stands alone before"),
        ([("tool", "1")], r'messages\[0\]\.role: expected "system", "user" or "assistant", found "tool"'),
    ],
)
def test_messages_that_form_no_turns_are_refused(
    messages: list[tuple[str, str]], finding: str, tokenizer: Tokenizer
) -> None:
    conversation = Conversation(tuple(Message(role, text) for role, text in messages))
    with pytest.raises(RecordError, match=finding):
        named("internlm2_chat", tokenizer).render(conversation)


def test_what_a_template_has_no_form_for_is_refused_by_name(tokenizer: Tokenizer) -> None:
    with pytest.raises(RecordError, match=r"messages\[0\]: the minicpm template has no form for a system message"):
        named("minicpm", tokenizer).render(talk([("S", "1", "A")]))
    with pytest.raises(RecordError, match=r"tools: the mistral template has no form for tools"):
        named("mistral", tokenizer).render(Conversation(talk([("", "1", "A")]).messages, ({"name": "add"},)))
    message = Message("assistant", "A", extra={"reasoning_content": "Hm."})
    with pytest.raises(RecordError, match=r"messages\[1\]\.reasoning_content: the mistral template has no form for it"):
        named("mistral", tokenizer).render(Conversation((Message("user", "1"), message)))


def test_the_exported_template_refuses_what_training_refused(model: Model) -> None:
    from jinja2 import TemplateError

    jinja = named("minicpm", model.tokenizer).jinja
    for roles in (["system", "user"], ["assistant"], ["tool"]):
        with pytest.raises(TemplateError, match="this template takes"):
            model.theirs.apply_chat_template([{"role": role, "content": "x"} for role in roles], chat_template=jinja)


def test_a_system_text_can_ask_by_itself(model: Model) -> None:
    conversation = Conversation((Message("system", "Answer."), Message("assistant", "A"), *talk(TALKS[0]).messages))
    for name in ("internlm2_chat", "llama2_chat", "moss_sft"):
        template = named(name, model.tokenizer)
        tokens, loss = template.sample(conversation)
        assert model.render(template, conversation) == tokens
        prompt = template.prompt(Conversation(conversation.messages[:1]))
        assert tokens[: len(prompt)] == prompt
        assert loss[len(prompt)]
    spans = named("mistral", model.tokenizer).render(conversation)
    assert "".join(span.text for span in spans).removeprefix("<s>").startswith("[INST] Answer. [/INST]\n [/INST]A")


def test_neighbouring_user_messages_are_one_text(tokenizer: Tokenizer) -> None:
    messages = (Message("user", "the do"), Message("user", "g"), Message("assistant", "A"))
    together = named("mistral", tokenizer).sample(talk([("", "the dog", "A")]))
    assert named("mistral", tokenizer).sample(Conversation(messages)) == together


def test_a_template_that_ends_with_eos_needs_one(tmp_path: Path) -> None:
    folder = byte_level(tmp_path, config={"eos_token": None})
    with pytest.raises(ConfigError, match="ends answers with EOS, and the tokenizer has no eos_token"):
        named("mistral", load_tokenizer(folder))
