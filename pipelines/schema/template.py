"""[template]: conversations to text."""

from typing import Literal, Self

from pydantic import (
    model_validator,
)

from pipelines.schema.values import LocalPath, Table, fault


class Loss(Table):
    """[template.loss]: which tokens of a conversation are trained on."""

    roles: list[str] = ["assistant"]
    """Roles whose content carries loss; a message's own `loss` field overrides."""
    end_of_turn: bool = True
    """Train the end-of-turn token of those roles."""
    turns: Literal["all", "last"] = "all"
    """Which of those turns are trained."""
    tool_calls: bool = True
    """Train the tool calls of those roles' messages."""
    reasoning: bool = True
    """Train the reasoning_content of those roles' messages."""
    on_empty: Literal["error", "drop", "keep"] = "error"
    """A record without any token to train: stop, drop and count it, or keep it (a stream that is cut needs it)."""


class Template(Table):
    """[template]: conversations to text. One object renders training text, prompts and the exported template."""

    name: str = "tokenizer"
    """`tokenizer` for its own chat template, `custom` for `file`, `none` for plain text, or e.g. `internlm2_chat`."""
    file: LocalPath | None = None
    """With name = "custom": a Jinja file; its {% generation %} blocks say what carries loss."""
    system: str = ""
    """System text of a conversation that has none."""
    bos: Literal["auto", "always", "never"] = "auto"
    """BOS at the beginning: auto as the named template has it, and in plain text if the tokenizer adds one itself."""
    eos: Literal["auto", "always", "never"] = "auto"
    """EOS at the end: auto as the named template has it, and in plain text if the tokenizer has one."""
    special_text: Literal["escape", "error", "allow"] = "escape"
    """Special-token text in data: plain text all the same, an error, or the special token it spells."""
    loss: Loss = Loss()

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        if (self.file is None) == (self.name == "custom"):
            raise fault('goes together with name = "custom"; set both or none of them', "file" if self.file else "name")
        for key, value in (("bos", self.bos), ("eos", self.eos)):
            if value != "auto" and self.name in ("tokenizer", "custom"):
                raise fault("has no effect here, since the chat template itself writes BOS and EOS; remove it", key)
        if self.system and self.name == "none":
            raise fault("has no place in plain text; remove it, or name a template", "system")
        return self
