import pickle
import re
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.config import load
from pipelines.errors import ConfigError
from pipelines.keys import schema_keys
from pipelines.schema import Pipeline
from pipelines.toml_text import on_one_line, spell_value

BASE = """\
schema_version = 1
run.name = "demo"
model.scratch = { model_type = "llama", rms_norm_eps = 1e-5 }
tokenizer.name_or_path = "tok"
[[prep.source]]
name = "chat"
path = "chat.jsonl"
[prep.pack]
capacity = 64
"""
LINES = BASE.count("\n")


def read(folder: Path, text: str, *overrides: str) -> Pipeline:
    path = folder / "x.toml"
    path.write_text(text, encoding="utf-8", newline="")
    return load(path, overrides)


def complaints(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text, *overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.replace(f"{folder}/", "") for problem in caught.value.problems]


def added(folder: Path, text: str) -> list[str]:
    """The complaints about text behind BASE, with lines counted from its beginning."""
    found = [problem.split(":", 2) for problem in complaints(folder, BASE + text)]
    return [f"{int(line) - LINES}:{rest}" for _, line, rest in found]


def test_a_small_file_is_a_whole_pipeline(tmp_path: Path) -> None:
    pipeline = read(tmp_path, BASE)
    assert pipeline.run.name == "demo"
    assert pipeline.prep.pack.capacity == 64
    assert pipeline.train is None


def test_decimals_of_weights_are_exact_and_others_are_floats(tmp_path: Path) -> None:
    text = BASE.replace('path = "chat.jsonl"', 'path = "chat.jsonl"\nweight = 0.1')
    pipeline = read(tmp_path, text + "[train]\nglobal_batch_size = 1\n[train.optimizer]\nlr = 2e-5\nbetas = [0, 0.5]")
    assert pipeline.prep.source[0].weight == Decimal("0.1")
    assert pipeline.train is not None
    assert pipeline.train.optimizer.lr == 2e-5
    assert pipeline.train.optimizer.betas == (0.0, 0.5)
    assert pipeline.model.scratch == {"model_type": "llama", "rms_norm_eps": 1e-5}


def test_paths_begin_at_the_file_also_where_their_table_is_left_out(tmp_path: Path) -> None:
    pipeline = read(tmp_path, BASE)
    assert pipeline.prep.source[0].path == tmp_path / "chat.jsonl"
    assert pipeline.prep.order.file == tmp_path / "data_order.txt"
    assert pipeline.home == tmp_path / "work" / "demo"


