"""What can be known of a pipeline's data before work: tokenizer, order, templates, and the first samples themselves."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from pipelines import schema
from pipelines.errors import ConfigError, DataError, PacktrainError
from pipelines.findings import Finding, Report, of_error
from pipelines.preflight import model_config, preflight, prep_problems, tokenizer_problems
from pipelines.progress import progress_bar
from pipelines.schema import Pipeline
from pipelines.terminal import plural
from prep.chunk import Rules, chunks_of, outcomes
from prep.faulty_records import FaultyRecords
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
"""Records of a file that are rendered and tokenized, unless all are."""
_FILES = 4
"""Files of a source that are looked into, unless all are: the first, the last, and others spread between."""

_T = TypeVar("_T")


def lint(pipeline: Pipeline, *, all_records: bool = False) -> Report:
    """Paths, data order, templates on probe conversations, and loss masks of the first records of each source.

    Every problem is collected: one that hides others, such as a missing tokenizer, leaves out only what needs it.
    Nothing is written, data_order.txt neither.

    Args:
        pipeline: whose small files are there; see `with_small_files`.
        all_records: look at every record of every file, instead of the first of some.
    """
    return _Lint(pipeline, all_records=all_records).report()


class _Lint:
    def __init__(self, pipeline: Pipeline, *, all_records: bool) -> None:
        self._pipeline, self._all_records = pipeline, all_records
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
            self._report.facts["data order"] = f"{plural(len(inputs), 'file')}, {self._report.input_bytes:,} bytes"
            if changed := self._tried(lambda: since_prep(pipeline, inputs)):
                where = pipeline.home / "prep"
                text = f"{where}: the shards are of other inputs: {changed}; run `packtrain prep` again"
                self._tell(Finding.warning("other-inputs", text))
        if tokenizer is not None and self._renders(tokenizer):
            self._templates(tokenizer)
            if inputs is not None:
                rules = rules_of(pipeline, tokenizer)
                for number in range(len(pipeline.prep.source)):
                    files = [one for one in inputs if one.source == number]
                    self._tried(lambda files=files: self._source(files, rules, tokenizer))  # type: ignore[misc]
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

    def _source(self, files: Sequence[Input], rules: Rules, tokenizer: Tokenizer) -> None:
        """Look at records of a source: at the first file's for its samples, at the others' for faults."""
        one, *others = files
        source = self._pipeline.prep.source[one.source]
        faulty = FaultyRecords()
        chosen = files if self._all_records else [one, *_spread(others, _FILES - 1)]
        limit = None if self._all_records else _TRIED
        sizes = [file.where.stat().st_size for file in chosen]
        with progress_bar(f"checking {source.name}", sum(sizes), "B") as progress:
            samples, left_out = _look_at(one, rules, faulty, limit)
            progress(sizes[0])
            for other, size in zip(chosen[1:], sizes[1:], strict=True):
                _look_at(other, rules, faulty, limit)
                progress(size)
        what = f"source {source.name}"
        self._faulty(faulty, rules)
        if not samples:
            self._report.facts[what] = "no sample among the first records of its first file"
            if not self._report.input_bytes:
                self._tell(Finding("no-samples", f"{one.where}: is empty, as all inputs are", DataError.exit_code))
            elif not faulty.count:
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

    def _faulty(self, faulty: FaultyRecords, rules: Rules) -> None:
        """Tell of faulty records as prep would take them."""
        limit = self._pipeline.prep.max_bad_fraction
        if rules.on_bad_record == "error":
            self._tell(*(Finding("data", line, DataError.exit_code) for line in faulty.lines()))
            return
        self._tell(*(Finding.warning("faulty-records", line) for line in faulty.lines()))
        if self._all_records and faulty.count > limit * faulty.looked_at:
            text = f"{faulty.count:,} of {faulty.looked_at:,} records are faulty, above prep.max_bad_fraction = {limit}"
            self._tell(Finding("data", text, DataError.exit_code))

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


def _look_at(
    one: Input, rules: Rules, faulty: FaultyRecords, limit: int | None
) -> tuple[list[tuple[int, Marked]], int]:
    """The samples among the first records of a file with their record numbers, and how many of those records its map
    leaves out.

    Args:
        faulty: to which faulty records are added.
        limit: records that are looked at, or None for all.
    """
    samples: list[tuple[int, Marked]] = []
    left_out = before = 0
    for chunk in chunks_of([one]):
        records = -1
        try:
            for record, outcome in outcomes(chunk, rules):
                if limit is not None and before + record >= limit:
                    return samples, left_out
                records = record
                faulty.looked_at += 1
                if isinstance(outcome, RecordFault):
                    faulty.add(one.where, before + record, outcome)
                elif before + record >= _TRIED:
                    continue
                elif outcome is None:
                    left_out += 1
                elif outcome.size:
                    samples.append((before + record, outcome))
        except RecordFault as fault:  # behind which nothing can be read
            faulty.looked_at += 1
            faulty.add(one.where, before + fault.record, fault)
            break
        before += records + 1
    return samples, left_out


def _spread(files: Sequence[Input], count: int) -> list[Input]:
    """So many of the files, the last among them."""
    if len(files) <= count:
        return list(files)
    return [files[(place + 1) * len(files) // count - 1] for place in range(count)]


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
