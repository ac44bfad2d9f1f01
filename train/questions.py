"""The prompts of [train.eval] as token ids: rendered by what prep trained with and the export ships."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer

from pipelines.errors import CheckError, ConfigError
from pipelines.probes import Probes
from pipelines.prompt import Prompts
from pipelines.template_process import TemplateFault
from pipelines.tokenizer_files import SpecialTokens, special_tokens, tokenizer_files
from train.plan import Plan


@dataclass(frozen=True)
class Question:
    """One prompt."""

    text: str
    ids: list[int]
    """As the exported model's users will give it to the model."""
    room: int
    """Tokens that the answer may have."""


class Questions:
    """All prompts, and what turns answers into text.

    Args:
        plan: a run with a [train.eval] table.
        config: the model's.
    Raises:
        ConfigError: if a prompt has no form in the template, holds a special token, or leaves no room for an answer.
        CheckError: if the tokenizer would prompt the model otherwise, once exported, than it is trained.
    """

    def __init__(self, plan: Plan, config: Any) -> None:
        table = plan.train.eval
        assert table is not None
        folder = plan.shards / "tokenizer"
        self._pipeline = plan.pipeline
        self._special = special_tokens(folder, config.to_dict())
        self._tokenizer = _as_exported(folder, self._special)
        if finding := Probes.read(folder).difference(self._tokenizer, folder):
            raise CheckError(f"{folder}: {finding}; remove train.eval.prompts to train all the same")
        self._prompts = Prompts(self._tokenizer, f"{folder}: the chat template")
        self.system = table.system
        self.stop = frozenset(self._special.stop)
        """Tokens that end an answer."""
        positions = _positions(config.get_text_config())
        self.all = [
            self._question(f"train.eval.prompts.{index}", text, table.max_new_tokens, positions)
            for index, text in enumerate(table.prompts)
        ]

    def spoken(self, ids: Sequence[int]) -> str:
        """An answer as text, without special tokens and the whitespace around it."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def _question(self, place: str, text: str, most: int, positions: int | None) -> Question:
        if self._pipeline.template.special_text != "allow":
            self._refuse_special_text("train.eval.system", self.system)
            self._refuse_special_text(place, text)
        plain = self._tokenizer.chat_template is None
        ids = self._as_plain_text(place, text) if plain else self._in_template(place, text)
        room = most if positions is None else min(most, positions - len(ids))
        if room < 1:
            raise ConfigError(
                f"{self._pipeline.cite(place)}: {len(ids)} tokens, and the model has {positions} positions, which "
                "leaves none for an answer; shorten it"
            )
        return Question(text, ids, room)

    def _in_template(self, place: str, text: str) -> list[int]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        messages = [*system, {"role": "user", "content": text}]
        try:
            return self._prompts.ids(messages)
        except TemplateFault as fault:
            key = "train.eval.system" if self.system else place
            raise ConfigError(
                f"{self._pipeline.cite(key)}: the template refuses it ({fault.message}); remove it"
            ) from fault

    def _as_plain_text(self, place: str, text: str) -> list[int]:
        if self.system:
            raise ConfigError(f"{self._pipeline.cite('train.eval.system')}: has no place in plain text; remove it")
        bos, asked = self._special.bos, self._pipeline.template.bos
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        begins = asked == "always" or (asked == "auto" and self._tokenizer("")["input_ids"][:1] == [bos])
        if bos is not None and begins:
            ids = [bos, *ids]
        if not ids:
            raise ConfigError(f"{self._pipeline.cite(place)}: is no token; remove it")
        return ids

    def _refuse_special_text(self, key: str, text: str) -> None:
        # In the data it is plain text, as [template] says, and here it would be the token.
        added = (token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special)
        if found := next(
            (name for name in sorted({*self._tokenizer.all_special_tokens, *added}) if name in text), None
        ):
            raise ConfigError(f"{self._pipeline.cite(key)}: holds the special token {found!r} as text; remove it")


def _positions(config: Any) -> int | None:
    """How many positions a text model has, before it would scale them for longer texts."""
    limits = [getattr(config, "max_position_embeddings", None)]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        limits.append(rope.get("original_max_position_embeddings"))
    return min((limit for limit in limits if limit), default=None)


def _as_exported(folder: Path, special: SpecialTokens) -> Any:
    """The tokenizer as Transformers loads it from an export: what prompts a model wherever it is used."""
    with TemporaryDirectory() as files:
        for name, content in tokenizer_files(folder, special).items():
            (Path(files) / name).write_bytes(content)
        return AutoTokenizer.from_pretrained(files, local_files_only=True, trust_remote_code=False)