def test_a_byte_order_mark_and_windows_line_ends_are_read_over(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeff" + BASE.replace("\n", "\r\n")).run.name == "demo"
    assert complaints(tmp_path, "\ufeffbad = 1\r\n" + BASE.replace("\n", "\r\n"))[0].startswith("x.toml:1:1: bad: ")


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
schema_version = 1
[run]
nmae = "demo"
[model]
name_or_path = 7
[[prep.source]]
path = "chat.jsonl"
weight = 0
[prep.pack]
capasity = 64
strategy = "bestfit"
"""
    assert complaints(tmp_path, text) == [
        'x.toml:2:2: run.name: missing; add name = "my-run": Directory of this run below work_dir.',
        "x.toml:3:1: run.nmae: unknown key, did you mean 'name'?",
        'x.toml:5:1: model.name_or_path = 7: expected a path in quotes, found a whole number; write "7"',
        'x.toml:6:8: prep.source.0.name: missing; add name = "chat": '
        "Unique; part of every sample's identity, so renaming a source reorders it.",
        "x.toml:8:1: prep.source.0.weight = 0: expected a number above 0",
        "x.toml:9:7: prep.pack.capacity: missing; add capacity = 32_768: "
        "Tokens per pack, and so the longest context the trainer sees.",
        "x.toml:10:1: prep.pack.capasity: unknown key, did you mean 'capacity'?",
        'x.toml:11:1: prep.pack.strategy = "bestfit": expected "in_order", "best_fit", "concat_split" or "none"',
    ]


def test_an_unknown_key_does_not_hide_what_ties_keys_together(tmp_path: Path) -> None:
    text = (
        "[train]\nglobal_batch_size = 1\n[train.optimizer]\nlr = 1\n[train.scheduler]\nwarm = 1\nwarmup_ratio = 0.1\n"
    )
    assert added(tmp_path, text + "warmup_steps = 2\n") == [
        "6:1: train.scheduler.warm: unknown key; remove it",
        "8:1: train.scheduler.warmup_steps = 2: warmup_ratio is given as well; keep one",
    ]


def test_an_empty_file_lacks_what_has_no_default(tmp_path: Path) -> None:
    assert complaints(tmp_path, "") == [
        "x.toml:1:1: model: missing; add [model]: what is trained. Either name_or_path or the [model.scratch] table.",
        'x.toml:1:1: prep: missing; add [prep] and [[prep.source]] with name = "chat", path = "data/chat.jsonl" and '
        "[prep.pack] with capacity = 32_768: raw or tokenized data into packed shards.",
        'x.toml:1:1: run: missing; add [run] with name = "my-run": what this run is called and where its files go.',
        "x.toml:1:1: schema_version: missing; add schema_version = 1: Version of these keys.",
    ]


TRAIN = "[train]\nglobal_batch_size = 1\noptimizer.lr = 1e-3\n"

CHANGES = [  # a line of BASE, another, and the complaint about it
    ("schema_version = 1", "schema_version = 2", "1:1: schema_version = 2: expected 1"),
    ("schema_version = 1", "schema_version = true", "1:1: schema_version = true: expected 1, found true or false"),
    ("schema_version = 1", "schema_version = 1.0", "1:1: schema_version = 1.0: expected 1"),
    (
        'run.name = "demo"',
        "run.name = 7",
        '2:5: run.name = 7: expected text in quotes, found a whole number; write "7"',
    ),
    (
        'run.name = "demo"',
        "run.name = 2024-01-02",
        '2:5: run.name = 2024-01-02: expected text in quotes, found a date or time; write "2024-01-02"',
    ),
    (
        'run.name = "demo"',
        'run.name = "a/b"',
        "2:5: run.name = \"a/b\": expected letters, digits, '.', '_' or '-', "
        "starting with a letter or digit, at most 128",
    ),
    ('run.name = "demo"', "run = 3", "2:1: run = 3: expected a table, found a whole number"),
    (
        'run.name = "demo"',
        'run = "demo"',
        '2:1: run = "demo": expected a table, found text; write [run] and below it name = "demo"',
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = "7" }',
        '2:24: run.seed = "7": expected a whole number from 0, found text; write 7 without quotes',
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = "32k" }',
        '2:24: run.seed = "32k": expected a whole number from 0, found text; write 32_768 or 32_000',
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = "2M" }',
        '2:24: run.seed = "2M": expected a whole number from 0, found text; write 2_000_000',
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = "x" }',
        '2:24: run.seed = "x": expected a whole number from 0, found text',
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = 7.0 }',
        "2:24: run.seed = 7.0: expected a whole number from 0; write 7",
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = nan }',
        "2:24: run.seed = nan: expected a whole number from 0",
    ),
    ('run.name = "demo"', 'run = { name = "demo", seed = -1 }', "2:24: run.seed = -1: expected a whole number from 0"),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = true }',
        "2:24: run.seed = true: expected a whole number from 0, found true or false",
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = [1] }',
        "2:24: run.seed = [1]: expected a whole number from 0, found an array of 1",
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", seed = { a = 1 } }',
        "2:24: run.seed: expected a whole number from 0, found a table",
    ),
    (
        'run.name = "demo"',
        f'run = {{ name = "demo", seed = {10**20} }}',
        f"2:24: run.seed = {10**20:_}: does not fit 64 bits",
    ),
    ('run.name = "demo"', 'run = { name = "demo", work_dir = "" }', '2:24: run.work_dir = "": expected a path'),
    (
        'run.name = "demo"',
        'run = { name = "demo", work_dir = "~/x" }',
        '2:24: run.work_dir = "~/x": ~ is not expanded here; write ${env:HOME} instead',
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", work_dir = "${HOME}" }',
        '2:24: run.work_dir = "${HOME}": expected ${env:NAME} or ${env:NAME:-fallback}',
    ),
    (
        'run.name = "demo"',
        'run = { name = "demo", work_dir = "${env:NO_SUCH}" }',
        '2:24: run.work_dir = "${env:NO_SUCH}": '
        "environment variable NO_SUCH is not set; set it, or write ${env:NO_SUCH:-fallback}",
    ),
    (
        "rms_norm_eps = 1e-5",
        "x = 2024-01-02",
        "3:41: model.scratch.x = 2024-01-02: expected text, a finite number, true or false",
    ),
    (
        "rms_norm_eps = 1e-5",
        "x = [nan]",
        "3:46: model.scratch.x.0 = nan: expected text, a finite number, true or false",
    ),
    (
        "model.scratch = {",
        'model.name_or_path = "m"\nmodel.scratch = {',
        "3:1: model: expected either name_or_path or the table [model.scratch]",
    ),
    (
        'tokenizer.name_or_path = "tok"',
        "",
        "1:1: tokenizer.name_or_path: missing; a [model.scratch] model has no tokenizer of its own",
    ),
    (
        'path = "chat.jsonl"',
        'path = "a"\nweight = "0.5"',
        '8:1: prep.source.0.weight = "0.5": expected a number above 0, found text; write 0.5 without quotes',
    ),
    (
        'path = "chat.jsonl"',
        'path = "a"\nweight = inf',
        "8:1: prep.source.0.weight = inf: expected a finite number of usual size",
    ),
    (
        'path = "chat.jsonl"',
        'path = "a"\nweight = 1\nrepeat = 2',
        "9:1: prep.source.0.repeat = 2: weight is given as well; keep one of weight, repeat, samples and tokens",
    ),
    (
        'path = "chat.jsonl"',
        'path = "a"\nfiles = ["a", ""]',
        '8:15: prep.source.0.files.1 = "": expected a pattern below the source\'s directory, such as **/*.jsonl',
    ),
    (
        'path = "chat.jsonl"',
        'path = "a"\nformat = "webdataset"',
        '8:1: prep.source.0.format = "webdataset": not supported yet; expected "auto", ',
    ),
    (
        "[[prep.source]]",
        "[prep.source]",
        "5:7: prep.source: expected an array of tables, at least one, found a table; write [[prep.source]] above it",
    ),
    (
        "capacity = 64",
        "capacity = 4294967296",
        "9:1: prep.pack.capacity = 4_294_967_296: expected a whole number from 1 to 1_073_741_824",
    ),
    (
        "[prep.pack]",
        "[prep]\nmax_length = 65\n[prep.pack]",
        "9:1: prep.max_length = 65: a sample must fit a pack, and prep.pack.capacity is 64; lower one",
    ),
    (
        "[prep.pack]",
        "[prep]\nmin_length = 65\n[prep.pack]",
        "9:1: prep.min_length = 65: every sample would be dropped, since the longest has 64 tokens",
    ),
]

ADDITIONS = [  # text behind BASE, and the complaint about it, with lines counted from that text
    ("drop_last = 1", "1:1: prep.pack.drop_last = 1: expected true or false, found a whole number; write true"),
    ('drop_last = "no"', '1:1: prep.pack.drop_last = "no": expected true or false, found text; write false'),
    (
        "strategy = true",
        '1:1: prep.pack.strategy = true: expected "in_order", "best_fit", "concat_split" or "none", '
        "found true or false",
    ),
    (
        'scope = "window"\nstrategy = "none"',
        '1:1: prep.pack.scope = "window": is for strategy = "in_order" or "best_fit"; use "global" with "none"',
    ),
    ("window = 9", '1:1: prep.pack.window = 9: has no effect with scope = "source"; set scope = "window" or remove it'),
    (
        "drop_last = true",
        '1:1: prep.pack.drop_last = true: is for strategy = "concat_split", not "in_order"; remove it',
    ),
    (
        '[[prep.source]]\nname = "chat"\npath = "b"',
        '2:1: prep.source.1.name = "chat": another source has this name; give it one of its own',
    ),
    (
        '[export]\ntargets = "hf"',
        '2:1: export.targets = "hf": expected an array, each item "hf", "turbomind" or "adapter", at least one; '
        'write ["hf"]',
    ),
    ('[export]\ntargets = ["hf", "gguf"]', '2:18: export.targets.1 = "gguf": expected "hf", "turbomind" or "adapter"'),
    (
        "[export]\ntargets = []",
        '2:1: export.targets = []: expected an array, each item "hf", "turbomind" or "adapter", at least one, found an '
        "empty",
    ),
    (
        '[export.turbomind]\ntp = "2"',
        '2:1: export.turbomind.tp = "2": expected 1, 2, 4 or 8, found text; write 2 without quotes',
    ),
    ("[export.turbomind]\ntp = 3", "2:1: export.turbomind.tp = 3: expected 1, 2, 4 or 8"),
    ("[export.turbomind]\ntp = true", "2:1: export.turbomind.tp = true: expected 1, 2, 4 or 8, found true or false"),
    (
        "[export.eval]",
        '1:9: export.eval.file: missing; add file = "data/held-out.jsonl": JSON lines of OpenAI messages; '
        "the last message is the expected answer.",
    ),
    (
        "[template.loss]\nroles = [3]",
        '2:10: template.loss.roles.0 = 3: expected text in quotes, found a whole number; write "3"',
    ),
    (
        TRAIN + 'shuffle = "none"\nshuffle_seed = 3',
        '5:1: train.shuffle_seed = 3: has no effect with shuffle = "none"; remove it',
    ),
    (TRAIN + "nproc_per_node = 0", '4:1: train.nproc_per_node = 0: expected "auto" or a whole number from 1'),
    (TRAIN + "max_grad_norm = 1e999", "4:1: train.max_grad_norm = 1e+999: expected a finite number"),
    (TRAIN + f"max_grad_norm = {9 * 10**400}", "4:1: train.max_grad_norm = "),
    (
        TRAIN + "optimizer.betas = [0.9]",
        "4:11: train.optimizer.betas = [0.9]: expected an array of 2, each a number from "
        "0 to below 1, found an array of 1",
    ),
    (TRAIN + "optimizer.betas = [0.9, 1]", "4:25: train.optimizer.betas.1 = 1: expected a number from 0 to below 1"),
    (
        TRAIN + "optimizer.betas = 0.9",
        "4:11: train.optimizer.betas = 0.9: expected an array of 2, each a number from 0 to below 1",
    ),
    (TRAIN + 'optimizer.type = "adan"', '4:11: train.optimizer.type = "adan": expected "adamw", "adam", '),
    (TRAIN + "scheduler.warmup_ratio = 3", "4:11: train.scheduler.warmup_ratio = 3: expected a number from 0 to 1"),
    (
        TRAIN + "checkpoint.save_total_limit = -2",
        "4:12: train.checkpoint.save_total_limit = -2: expected -1 or a whole number from 1",
    ),
    (
        TRAIN + "deepspeed.extra.bf16.enabled = true",
        "4:17: train.deepspeed.extra.bf16: this file sets it by train.precision; remove it here",
    ),
    (
        TRAIN + "deepspeed.extra.sequence_parallel_size = 2",
        "4:17: train.deepspeed.extra.sequence_parallel_size = 2: this file sets it by "
        "train.parallel.sequence_parallel_size; remove it here",
    ),
    (
        TRAIN + "deepspeed.extra.zero_optimization.stage = 3",
        "4:35: train.deepspeed.extra.zero_optimization.stage = 3: this "
        "file sets it by train.deepspeed.zero_stage; remove it here",
    ),
    (
        "[train]\nglobal_batch_size = 1",
        "1:2: train.optimizer: missing; add [train.optimizer] with lr = 0.00002: how gradients change the weights.",
    ),
    (
        TRAIN + 'deepspeed = "zero3.json"',
        '4:1: train.deepspeed = "zero3.json": expected a table, found text; write [train.deepspeed]',
    ),
    (TRAIN + "[train.optimiser]", "4:8: train.optimiser: unknown table, did you mean 'optimizer'?"),
    (TRAIN + 'data = "work/other/prep"', "4:1: train.data: not supported yet; remove it"),
]


@pytest.mark.parametrize(("line", "instead", "complaint"), CHANGES)
def test_a_wrong_line_is_one_complaint(tmp_path: Path, line: str, instead: str, complaint: str) -> None:
    assert line in BASE
    (found,) = complaints(tmp_path, BASE.replace(line, instead))
    assert found.startswith(f"x.toml:{complaint}")


@pytest.mark.parametrize(("text", "complaint"), ADDITIONS)
def test_a_wrong_addition_is_one_complaint(tmp_path: Path, text: str, complaint: str) -> None:
    (found,) = added(tmp_path, text)
    assert found.startswith(complaint)


# -- keys that the schema does not have


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("capasity = 3", "1:1: prep.pack.capasity: unknown key, did you mean 'capacity'?"),
        ("max_length = 3", "1:1: prep.pack.max_length: unknown key, did you mean 'prep.max_length'?"),
        ("xyzzy = 3", "1:1: prep.pack.xyzzy: unknown key; remove it"),
        (
            TRAIN + "[train.deepspeed]\nnvme_path = 1",
            "5:1: train.deepspeed.nvme_path: not supported yet; remove it",
        ),
        (
            "align = 8",
            "1:1: prep.pack.align = 8: not a key here: sequence parallelism takes packs of any length; remove it",
        ),
        (
            "max_seq_length = 9",
            "1:1: prep.pack.max_seq_length: unknown key; max_seq_length of TRL and Unsloth is prep.pack.capacity here; "
            "prep.max_length limits a sample",
        ),
        (
            "quantization_bit = 4",
            "1:1: prep.pack.quantization_bit: unknown key; quantization_bit of LLaMA-Factory is "
            "model.quantization.load_in_4bit here",
        ),
    ],
)
def test_an_unknown_key_is_answered_with_what_to_write(tmp_path: Path, text: str, complaint: str) -> None:
    assert added(tmp_path, text) == [complaint]


def test_an_unknown_table_is_reported_with_the_keys_in_it_that_are_known_elsewhere(tmp_path: Path) -> None:
    assert added(tmp_path, "[data]\nseq_len = 2048\nfoo = 1\nadam.lr = 1e-4\n") == [
        "1:2: data: unknown table, did you mean 'train.data'? It is not supported yet",
        "2:1: data.seq_len: unknown key; seq_len of InternEvo is prep.pack.capacity here; its packs have micro_bsz "
        "times seq_len tokens; with micro_bsz above 1 set prep.pack.attention_window to seq_len",
        "4:6: data.adam.lr: unknown key, did you mean 'train.optimizer.lr'?",
    ]


# -- files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"/none\.toml: no such file$"):
        load(tmp_path / "none.toml")


def test_a_directory_is_not_read_as_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a directory; name the TOML file in it$"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a = 1\nb = '\xe4\xbd\xa0\xff'", "2:7: byte 0xff is not UTF-8; save the file as UTF-8"),
        ("a = 1".encode("utf-16"), "1:1: byte 0xff is not UTF-8; save the file as UTF-8"),
        (b"a = 1\nb = bf16", '2:5: bf16 is not a TOML value; text needs quotes: "bf16"'),
        (b"[run]\n[run]", "2:2: run stood before, at 1:2; keep one"),
    ],
)
def test_what_is_not_toml_is_refused_at_its_place(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value) == f"{path}:{complaint}"


@pytest.mark.parametrize("text", ["a = " + "[" * 5000 + "]" * 5000, "a = " + "9" * 5000])
def test_what_python_cannot_hold_is_refused(tmp_path: Path, text: str) -> None:
    (found,) = complaints(tmp_path, text)
    assert found.endswith("no key needs that")


# -- --set


def test_overrides_reach_any_key_in_order(tmp_path: Path) -> None:
    overrides = (
        "run.seed=7",
        "prep.source.chat.weight=0.25",
        'prep.source.0.files=["**/*.bin", "b"]',
        "train.global_batch_size = 8",
        "train.optimizer.lr=1e-4",
        "prep.pack={capacity=32}",
        "prep.pack.capacity=16",
    )
    pipeline = read(tmp_path, BASE, *overrides)
    assert pipeline.run.seed == 7
    assert pipeline.prep.source[0].weight == Decimal("0.25")
    assert pipeline.prep.source[0].files == ["**/*.bin", "b"]
    assert pipeline.prep.pack.capacity == 16
    assert pipeline.train is not None
    assert pipeline.train.global_batch_size == 8
    assert pipeline.cite("train.optimizer.lr") == "--set train.optimizer.lr=1e-4: train.optimizer.lr = 0.0001"
    assert pipeline.cite("run.name") == f'{tmp_path}/x.toml:2:5: run.name = "demo"'


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("run.seed", "expected KEY=VALUE, such as --set run.seed=7"),
        ("", "expected KEY=VALUE, such as --set run.seed=7"),
        ("run.seed=", "the value is missing; write one after the equals sign"),
        ("run.seed=1\nrun.name=2", "expected the value alone"),
        (
            "run.name=abc",
            'abc is not a TOML value; text needs quotes: "abc", kept from the shell: --set \'run.name="abc"\'',
        ),
        ("run.seed=32k", "32k is not a TOML number; write all its digits, without a unit"),
        ("run.name.x=1", 'run.name = "demo" is no table'),
        ("prep.source.1.weight=1", 'prep.source has no element 1; it has 0 to 0, named "chat"'),
        ("prep.source.code.weight=1", 'prep.source has no element code; it has 0 to 0, named "chat"'),
        ("prep.source.0.name=3", 'prep.source.0.name = 3: expected text in quotes, found a whole number; write "3"'),
        ("run.sed=3", "run.sed: unknown key, did you mean 'seed'?"),
        ("prep.pack={}", "prep.pack.capacity: missing; add capacity = 32_768"),
        ('extends=["y.toml"]', "only a file can extend another"),
    ],
)
def test_a_wrong_override_is_refused_as_it_was_given(tmp_path: Path, override: str, complaint: str) -> None:
    (found,) = complaints(tmp_path, BASE, override)
    assert found.startswith(f"--set {on_one_line(override)}: {complaint}")


# -- extends


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_parents_merge_in_order_with_the_file_last(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", '[run]\nname = "a"\nseed = 1\n[template.loss]\nroles = ["x", "y"]\nturns = "last"\n')
    write(tmp_path / "b.toml", "run.seed = 2\n")
    pipeline = read(tmp_path, 'extends = ["a.toml", "b.toml"]\ntemplate.loss.roles = ["z"]\n' + BASE)
    assert (pipeline.run.name, pipeline.run.seed) == ("demo", 2)
    assert (pipeline.template.loss.roles, pipeline.template.loss.turns) == (["z"], "last")
    assert pipeline.cite("run.seed") == f"{tmp_path}/b.toml:1:5: run.seed = 2"
    assert pipeline.cite("template.loss.turns") == f'{tmp_path}/a.toml:6:1: template.loss.turns = "last"'


def test_paths_of_a_parent_begin_at_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELSEWHERE", "/data")
    write(tmp_path / "common" / "deep" / "a.toml", 'run.work_dir = "../out"\n')
    write(tmp_path / "common" / "b.toml", 'extends = ["deep/a.toml"]\ntokenizer.name_or_path = "tok"\n')
    text = BASE.replace('tokenizer.name_or_path = "tok"\n', "")
    pipeline = read(tmp_path, 'extends = ["common/b.toml"]\nexport.eval.file = "${env:ELSEWHERE}/x"\n' + text)
    assert pipeline.run.work_dir == tmp_path / "common" / "out"
    assert pipeline.tokenizer.name_or_path == tmp_path / "common" / "tok"
    assert pipeline.prep.source[0].path == tmp_path / "chat.jsonl"
    assert pipeline.export.eval is not None
    assert pipeline.export.eval.file == Path("/data/x")


def test_a_replaced_array_leaves_nothing_of_the_parents(tmp_path: Path) -> None:
    source = '[[prep.source]]\nname = "{0}"\npath = "{0}"\nweight = 2\n'
    write(tmp_path / "a.toml", source.format("a") + source.format("b"))
    pipeline = read(tmp_path, 'extends = ["a.toml"]\n' + BASE)
    assert [one.name for one in pipeline.prep.source] == ["chat"]
    assert pipeline.cite("prep.source.0.weight") == f"{tmp_path}/x.toml:6:8: prep.source.0.weight"


def test_a_fault_in_a_parent_is_cited_there(tmp_path: Path) -> None:
    write(tmp_path / "a.toml", 'run.sed = 2\nrun.work_dir = "${env:NO_SUCH}"\n')
    assert complaints(tmp_path, 'extends = ["a.toml"]\nbad = 1\n' + BASE) == [
        "x.toml:2:1: bad: unknown key; remove it",
        "a.toml:1:5: run.sed: unknown key, did you mean 'seed'?",
        'a.toml:2:5: run.work_dir = "${env:NO_SUCH}": environment variable NO_SUCH is not set; set it, or write '
        "${env:NO_SUCH:-fallback}",
    ]


@pytest.mark.parametrize(
    ("extends", "complaint"),
    [
        ('["none.toml"]', 'x.toml:1:12: extends.0 = "none.toml": none.toml: no such file'),
        ('["x.toml"]', 'x.toml:1:12: extends.0 = "x.toml": a file cannot extend itself; remove it'),
        ('["b.toml"]', 'b.toml:1:12: extends.0 = "x.toml": a file cannot extend itself; remove it'),
        ('[""]', 'x.toml:1:12: extends.0 = "": expected a path'),
        (
            '"a.toml"',
            'x.toml:1:1: extends = "a.toml": expected an array, each item a path in quotes, found text; '
            'write ["a.toml"]',
        ),
        ("[1]", 'x.toml:1:12: extends.0 = 1: expected a path in quotes, found a whole number; write "1"'),
    ],
)
def test_a_wrong_parent_is_refused(tmp_path: Path, extends: str, complaint: str) -> None:
    write(tmp_path / "b.toml", 'extends = ["x.toml"]')
    assert complaints(tmp_path, f"extends = {extends}\n{BASE}") == [complaint]


# -- environment variables


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("${env:PLACE}/x", "/place/x"),
        ("a/${env:PART}-${env:PART}", "a/p-p"),
        ("${env:UNSET:-b/c}", "b/c"),
        ("${env:EMPTY:-d}", "d"),
        ("${env:PLACE:-e}", "/place"),
        ("$HOME/{x}", "$HOME/{x}"),
    ],
)
def test_paths_take_environment_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, path: str
) -> None:
    for name, value in {"PLACE": "/place", "PART": "p", "EMPTY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)
    pipeline = read(tmp_path, BASE.replace("chat.jsonl", text))
    assert pipeline.prep.source[0].path == tmp_path / path


def test_other_text_is_not_expanded(tmp_path: Path) -> None:
    assert read(tmp_path, BASE, 'template.system="${env:NO_SUCH}"').template.system == "${env:NO_SUCH}"


# -- citing a key later


def test_a_stage_can_cite_the_place_of_any_key(tmp_path: Path) -> None:
    pipeline = read(tmp_path, BASE + "[train]\nglobal_batch_size = 3\noptimizer.lr = 1e-3\n")
    where = f"{tmp_path}/x.toml"
    assert pipeline.cite("train.global_batch_size") == f"{where}:{LINES + 2}:1: train.global_batch_size = 3"
    assert pipeline.cite("prep.source.0.path") == f'{where}:7:1: prep.source.0.path = "{tmp_path}/chat.jsonl"'
    assert pipeline.cite("train.max_steps") == f"{where}:{LINES + 1}:2: train.max_steps = 0"
    assert pipeline.cite("train") == f"{where}:{LINES + 1}:2: train"
    assert pipeline.cite("prep.source") == f"{where}:5:8: prep.source"
    assert pipeline.cite("model.scratch") == f"{where}:3:7: model.scratch"
    assert pipeline.cite("model.scratch.model_type") == f'{where}:3:19: model.scratch.model_type = "llama"'
    assert pickle.loads(pickle.dumps(pipeline)).cite("run.name") == pipeline.cite("run.name")


# -- every key


SAMPLES = [
    f'"{"9" * 5000}"',
    f'"{"[" * 5000}"',
    '"1,000"',
    "true",
    "-1",
    "0",
    "3",
    "-0.5",
    "nan",
    "1e999",
    '""',
    '"x"',
    '"*/y"',
    "[]",
    "[[]]",
    '["x"]',
    "[{}]",
    "{}",
    "{ x = 1 }",
    "07:32:00",
    "2024-01-02",
]
LEAVES = [key for key in schema_keys().values() if key.table is None]
JARGON = re.compile(r"Input|instance|pydantic|Field|[Vv]alid |None|Decimal|Literal|dict|str\b")


@pytest.mark.parametrize("name", [key.name for key in schema_keys().values() if key.path != ("extends",)])
def test_any_value_of_any_key_is_taken_or_refused_in_our_own_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(BASE + TRAIN, encoding="utf-8")
    key = name.replace("prep.source.", "prep.source.0.")
    for value in SAMPLES:
        try:
            load(path, [f"{key}={value}"])
        except ConfigError as error:
            for line in error.problems:
                assert line.startswith(("--set ", f"{path}:")), line
                assert not JARGON.search(line), line


@pytest.mark.parametrize("name", [key.name for key in LEAVES if any(isinstance(value, int) for value in key.values)])
def test_true_and_reals_are_never_taken_for_whole_numbers(tmp_path: Path, name: str) -> None:
    numbers = [value for value in schema_keys()[tuple(name.split("."))].values if isinstance(value, int)]
    for value in ["true", "false", *(f"{number}.0" for number in numbers)]:
        (found,) = complaints(tmp_path, BASE + TRAIN, f"{name}={value}")
        assert f"{name} = {value}: expected " in found


@pytest.mark.parametrize("name", [key.name for key in LEAVES if key.required])
def test_every_required_key_has_an_example_that_is_taken(tmp_path: Path, name: str) -> None:
    key = schema_keys()[tuple(name.split("."))]
    table = schema_keys().get(key.path[:-1])
    found = complaints(tmp_path, (f"{table.header}\n" if table else "") + key.example)
    cited = name.replace("prep.source.", "prep.source.0.")
    assert key.example
    assert not any(line.split(": ")[1].startswith((cited, f"{cited} = ")) for line in found)


@pytest.mark.parametrize("name", [key.name for key in LEAVES])
def test_every_default_is_a_value_that_its_key_takes(tmp_path: Path, name: str) -> None:
    key = schema_keys()[tuple(name.split("."))]
    if key.required or key.field.default is None or name == "extends":
        return
    text = spell_value(key.field.default, longest=1000)
    overrides = [f"{name.replace('prep.source.', 'prep.source.0.')}={text}"]
    if name == "prep.pack.window":
        overrides.append('prep.pack.scope="window"')
    if name.startswith("export.eval."):
        overrides.append('export.eval.file="x"')
    read(tmp_path, BASE + TRAIN, *overrides)


SNIPPETS = st.sampled_from(
    [*"\n=.[]{}\"'#,-1a\\\r\0é\t", "", '"""', "'''", "[[", "prep", "run", "nan", "1e5", "true", " = "]
)
EDITS = st.lists(st.tuples(st.integers(0, len(BASE + TRAIN)), st.integers(0, 4), SNIPPETS), min_size=1, max_size=4)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(EDITS)
def test_any_damage_to_a_file_is_read_or_refused_at_a_place(tmp_path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = BASE + TRAIN
    for at, removed, snippet in edits:
        text = text[:at] + snippet + text[at + removed :]
    try:
        read(tmp_path, text)
    except ConfigError as error:
        for line in error.problems:
            assert re.fullmatch(rf"{re.escape(str(tmp_path))}/x\.toml:\d+:\d+: \S.*", line), line
            assert line.isprintable()


KEY_TEXTS = st.sampled_from(
    [*(key.name for key in LEAVES), "prep.source.0.name", "prep.source.chat", "prep.source.9", ""]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.builds(lambda key, value: f"{key}={value}", KEY_TEXTS, st.text() | SNIPPETS), min_size=1, max_size=3)
)
def test_any_override_is_taken_or_refused_in_one_line_each(tmp_path: Path, overrides: list[str]) -> None:
    problems: Sequence[str] = []
    try:
        read(tmp_path, BASE + TRAIN, *overrides)
    except ConfigError as error:
        problems = error.problems
    assert all(line.isprintable() for line in problems)
