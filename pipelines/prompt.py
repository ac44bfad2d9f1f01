"""Prompts of conversations as Transformers makes them, by a chat template that is held to `Bounds`."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pipelines.bounds import Bounds
from pipelines.template_process import Render, TemplateFault, TemplateProcess


class Prompts:
    """A tokenizer of Transformers with its chat template, in place of `apply_chat_template`.

    Args:
        tokenizer: with a chat template.
        name: what an error calls the template.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        self._tokenizer, self._name = tokenizer, name

    def text(self, messages: Sequence[Mapping[str, Any]], *, asks: bool = True) -> str:
        """A conversation rendered, with the generation prompt if it `asks` for an answer.

        Raises:
            TemplateFault: if the template refuses it.
            RunawayTemplate: if that takes too much.
        """
        values = {
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": asks,
            "special": dict(self._tokenizer.special_tokens_map),
        }
        characters = sum(len(str(message.get("content"))) for message in messages)
        source = self._tokenizer.get_chat_template()
        return _process().render(source, values, Bounds.of(len(messages), characters), self._name)[0]

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The token ids of a conversation up to where its answer begins; errors are those of `text`."""
        found: list[int] = self._tokenizer(self.text(messages), add_special_tokens=False)["input_ids"]
        return found


@cache
def _process() -> TemplateProcess:
    """The one that renders for this process; it takes half a second to start."""
    return TemplateProcess("pipelines.prompt:compiled")


def compiled(source: str) -> Render:
    """A template's text to what renders it, for the process that may be lost to it."""
    # Imported by that process alone: half a second, without torch.
    from jinja2 import TemplateError, UndefinedError
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(values: Mapping[str, Any]) -> str:
        conversation, asks = [list(values["messages"])], values["add_generation_prompt"]
        try:
            texts, _ = render_jinja_template(
                conversation, chat_template=source, add_generation_prompt=asks, **values["special"]
            )
        except UndefinedError as error:
            raise TemplateFault("undefined", str(error)) from error
        except TemplateError as error:
            raise TemplateFault("refused", str(error)) from error
        except MemoryError:
            raise
        except Exception as error:  # a template can raise whatever its expressions raise
            raise TemplateFault("failed", f"{type(error).__name__}: {error}") from error
        return str(texts[0])

    return render
