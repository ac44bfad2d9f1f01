"""Plain text, as in pre-training: BOS, the text, EOS; every token of it is a target."""

from collections.abc import Iterator, Sequence

from pipelines.errors import ConfigError
from prep.conversation import Conversation, RecordError
from prep.spans import Span, cut
from prep.tokenizer import Tokenizer


class PlainText:
    """One text to spans, without a template.

    Args:
        tokenizer: has BOS and EOS.
        bos: "auto": where the tokenizer itself puts one before a text; "always"; "never".
        eos: "auto": where the tokenizer has one; "always"; "never".
        escape: special-token text stays plain text; otherwise it becomes the special token.
    Raises:
        ConfigError: if the tokenizer lacks a token that is always wanted.
    """

    jinja = None

    def __init__(self, tokenizer: Tokenizer, *, bos: str, eos: str, escape: bool) -> None:
        names = tokenizer.named_tokens
        for part, setting in (("bos", bos), ("eos", eos)):
            if setting == "always" and f"{part}_token" not in names:
                raise ConfigError(f'template.{part} = "always": the tokenizer has no {part}_token; set it to "auto"')
        self._tokenizer = tokenizer
        self._escape = escape
        self._bos = names["bos_token"] if bos == "always" or (bos == "auto" and tokenizer.adds_bos) else ""
        self._eos = names.get("eos_token", "") if eos != "never" else ""

    @property
    def stop_tokens(self) -> list[int]:
        """EOS, where a text ends with it."""
        return [self._tokenizer.special_tokens[self._eos]] if self._eos else []

    def spans(self, conversation: Conversation, trained: Sequence[bool]) -> list[Span]:
        """The text of the only message, whatever its role; all of it is trained unless the message says otherwise."""
        assert len(trained) == len(conversation.messages)
        loss = conversation.messages[0].loss is not False
        spans = [*self._opening(conversation, loss=loss)]
        return [*spans, Span(self._eos, loss, special=True)] if self._eos else spans

    def prompt(self, conversation: Conversation) -> list[Span]:
        """The text without its end, to be continued."""
        return [*self._opening(conversation, loss=False)]

    def _opening(self, conversation: Conversation, *, loss: bool) -> Iterator[Span]:
        text = conversation.messages[0].content
        if len(conversation.messages) != 1 or conversation.tools or text is None:
            raise RecordError(
                "",
                'a conversation, but template.name = "none" takes plain text: name a template, or use map "pretrain"',
            )
        if self._bos:
            yield Span(self._bos, special=True)
        if self._escape:
            yield Span(text, loss, opens=True)
        else:
            yield from cut(text, self._tokenizer, opens=True, loss=loss)
