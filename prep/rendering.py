"""How each source's records become samples: its template beside [template], its map, both checked before any work."""

import re
from collections.abc import Iterator

from pipelines import schema
from pipelines.errors import ConfigError
from pipelines.schema import Pipeline
from prep.records import record_map
from prep.template import Template
from prep.tokenizer import Tokenizer


def template_of(settings: schema.Template, name: str | None, system: str | None) -> schema.Template:
    """The [template] table as a source has it that names a template or a system text of its own.

    Args:
        settings: the [template] table.
        name: prep.source.template; None leaves it to [template].
        system: prep.source.system; None leaves it to [template], as far as the source's template has a place for one.
    """
    if name is None and system is None:
        return settings
    file = settings.file if name is None else None
    name = settings.name if name is None else name
    if system is None:
        system = "" if name == "none" else settings.system
    return settings.model_copy(update={"name": name, "file": file, "system": system})


def renders_chats(pipeline: Pipeline) -> bool:
    """Whether any source is rendered by a template, which then goes with the model; plain text has none."""
    return any(
        source.map != "none" and template_of(pipeline.template, source.template, source.system).name != "none"
        for source in pipeline.prep.source
    )


def exports_chat(pipeline: Pipeline) -> bool:
    """Whether the template goes with the model: it rendered records, or was named for tokens that came rendered."""
    named = "name" in pipeline.template.model_fields_set and pipeline.template.name != "none"
    return named or renders_chats(pipeline)


def check_rendering(pipeline: Pipeline, tokenizer: Tokenizer) -> None:
    """Refuse templates and maps that do not exist, or do not go with the tokenizer.

    Raises:
        ConfigError: with every such key, cited.
    """
    problems = dict.fromkeys(_problems(pipeline, tokenizer))
    if problems:
        raise ConfigError(*problems)


def _problems(pipeline: Pipeline, tokenizer: Tokenizer) -> Iterator[str]:
    if exports_chat(pipeline):
        yield from _refused(pipeline.template, tokenizer, pipeline.cite("template.name"))
    for index, source in enumerate(pipeline.prep.source):
        if source.map == "none":
            continue
        where = f"prep.source.{index}"
        try:
            record_map(source.map)
        except ConfigError as error:
            yield _cited(error, "prep.source.map", pipeline.cite(f"{where}.map"))
        settings = template_of(pipeline.template, source.template, source.system)
        if source.system and settings.name == "none":
            yield f"{pipeline.cite(f'{where}.system')}: has no place in plain text; remove it, or name a template"
        named = pipeline.cite("template.name" if source.template is None else f"{where}.template")
        for key in ("bos", "eos"):
            if source.template == "tokenizer" and getattr(settings, key) != "auto":
                yield (
                    f"{named}: a chat template itself writes BOS and EOS, and {pipeline.cite(f'template.{key}')} would "
                    "have no effect on it; remove one of the two"
                )
        yield from _refused(settings, tokenizer, named)


def _refused(settings: schema.Template, tokenizer: Tokenizer, where: str) -> Iterator[str]:
    try:
        Template(settings, tokenizer)
    except ConfigError as error:
        yield _cited(error, "template.name", where)


def _cited(error: ConfigError, key: str, where: str) -> str:
    """The problem behind the place of its key, which its own words begin with."""
    said = re.sub(rf"^{re.escape(key)} = ('[^']*'|\"[^\"]*\"):?\s*", "", str(error))
    return f"{where}: {said}"
