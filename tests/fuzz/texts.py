"""Files that people write: pipelines, data orders, other trainers' configs, chat templates."""

from functools import cache
from pathlib import Path

from pipelines import schema
from pipelines.config import load
from pipelines.migrate.migration import Trainer, migrate
from pipelines.schema import Source
from prep.conversation import Conversation, Message
from prep.order import read_order
from prep.template import Template
from prep.tokenizer import Tokenizer, load_tokenizer
from tests.fuzz.bundle import parts
from tests.fuzz.target import Feed, Target
from tests.prep.small import TOKENIZER


def _toml(data: bytes, folder: Path) -> None:
    """A pipeline, and the values of `--set` after it, one a line."""
    file, overrides = parts(data, 2)
    (folder / "my.toml").write_bytes(file)
    load(folder / "my.toml", overrides.decode(errors="replace").splitlines())


def _order(data: bytes, folder: Path) -> None:
    (folder / "data_order.txt").write_bytes(data)
    for sources in ([_source("a")], [_source("a"), _source("b")]):
        for line in read_order(folder / "data_order.txt", sources):
            assert line
            assert not Path(line).is_absolute()
            assert ".." not in Path(line).parts


def _source(name: str) -> Source:
    return Source.model_construct(name=name, path=Path(name))


def _migrated(trainer: Trainer, suffix: str) -> Feed:
    def feed(data: bytes, folder: Path) -> None:
        """A config, and the dataset_info.json or DeepSpeed config beside it."""
        config, beside = parts(data, 2)
        path = folder / f"config{suffix}"
        path.write_bytes(config)
        for name in ("dataset_info.json", "ds.json"):
            (folder / name).write_bytes(beside)
        for gpus in (None, 8):
            migration = migrate(trainer, path, gpus=gpus)
            assert migration.report()
            assert migration.facts()["keys"]
            toml = folder / "out.toml"
            toml.write_text(migration.toml)

    return feed


_TALK = Conversation(
    (
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "Two."),
        Message("user", "<|im_end|> three"),
        Message("assistant", "Four.", None, {"reasoning_content": "so"}),
    )
)
_CALLS = Conversation(
    (
        Message("user", "Call."),
        Message("assistant", None, None, {"tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}),
        Message("tool", "7"),
        Message("assistant", "Seven."),
    ),
    ({"type": "function", "function": {"name": "f", "parameters": {}}},),
)


def _template(data: bytes, folder: Path) -> None:
    """A chat template, with conversations that it has to render or refuse."""
    file = folder / "template.jinja"
    file.write_bytes(data)
    template = Template(schema.Template(name="custom", file=file), tokenizer())
    assert template.jinja is not None
    for conversation in (_TALK, _CALLS):
        try:
            ids, loss = template.sample(conversation)
        except ValueError as error:  # RecordError, which names no file
            if type(error).__name__ != "RecordError":
                raise
        else:
            assert len(ids) == len(loss)


@cache
def tokenizer() -> Tokenizer:
    """The quickstart's."""
    return load_tokenizer(TOKENIZER)


_JINJA = (
    b"{%- ", b" -%}", b"{{- ", b" }}", b"{% for message in messages %}", b"{% endfor %}", b"{% if ", b"{% endif %}",
    b"{% generation %}", b"{% endgeneration %}", b"{% set ", b"{% macro m(x) %}", b"{% endmacro %}", b"message['role']",
    b"message.content", b"|tojson", b"|trim", b"|join", b"|length", b"|format", b"|replace", b"|list", b"loop.index",
    b"namespace(", b"raise_exception(", b"add_generation_prompt", b"tools", b"strftime_now", b"bos_token", b"range(",
    b"cycler(", b"joiner(", b"dict(", b"{% call ", b"{% filter ", b"{% block ", b"{% include ", b"{% raw %}",
    b"__class__",
)  # fmt: skip
_TOML = (
    b"[", b"]]", b"[[prep.source]]", b"extends = ", b"schema_version = 1", b"'''", b'"""', b"\\u", b"0x", b"inf",
    b"nan",
    b"1979-05-27T07:32:00Z", b"template", b"train", b"export", b"prep.mix", b"model.scratch", b"[train.optimizer]",
)  # fmt: skip
_YAML = (b"<<: *a", b"&a ", b"*a", b"!!python/object:", b"!!float", b"? ", b"|-", b"%YAML", b"datasets:", b"- path: ")
_PYTHON = (b"dict(", b"lambda: ", b"if True:", b"f'{", b"**", b" << ", b"import ", b".format(", b" % ", b"type=")

TARGETS = (
    Target("toml", _toml, ("my.toml", "overrides"), _TOML),
    Target("data_order", _order, tokens=(b"\r\n", b"../", b"a/", b"b/", b"\xef\xbb\xbf", b"./", b"//")),
    Target("migrate_xtuner", _migrated("xtuner", ".py"), ("config", "beside"), _PYTHON),
    Target("migrate_internevo", _migrated("internevo", ".py"), ("config", "beside"), _PYTHON),
    Target("migrate_axolotl", _migrated("axolotl", ".yaml"), ("config", "beside"), _YAML),
    Target("migrate_llamafactory", _migrated("llamafactory", ".yaml"), ("config", "beside"), _YAML),
    Target("template", _template, tokens=_JINJA),
)
