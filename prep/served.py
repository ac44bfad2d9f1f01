"""Conversations as a reader of the export tokenizes them: the whole rendering at once, by the shipped files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from pipelines.bounds import USUAL
from pipelines.template_process import TemplateFault
from prep.conversation import Conversation, RecordError
from prep.jinja import MARKS, Elsewhere
from prep.stand_ins import as_dict

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Served:
    """A tokenizer directory with a chat template, as Transformers uses it; `prep.tokenizer_files` writes such a one.

    Nothing here is shared with what renders training text but the environment that templates are compiled in.
    """

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
        source = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        self._template = Elsewhere(source, "the exported chat template")
        self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.add_tokens([token for token in _added(config) if self._is_unknown(token.content)])
        self._named = {name: _text(config[name]) for name in _NAMED if config.get(name) is not None}

    def text(self, conversation: Conversation, *, prompt: bool) -> str:
        """The conversation as text.

        Raises:
            RecordError: if the template refuses it.
        """
        # Servers give a call's arguments as an object or as text, and no content or an empty one, as templates want.
        called = any("tool_calls" in message.extra for message in conversation.messages)
        forms = [(False, None), (True, None), (False, ""), (True, "")] if called else [(False, None)]
        refused: RecordError | None = None
        for arguments_as_text, nothing in forms:
            messages = [as_dict(message, arguments_as_text=arguments_as_text) for message in conversation.messages]
            for message in messages:
                message["content"] = nothing if message["content"] is None else message["content"]
            try:
                return self._rendered(messages, conversation, prompt=prompt)
            except RecordError as error:
                refused = refused or error
        assert refused is not None
        raise refused

    def _rendered(self, messages: list[dict[str, Any]], conversation: Conversation, *, prompt: bool) -> str:
        values = {
            "messages": messages,
            "tools": list(conversation.tools) or None,
            "documents": None,
            "add_generation_prompt": prompt,
            **self._named,
            MARKS: ("", ""),
        }
        try:
            with self._template.within(USUAL):
                return self._template.render(values)
        except TemplateFault as fault:
            verb = "refuses" if fault.kind == "refused" else "fails on"
            raise RecordError("messages", f"the exported chat template {verb} it: {fault.message}") from fault

    def ids(self, conversation: Conversation, *, prompt: bool) -> list[int]:
        """The conversation as token ids, which is what the model is given."""
        found: list[int] = self._tokenizer.encode(self.text(conversation, prompt=prompt), add_special_tokens=False).ids
        return found

    def _is_unknown(self, text: str) -> bool:
        return self._tokenizer.token_to_id(text) is None


def _added(config: Mapping[str, Any]) -> list[Any]:
    listed = sorted((int(id_), entry) for id_, entry in (config.get("added_tokens_decoder") or {}).items())
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return [
        tokenizers.AddedToken(entry["content"], **{flag: bool(entry.get(flag, False)) for flag in flags})
        for _, entry in listed
    ]


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
