"""What a record becomes before it is rendered: messages in their order, and the tools on offer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Json = Any
"""What a JSON parser returns."""


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str | None
    """None where the message consists of tool calls."""
    loss: bool | None = None
    """Whether it is trained; None leaves it to template.loss."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """What chat templates read besides: name, reasoning_content, tool_calls, tool_call_id."""


@dataclass(frozen=True)
class Conversation:
    """Messages in their order, and the tools on offer."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Json], ...] = ()


class RecordError(ValueError):
    """A record that does not have the shape its map reads: JSON path, expected, found. The caller adds the place."""

    def __init__(self, path: str, finding: str) -> None:
        super().__init__(f"{path}: {finding}" if path else finding)
