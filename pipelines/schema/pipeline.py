"""The whole file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    PrivateAttr,
    model_validator,
)

from pipelines.schema.export import Export
from pipelines.schema.model import Model, Run, Tokenizer
from pipelines.schema.prep import Prep
from pipelines.schema.template import Template
from pipelines.schema.train import Train
from pipelines.schema.values import LocalPath, Table, Whole, fault
from pipelines.toml_text import KeyPath, spell_key, spell_value


class Pipeline(Table):
    """One TOML file. A stage reads its own table and the shared ones above it, nothing else."""

    schema_version: Annotated[Literal[1], Whole] = Field(examples=[1])
    """Version of these keys."""
    extends: list[LocalPath] = []
    """Other files that this one completes, merged in order with this file last: tables merge, the rest replaces."""
    run: Run
    model: Model
    tokenizer: Tokenizer = Tokenizer()
    template: Template = Template()
    prep: Prep
    train: Train | None = None
    """Without it the pipeline ends after prep."""
    export: Export = Export()

    _places: Mapping[KeyPath, object] = PrivateAttr(default_factory=dict)
    _base: Path = PrivateAttr(default_factory=Path)
    _origins: Mapping[str, Mapping[str, str]] = PrivateAttr(default_factory=dict)

    def model_post_init(self, context: Any, /) -> None:
        if context:
            self._places = context.get("places", {})
            self._base = Path(context.get("base", ""))

    def cite(self, key: str) -> str:
        """`file:line:column: key = value` of a key such as `prep.source.0.path`, to begin a message about it.

        A key that the file leaves to its default is cited at its table, with the default.
        """
        value: Any = self
        path: KeyPath = ()
        for part in key.split("."):
            step = int(part) if isinstance(value, list | tuple) else part
            value = getattr(value, part) if isinstance(value, BaseModel) else value[step]
            path = (*path, step)
        text = spell_key(path)
        if not isinstance(value[0] if isinstance(value, list) and value else value, BaseModel | dict | None):
            text += f" = {spell_value(value)}"
        while path and path not in self._places:
            path = path[:-1]
        return f"{self._places[path]}: {text}" if path in self._places else text

    @property
    def base(self) -> Path:
        """Where the paths of the file begin."""
        return self._base

    @property
    def origins(self) -> Mapping[str, Mapping[str, str]]:
        """What was taken from a hub, `model` or `tokenizer`: its source, repository and revision."""
        return self._origins

    def located(self, key: Literal["model", "tokenizer"], folder: Path, origin: Mapping[str, str]) -> "Pipeline":
        """The pipeline with the directory that a hub's repository was brought to in the repository's place."""
        here = {"source": "local", "name_or_path": folder, "revision": None, "source_args": {}}
        table = self.tokenizer if key == "tokenizer" else self.model
        copy = self.model_copy(update={key: table.model_copy(update=here)})
        copy._origins = {**self._origins, key: origin}
        return copy

    @property
    def home(self) -> Path:
        """Where this run writes: work_dir/name."""
        return self.run.work_dir / self.run.name

    @property
    def tokenizer_dir(self) -> Path:
        """The directory tokenization reads."""
        where = self.tokenizer.name_or_path or self.model.name_or_path
        assert where is not None  # _tokenizer_is_somewhere
        return where

    @model_validator(mode="after")
    def _tokenizer_is_somewhere(self) -> Self:
        if self.tokenizer.name_or_path is None and self.model.name_or_path is None:
            raise fault("missing; a [model.scratch] model has no tokenizer of its own", "tokenizer", "name_or_path")
        return self

    @model_validator(mode="after")
    def _xtuner_keeps_every_sample(self) -> Self:
        if self.prep.order.shuffle == "xtuner" and self.template.loss.on_empty == "drop":
            raise fault(
                'prep.order.shuffle = "xtuner" gives the packs of XTuner, which leaves no record out; set "keep"',
                "template", "loss", "on_empty",
            )  # fmt: skip
        return self
