"""`packtrain check`: everything about a pipeline that can be known before work, its first samples included."""

from itertools import islice

import numpy as np

from pipelines.errors import ConfigError, DataError
from pipelines.preflight import preflight
from pipelines.schema import Pipeline
from prep.chunk import chunks_of, outcomes
from prep.formats.fault import RecordFault
from prep.job import rules_of
from prep.order import inputs_in_order
from prep.store import LOSS_BIT
from prep.tokenizer import load_tokenizer

_TRIED = 20
"""Samples of each source that are rendered and tokenized."""


def lint(pipeline: Pipeline) -> dict[str, str]:
    """Paths, data order, template and loss masks of the first records of each source.

    Returns:
        What was looked at, by name, in words.
    Raises:
        ConfigError: with every problem of the file and its paths.
        DataError: for the first record that could not be trained on.
    """
    if problems := preflight(pipeline):
        raise ConfigError(*problems)
    tokenizer = load_tokenizer(pipeline.tokenizer_dir)
    inputs = inputs_in_order(pipeline)
    found = {
        "tokenizer": f"{tokenizer.vocab_size:,} ids, {len(tokenizer.special_tokens)} special tokens",
        "data order": f"{len(inputs):,} files",
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
