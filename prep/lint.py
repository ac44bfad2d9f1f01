"""What can be known of a pipeline's data before work: tokenizer, order, templates, and the first samples themselves."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipelines import schema
from pipelines.errors import ConfigError, DataError, PacktrainError
from pipelines.findings import Finding, Report, of_error
from pipelines.preflight import model_config, preflight, prep_problems, tokenizer_problems
from pipelines.schema import Pipeline
from prep.chunk import Rules, chunks_of, outcomes
from prep.formats.fault import RecordFault
from prep.inputs import Input
from prep.job import rules_of
from prep.order import inputs_read_only
from prep.order_check import since_prep
from prep.rendering import check_rendering, exports_chat, renders_chats, template_of
from prep.store import LOSS_BIT, Marked
from prep.template import Template
from prep.template_check import check_template
from prep.token_check import check_tokens
from prep.tokenizer import Tokenizer, open_tokenizer

_TRIED = 20
"""Samples of each source that are rendered and tokenized."""

_T = TypeVar("_T")


def lint(pipeline: Pipeline) -> Report:
    """Paths, data order, templates on probe conversations, and loss masks of the first records of each source.

    Every problem is collected: one that hides others, such as a missing tokenizer, leaves out only what needs it.
    Nothing is written, data_order.txt neither.

    Args:
        pipeline: whose small files are there; see `with_small_files`.
    """
    return _Lint(pipeline).report()


class _Lint:
    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._report = Report()

    def report(self) -> Report:
        pipeline = self._pipeline
        for problem in preflight(pipeline):
            self._tell(Finding("config", problem, ConfigError.exit_code))
        tokenizer = inputs = None
        if pipeline.tokenizer_dir.is_dir() and not any(tokenizer_problems(pipeline)):
            tokenizer = self._tried(lambda: open_tokenizer(pipeline))
        if not any(prep_problems(pipeline)):
            inputs = self._tried(lambda: inputs_read_only(pipeline))
        if tokenizer is not None:
            self._tokenizer(tokenizer)
        if inputs is not None:
            self._report.input_bytes = sum(one.where.stat().st_size for one in inputs)
            self._report.facts["data order"] = f"{len(inputs):,} files, {self._report.input_bytes:,} bytes"
            if changed := self._tried(lambda: since_prep(pipeline, inputs)):
                where = pipeline.home / "prep"
                text = f"{where}: the shards are of other inputs: {changed}; run `packtrain prep` again"
                self._tell(Finding.warning("other-inputs", text))
        if tokenizer is not None and self._renders(tokenizer):
            self._templates(tokenizer)
            if inputs is not None:
                rules = rules_of(pipeline, tokenizer)
                for number in range(len(pipeline.prep.source)):
                    first = next(one for one in inputs if one.source == number)
                    self._tried(lambda one=first: self._source(one, rules, tokenizer))  # type: ignore[misc]
        return self._report

    def _tried(self, step: Callable[[], _T]) -> _T | None:
        """What a step gives, or None and its error among the findings."""
        try:
            return step()
        except PacktrainError as error:
            self._tell(*of_error(error))
            return None

    def _renders(self, tokenizer: Tokenizer) -> bool:
        try:
            check_rendering(self._pipeline, tokenizer)
        except ConfigError as error:
            self._tell(*of_error(error))
            return False
        return True

    def _tell(self, *findings: Finding) -> None:
        self._report.findings += findings

    def _tokenizer(self, tokenizer: Tokenizer) -> None:
        self._report.facts["tokenizer"] = (
            f"{tokenizer.vocab_size:,} ids, {len(tokenizer.special_tokens)} special tokens"
        )
        if self._pipeline.train is None:
            return
        rows = model_config(self._pipeline)[0].get("vocab_size")
        if isinstance(rows, int) and tokenizer.own_size > rows:
            key = "tokenizer.name_or_path" if self._pipeline.tokenizer.name_or_path else "model.name_or_path"
            self._tell(
                Finding(
                    "vocabulary",
                    f"{self._pipeline.cite(key)}: the tokenizer has {tokenizer.own_size:,} ids, and the model's "
                    f"vocab_size is {rows:,}; take the tokenizer that belongs to the model",
                    ConfigError.exit_code,
                )
            )

    def _templates(self, tokenizer: Tokenizer) -> None:
        """What each template makes of the probes."""
        for name, note, key, settings in _templates(self._pipeline):
            found = self._tried(lambda settings=settings: check_template(settings, tokenizer))  # type: ignore[misc]
            if found is not None:
                self._report.facts[name] = note + str(found)
                place = self._pipeline.cite(key)
                self._tell(*(replace(one, text=f"{place}: {one.text}") for one in found.findings))
        if exports_chat(self._pipeline):
            self._generation(Template(self._pipeline.template, tokenizer), tokenizer)

    def _generation(self, template: Template, tokenizer: Tokenizer) -> None:
        """Compare what ends an answer with what the model's own generation_config.json stops at."""
        folder = self._pipeline.model.name_or_path
        known = _generation_stops(folder) if folder is not None else []
        if known and template.stop_tokens and template.stop_tokens[0] not in known:
            stop = tokenizer.decode([template.stop_tokens[0]])
            self._tell(
                Finding.warning(
                    "stop-not-in-generation-config",
                    f"{folder}/generation_config.json: does not stop at {stop!r}, which ends answers as they are "
                    "trained; what packtrain export writes does, so do not put the old file beside the new weights",
                )
            )

    def _source(self, one: Input, rules: Rules, tokenizer: Tokenizer) -> None:
        """Look at the first samples of a source."""
        source = self._pipeline.prep.source[one.source]
        samples, faults, left_out = _first_samples(one, rules)
        what = f"source {source.name}"
        if faults:
            record, message = faults[0]
            where = f"{one.where}:{record + 1}: {message}"
            if rules.on_bad_record == "error":
                self._tell(Finding("data", where, DataError.exit_code))
            else:
                self._tell(Finding.warning("faulty-records", f"{where} ({len(faults)} of the first {_TRIED} records)"))
        if not samples:
            self._report.facts[what] = "no sample among the first records of its first file"
            if not self._report.input_bytes:
                self._tell(Finding("no-samples", f"{one.where}: is empty, as all inputs are", DataError.exit_code))
            elif not faults:
                self._tell(
                    Finding.warning(
                        "no-samples",
                        f"{one.where}: no sample in its first records"
                        + (f", {left_out} of which the map leaves out" if left_out else ""),
                    )
                )
            return
        tokens = sum(marked.size for _, marked in samples)
        trained = sum(int(np.count_nonzero(marked[1:] & LOSS_BIT)) for _, marked in samples)
        self._report.facts[what] = (
            f"{len(samples)} first samples of {tokens / len(samples):.1f} tokens on average, {trained / tokens:.1%} "
            "with loss"
        )
        if overlong := sum(marked.size > rules.max_length for _, marked in samples):
            self._report.facts[what] += f", {overlong} above prep.max_length: {rules.overlength}"
        self._tell(*self._masks(one, samples, rules, tokenizer))

    def _masks(
        self, one: Input, samples: Sequence[tuple[int, Marked]], rules: Rules, tokenizer: Tokenizer
    ) -> Iterator[Finding]:
        if one.map == "none":
            template = Template(self._pipeline.template, tokenizer) if exports_chat(self._pipeline) else None
            yield from check_tokens(samples, tokenizer, template, str(one.where))
            return
        fates = Counter("empty" if not (marked[1:] & LOSS_BIT).any() else "some" for _, marked in samples)
        if fates["empty"]:
            record = next(record for record, marked in samples if not (marked[1:] & LOSS_BIT).any())
            text = (
                f"{one.where}:{record + 1}: nothing of it is trained, as of {fates['empty']} of the {len(samples)} "
                f"samples looked at; template.loss.on_empty = {rules.template.loss.on_empty!r} is what becomes of them"
            )
            yield Finding.warning("untrained-samples", text) if fates["some"] else Finding("untrained-samples", text)


