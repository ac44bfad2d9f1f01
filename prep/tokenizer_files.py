"""The tokenizer directory that travels with the packs: what the trainer keeps and the exporter ships."""

import json
from pathlib import Path

from pipelines import schema
from pipelines.artifacts import make_directory, write_atomic
from pipelines.probes import Probe, Probes
from pipelines.sentencepiece_json import transformers_files
from prep.conversation import Conversation, Message, RecordError
from prep.template import Template
from prep.tokenizer import Tokenizer

_CONVERSATIONS = (
    [("user", "What is 2 + 3?")],
    [("user", "请用一句话介绍上海。")],
    [("system", "Answer briefly."), ("user", "Name a colour.")],
    [("user", "Hello!"), ("assistant", "Hello, how can I help?"), ("user", "  Repeat:\n\tthis, twice\n ")],
    [("user", "café 🙂 x=1;\r\n\r\n    y"), ("assistant", "1. one\n2. two"), ("user", "接下来呢?")],
)


def write_tokenizer_files(tokenizer: Tokenizer, settings: schema.Template, folder: Path, *, chat: bool) -> None:
    """Write the tokenizer as plain Transformers loads it, with the template that prep renders and probes of it.

    Args:
        tokenizer: what prep tokenized with.
        settings: the [template] table.
        folder: is created.
        chat: whether prep rendered conversations; without, the tokenizer's own template goes along if it has one.
    """
    make_directory(folder)
    contents = plain_files(tokenizer)
    if chat or tokenizer.chat_template is not None:
        template = Template(settings, tokenizer)
        if template.jinja is not None:
            contents["chat_template.jinja"] = template.jinja.encode("utf-8")
            contents["tokenizer_config.json"] = _without_template(contents.get("tokenizer_config.json", b"{}"))
        Probes(template.stop_tokens, _probes(template) if template.jinja else ()).write(folder)
    for name, content in sorted(contents.items()):
        write_atomic(folder / name, content)


def plain_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Contents by name of the tokenizer's files as plain Transformers loads them, with its own template."""
    contents = dict(tokenizer.files)
    if "tokenizer.json" not in contents:
        contents.update(transformers_files(tokenizer.folder, contents))
    return contents


def _without_template(config: bytes) -> bytes:
    # One place for the template: the Jinja file, which every current reader prefers.
    table = json.loads(config)
    table.pop("chat_template", None)
    return json.dumps(table, indent=1, ensure_ascii=False).encode("utf-8") + b"\n"


def _probes(template: Template) -> list[Probe]:
    """Conversations that any reader of the exported template tokenizes as training did: see `Template.served`."""
    found = []
    for turns in _CONVERSATIONS:
        conversation = Conversation(tuple(Message(role, content) for role, content in turns))
        try:
            ids = template.prompt(conversation)
        except RecordError:
            continue  # a template without system messages, say: then nothing like it was trained on either
        if ids == template.served(conversation):
            found.append(Probe([{"role": role, "content": content} for role, content in turns], ids))
    return found
