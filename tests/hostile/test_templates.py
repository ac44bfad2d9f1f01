"""Chat templates that loop, allocate or walk attributes: 2 s and 256 MB in a process of their own, everywhere."""

import os
import re
import resource
import signal
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from export.chat import Speaker
from export.run import run as export
from pipelines import schema
from pipelines.bounds import USUAL, Bounds, RunawayTemplate
from pipelines.errors import ConfigError
from pipelines.template_process import TemplateFault
from prep.conversation import Conversation, Message
from prep.jinja import Elsewhere
from prep.template import Template
from prep.tokenizer import load_tokenizer
from tests.export.tiny import PROBES, pipeline, write_run
from tests.hostile.process import ended, packtrain
from tests.prep.folders import byte_level
from tests.prep.small import conversations
from tests.prep.test_template import CHATML, chat

LOOPS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one instruction": "{% set n = namespace(a=9) %}{% for _ in range(99) %}{% set n.a = n.a ** 9 %}{% endfor %}",
}
ALLOCATES = {
    "text": "{{ 'a' * n }}",
    "list": "{% set a = [1] * n %}",
    "format": "{{ '%1000000000d' % n }}",
    "centre": "{{ 'a'.center(n) }}",
    "doubling": "{% set n = namespace(a='a') %}{% for _ in range(40) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "replacing": "{{ ('a' * (n // 100)).replace('a', 'b' * 1000) }}",
}
COMPILED = {
    "folded": ("{{ 10 ** (10 ** 8) }}", RunawayTemplate),
    "brackets": ("{{ " + "[" * 10_000 + " }}", TemplateFault),
    "parentheses": ("{{ " + "(" * 1_000_000 + ")" * 1_000_000 + " }}", TemplateFault),
    "blocks": ("{% if a %}" * 5000 + "{% endif %}" * 5000, TemplateFault),
    "operators": ("{{ " + "-" * 100_000 + "1 }}", TemplateFault),
}
WALKS = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__')|attr('__base__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|groupby('__class__') }}",
    "{{ '{0.__class__.__base__}'.format(messages) }}",
    "{{ ('{0.__class__}'|attr('format'))(messages) }}",
    "{{ '{a.__class__}'.format_map({'a': messages}) }}",
    "{{ raise_exception.__globals__['json'].codecs.open('/etc/passwd').read() }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ dict.mro() }}",
    "{{ dict.__base__ }}",
    "{% macro f() %}{{ caller.__code__ }}{% endmacro %}{{ f.__globals__ }}",
    "{% set n = namespace() %}{% set n.__class__ = dict %}",
    "{{ namespace(__class__=1) }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as p %}",
    "{% extends 'prep/jinja.py' %}",
    "{% from 'os' import system %}",
    "{{ lipsum(n=9) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'content': 'x'}) }}",
]


def render(source: str, bounds: Bounds = USUAL) -> str:
    template = Elsewhere(source, "t.jinja")
    with template.within(bounds):
        return template.render({"messages": [{"role": "user", "content": "question"}], "n": 10**9})


def talk(text: str = "question") -> Conversation:
    return Conversation((Message("user", text), Message("assistant", "answer")))


@pytest.mark.parametrize("source", LOOPS.values(), ids=LOOPS)
def test_a_loop_ends_after_two_seconds_of_processor_time(source: str) -> None:
    render("")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with pytest.raises(RunawayTemplate, match=r"^t\.jinja takes more than 2 s of processor time for one conversation"):
        render(source)
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    # A timer counts the kernel's ticks, and getrusage does not.
    assert 1.5 < spent.ru_utime + spent.ru_stime - before.ru_utime - before.ru_stime < 3
    assert render("{{ 1 }}") == "1"  # by another process


@pytest.mark.parametrize("source", ALLOCATES.values(), ids=ALLOCATES)
def test_an_allocation_ends_at_256_mb(source: str) -> None:
    with pytest.raises(RunawayTemplate, match=r"^t\.jinja takes more than 256 MB of memory for one conversation"):
        render(source)


ALLOCATE = """
from tests.hostile.test_templates import ALLOCATES, RunawayTemplate, render
for source in ALLOCATES.values():
    try:
        render(source)
    except RunawayTemplate as error:
        print(error)
"""


def test_what_allocates_holds_no_more_than_that() -> None:
    done = ended([sys.executable, "-c", ALLOCATE], env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert done.out.count("256 MB of memory") == len(ALLOCATES), done.err
    assert done.peak_mb < 256 + 128  # of the process that renders, or of the one that imports what tests need


WITHOUT_PROC = """
from pipelines import bounds
from prep.jinja import Here
bounds._STATM = "/nowhere"
template = Here("{{ 'a' * n }}{% for a in range(n) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "t.jinja")
with template.within(bounds.USUAL):
    print(len(template.render({"n": 3})))
    template.render({"n": 99999})
"""


def test_where_nothing_says_what_a_process_holds_its_time_is_bounded() -> None:
    done = ended([sys.executable, "-c", WITHOUT_PROC], env={"PYTHONPATH": str(Path(__file__).parents[2])})
    assert (done.code, done.out.strip()) == (128 + signal.SIGPROF, "3"), done.err


@pytest.mark.parametrize(("source", "error"), COMPILED.values(), ids=COMPILED)
def test_what_only_compiling_would_take_is_bounded_too(source: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        render(source)
    assert render("{{ 1 }}") == "1"


def test_a_rendering_that_outgrows_its_record_goes_no_further() -> None:
    with pytest.raises(RunawayTemplate, match="makes more than 4,194,304 characters of one conversation"):
        render("{{ 'a' * (n // 100) }}")


def test_renderings_of_one_record_share_its_time() -> None:
    template = Elsewhere("{% for a in range(3000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}", "t.jinja")

    def render_often() -> None:
        with template.within(USUAL):
            for _ in range(100):
                template.render({})

    with pytest.raises(RunawayTemplate, match="processor time"):
        render_often()


def test_a_forked_copy_renders_by_a_process_of_its_own() -> None:
    assert render("{{ 1 }}") == "1"
    child = os.fork()
    if not child:
        os._exit(0 if render("{{ 2 }}") == "2" else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert render("{{ 3 }}") == "3"


@pytest.mark.parametrize("source", WALKS)
def test_attributes_files_and_values_of_ours_are_out_of_reach(source: str) -> None:
    try:
        text = render(source)
    except TemplateFault:
        return
    assert not any(word in text for word in ("class", "root:", "object", "globals", "lorem"))


def test_a_record_of_thousands_of_messages_has_the_time_that_it_needs() -> None:
    bounds = Bounds.of(5000, 1 << 24)
    assert (bounds.seconds, bounds.memory >> 20, bounds.text >> 20) == (300, 256 + 1024, 256)
    assert Bounds.of(100, 1 << 18) is USUAL


def test_a_template_that_never_ends_is_an_error_before_any_record(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the chat template of .* takes more than 2 s of processor time"):
        chat(tmp_path, LOOPS["loops"])


def test_a_template_renders_in_this_process_as_elsewhere(tmp_path: Path) -> None:
    byte_level(tmp_path, config={"chat_template": CHATML})
    one, other = (Template(schema.Template(), load_tokenizer(tmp_path), expendable=here) for here in (False, True))
    assert one.render(talk()) == other.render(talk())
    hostile = "{%- if messages[0].content == 'x' -%}{{ 'a' * 10 ** 9 }}{%- endif -%}"
    byte_level(tmp_path, config={"chat_template": hostile + CHATML})
    here = Template(schema.Template(), load_tokenizer(tmp_path), expendable=True)
    with pytest.raises(RunawayTemplate, match="256 MB"):
        here.render(talk("x"))
    assert here.render(talk())  # the limit ends with the record


# --- as users meet them

AT = "{%- if messages[0]['content'].startswith('word 77 ') -%}"


def make(folder: Path, source: str, *, lines: int = 100, prep: str = "") -> Path:
    """A pipeline whose template does something at its 78th record alone."""
    byte_level(folder / "model", config={"chat_template": AT + source + "{%- endif -%}" + CHATML})
    (folder / "data").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / "data" / name).write_text(conversations(lines))
    file = folder / "run.toml"
    file.write_text(
        f'schema_version = 1\n[run]\nname = "r"\n[model.scratch]\nmodel_type = "llama"\n[tokenizer]\n'
        f'name_or_path = "model"\n[prep]\n{prep}\n[[prep.source]]\nname = "chats"\npath = "data"\n'
        '[prep.pack]\ncapacity = 256\n[prep.order]\nmode = "write"\n'
    )
    return file


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("source", "finding"), [(LOOPS["loops"], "2 s of processor"), ("{{ 'a' * 10 ** 9 }}", "256 MB")]
)
def test_prep_names_template_source_and_record(tmp_path: Path, workers: int, source: str, finding: str) -> None:
    # A record that a template takes too much for is never left out: that would depend on the machine.
    file = make(tmp_path, source, prep=f'workers = {workers}\non_bad_record = "skip"\nmax_bad_fraction = 1.0')
    done = packtrain("prep", file, cwd=tmp_path)
    assert done.code == 3, done.err
    assert re.search(r"data/a\.jsonl:78 \(source 'chats'\): the chat template of \S*model takes more", done.err), (
        done.err
    )
    assert finding in done.err
    assert "do not trust it" in done.err
    assert "Traceback" not in done.err
    assert done.peak_mb < 700
    assert done.seconds < 20
    assert not (tmp_path / "work" / "r" / "prep" / "manifest.json").exists()


@pytest.mark.slow
def test_check_and_preview_end_too(tmp_path: Path) -> None:
    file = make(tmp_path, LOOPS["loops"])
    shown = packtrain("preview", file, "--sample", "chats/a.jsonl:78", cwd=tmp_path)
    assert (shown.code, "data/a.jsonl:78: the chat template of" in shown.err) == (3, True), shown.err
    assert packtrain("preview", file, "--sample", "chats/a.jsonl:77", cwd=tmp_path).code == 0
    text = (tmp_path / "model" / "tokenizer_config.json").read_text()
    (tmp_path / "model" / "tokenizer_config.json").write_text(text.replace("word 77 ", "How far"))  # a probe's words
    checked = packtrain("check", file, cwd=tmp_path)
    assert checked.code in (2, 3), checked.err
    assert "takes more than 2 s of processor time" in checked.err + checked.out
    assert "Traceback" not in checked.err


def test_chat_and_the_exports_check_of_its_prompts_end_too(tmp_path: Path) -> None:
    write_run(tmp_path)
    export(pipeline(tmp_path, targets=["hf"]))
    folder = tmp_path / "work" / "tiny" / "export" / "hf"
    (folder / "manifest.json").unlink()  # as somebody else's
    template = folder / "chat_template.jinja"
    template.write_text(
        "{%- if messages[0].content == 'word' -%}" + LOOPS["loops"] + "{%- endif -%}" + template.read_text()
    )
    speaker = Speaker(folder, 2)
    with pytest.raises(RunawayTemplate, match=r"hf: the chat template takes more than 2 s"):
        speaker.answer([{"role": "user", "content": "word"}], show=False)
    template.write_text("{{ 'a' * 10 ** 9 }}")
    with pytest.raises(RunawayTemplate, match=r"hf: the chat template takes more than 256 MB"):
        PROBES.difference(AutoTokenizer.from_pretrained(folder, local_files_only=True), folder)