def _first_samples(one: Input, rules: Rules) -> tuple[list[tuple[int, Marked]], list[tuple[int, str]], int]:
    """The first samples of a file with their record numbers, the faults before them, and how many records its map
    leaves out."""
    samples: list[tuple[int, Marked]] = []
    faults: list[tuple[int, str]] = []
    left_out = 0
    for chunk in chunks_of([one])[:1]:
        try:
            for record, outcome in islice(outcomes(chunk, rules), _TRIED):
                if isinstance(outcome, RecordFault):
                    faults.append((record, outcome.message))
                elif outcome is None:
                    left_out += 1
                elif outcome.size:
                    samples.append((record, outcome))
        except RecordFault as fault:  # behind which nothing can be read
            faults.append((fault.record, fault.message))
    return samples, faults, left_out


def _templates(pipeline: Pipeline) -> Iterator[tuple[str, str, str, schema.Template]]:
    """Every template that renders records, with what it is called, a note, and the key that names it."""
    if renders_chats(pipeline):
        yield "template", "", "template.name", pipeline.template
    for number, source in enumerate(pipeline.prep.source):
        settings = template_of(pipeline.template, source.template, source.system)
        if source.map != "none" and settings != pipeline.template:
            note = "" if settings.name in (pipeline.template.name, "none") else "not the one that is exported; "
            key = "template.name" if source.template is None else f"prep.source.{number}.template"
            yield f"template of {source.name}", note, key, settings


def _generation_stops(folder: Path) -> list[int]:
    """Ids at which a model's own generation_config.json stops; none where it does not say."""
    try:
        stops = json.loads((folder / "generation_config.json").read_bytes()).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    return stops if isinstance(stops, list) else [] if stops is None else [stops]
