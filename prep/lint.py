"""`packtrain check`: everything about a pipeline that can be known before work, its first samples included."""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from pipelines.errors import ConfigError, DataError
from pipelines.model_source import with_small_files
from pipelines.preflight import preflight
from pipelines.schema import Pipeline
from prep.chunk import chunks_of, outcomes
from prep.formats.fault import RecordFault
from prep.job import rules_of
from prep.order import inputs_in_order
from prep.rendering import check_rendering, renders_chats, template_of
from prep.store import LOSS_BIT
from prep.template_check import check_template
from prep.tokenizer import Tokenizer, open_tokenizer

_TRIED = 20
"""Samples of each source that are rendered and tokenized."""


def lint(pipeline: Pipeline) -> dict[str, str]:
    """Paths, data order, templates on probe conversations, and loss masks of the first records of each source.

    Returns:
        What was looked at, by name, in words.
    Raises:
        ConfigError: with every problem of the file and its paths.
        DataError: for the first record that could not be trained on.
        CheckError: if a template does not serve what it trains; see `check_template`.
    """
    pipeline = with_small_files(pipeline)
    if problems := preflight(pipeline):
        raise ConfigError(*problems)
    tokenizer = open_tokenizer(pipeline)
    check_rendering(pipeline, tokenizer)
    inputs = inputs_in_order(pipeline)
    found = {
        "tokenizer": f"{tokenizer.vocab_size:,} ids, {len(tokenizer.special_tokens)} special tokens",
        "data order": f"{len(inputs):,} files",
        **dict(_templates(pipeline, tokenizer)),
    }
    rules = rules_of(pipeline, tokenizer)
    for number, source in enumerate(pipeline.prep.source):
        tokens = trained = samples = 0
        first = next(one for one in inputs if one.source == number)
        for chunk in chunks_of([first])[:1]:
            for record, outcome in islice(outcomes(chunk, rules), _TRIED):
                if isinstance(outcome, RecordFault):
                    raise DataError(f"{first.where}:{record + 1}: {outcome.message}")
                if outcome is not None and outcome.size:
                    samples, tokens = samples + 1, tokens + outcome.size
                    trained += int(np.count_nonzero(outcome & LOSS_BIT))
        found[f"source {source.name}"] = (
            f"{samples} first samples of {tokens / samples:.1f} tokens on average, {trained / tokens:.1%} with loss"
            if samples
            else "no sample in its first file"
        )
    return found


def _templates(pipeline: Pipeline, tokenizer: Tokenizer) -> Iterator[tuple[str, str]]:
    """What each template makes of the probes."""
    if renders_chats(pipeline):
        yield "template", str(check_template(pipeline.template, tokenizer))
    for source in pipeline.prep.source:
        settings = template_of(pipeline.template, source.template, source.system)
        if source.map != "none" and settings != pipeline.template:
            exported = settings.name in (pipeline.template.name, "none")
            note = "" if exported else "not the one that is exported; "
            yield f"template of {source.name}", note + str(check_template(settings, tokenizer))
