"""Configs of other trainers as pipelines: every key is accounted for, and what comes out passes the schema."""

import ast
import json
import re
import shutil
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import tomli
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.cli import main
from pipelines.config import load
from pipelines.editor_schema import SCHEMA
from pipelines.errors import ConfigError
from pipelines.migrate.migration import Line, Migration, Trainer, migrate, write
from pipelines.schema import Pipeline

CONFIGS = Path(__file__).parent / "configs"
ALL: tuple[tuple[Trainer, str], ...] = (
    ("xtuner", "xtuner_tokenized.py"),
    ("xtuner", "xtuner_qlora.py"),
    ("xtuner", "xtuner_dump.py"),
    ("internevo", "internevo_sft.py"),
    ("internevo", "internevo_pretrain.py"),
    ("axolotl", "axolotl_lora.yaml"),
    ("axolotl", "axolotl_full.yaml"),
    ("llamafactory", "llamafactory_full.yaml"),
    ("llamafactory", "llamafactory_qlora.yaml"),
)


def placed(name: str, folder: Path) -> Path:
    """A config of ours, with what it names beside it. Those in Python end in .txt here, since they are no code."""
    shutil.copytree(CONFIGS, folder, dirs_exist_ok=True)
    if name.endswith(".py"):
        (folder / f"{name}.txt").rename(folder / name)
    return folder / name


def migrated(name: str, folder: Path, *, gpus: int | None = 16) -> tuple[Migration, Pipeline]:
    (trainer,) = (trainer for trainer, one in ALL if one == name)
    found = migrate(trainer, placed(name, folder), gpus=gpus)
    write(found, folder / "out" / "pipeline.toml")
    return found, load(folder / "out" / "pipeline.toml")


def line(found: Migration, key: str) -> Line:
    (one,) = (line for line in found.lines if line.key == key)
    return one


def python_keys(text: str) -> set[tuple[str, int]]:
    """The keys of a Python config that hold a value, by their name and line, told in another way."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        pairs: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.keyword) and node.arg:
            pairs = [(node.arg, node.value)]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            pairs = [(node.targets[0].id, node.value)]
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            assert isinstance(node.value, ast.Tuple)
            pairs = [(one.id, its) for one, its in zip(node.targets[0].elts, node.value.elts, strict=True)]  # type: ignore[attr-defined]
        for name, value in pairs:
            is_table = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "dict"
            if not is_table and not (isinstance(value, ast.List | ast.Tuple) and value.elts):
                found.add((name, value.lineno))
    return found


def yaml_keys(value: Any, path: str = "") -> set[str]:
    if isinstance(value, dict) and value:
        return {key for name, one in value.items() for key in yaml_keys(one, f"{path}.{name}" if path else str(name))}
    if isinstance(value, list) and value:
        return {key for index, one in enumerate(value) for key in yaml_keys(one, f"{path}.{index}")}
    return {path}


@pytest.mark.parametrize(("trainer", "name"), ALL)
def test_every_key_is_accounted_for_and_the_pipeline_passes_the_schema(
    trainer: Trainer, name: str, tmp_path: Path
) -> None:
    found, pipeline = migrated(name, tmp_path)
    assert pipeline.train is not None
    text = (tmp_path / name).read_text()
    if name.endswith(".py"):
        told = {(str(one.key.rpartition(".")[2]), one.line) for one in found.lines}
        missing = {key for key, _ in python_keys(text) - told}
        # The first two are bound again, and what stands last counts; the third is inside a call, which is listed.
        assert missing <= {"accumulative_counts", "max_length", "later"}
    else:
        assert yaml_keys(yaml.safe_load(text)) <= {one.key for one in found.lines}
    assert all(one.note or one.verdict == "mapped" for one in found.lines), "what is not mapped has a reason"
    document = tomli.loads(found.toml)
    for one in found.lines:
        for key in one.keys if one.verdict == "mapped" else ():
            assert value_at(document, key) is not None, one
    assert found.facts()["counts"]["mapped"] > 6


def value_at(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document[int(part) if part.isdecimal() else part]
    return document


def test_packs_order_and_batch_of_a_tokenized_run_of_xtuner_stay_what_they_were(tmp_path: Path) -> None:
    found, pipeline = migrated("xtuner_tokenized.py", tmp_path, gpus=64)
    prep, train = pipeline.prep, pipeline.train
    assert train is not None
    assert (prep.order.shuffle, prep.pack.strategy, prep.pack.scope) == ("xtuner", "concat_split", "file")
    assert (prep.pack.drop_last, prep.pack.capacity, prep.min_length) == (True, 32768, 8)
    assert (pipeline.template.loss.on_empty, pipeline.run.seed) == ("keep", 1024)
    assert prep.order.file == Path("/data/sft/order/data_order.txt")
    assert (prep.source[0].map, prep.source[0].files, prep.source[0].path) == (
        "none",
        ["**/*.bin"],
        Path("/data/sft/tokens"),
    )
    assert not prep.pack.cross_sample_attention
    assert train.shuffle == "internrepo"
    assert train.global_batch_size == 1 * 8 * 64 // 4
    assert train.parallel.sequence_parallel_size == 4
    schedule = train.scheduler
    assert (schedule.warmup_ratio, schedule.warmup_start_factor, schedule.min_lr) == (0.025, 0.025, 6e-6)
    assert train.optimizer.no_decay == [], "XTuner decays norms and biases as well"
    assert (train.checkpoint.save_steps, train.eval and train.eval.steps) == (31, 62), "of 8 iterations each"
    assert pipeline.template.name == "internlm2_chat", "of the hook that asks the model"
    assert line(found, "pack_to_max_length").verdict == "dropped", "nothing in that file reads it"
    assert not [one for one in found.lines if one.verdict == "decide"]


def test_the_copy_that_xtuner_leaves_in_its_work_dir_is_the_same_run(tmp_path: Path) -> None:
    found, pipeline = migrated("xtuner_dump.py", tmp_path, gpus=16)
    train = pipeline.train
    assert train is not None
    assert pipeline.template.name == "internlm2_chat"
    assert [one.map for one in pipeline.prep.source] == ["alpaca"]
    assert (train.optimizer.type, train.precision, train.max_grad_norm) == ("paged_adamw_32bit", "bf16", 0.5)
    assert (train.deepspeed.zero_stage, train.deepspeed.offload_optimizer) == (3, "cpu")
    assert train.global_batch_size == 2 * 8 * 16, "of the strategy, as nothing else says it"
    assert train.checkpoint.save_steps == 100 // 8, "of 8 iterations each"
    assert pipeline.model.quantization is not None
    assert pipeline.model.quantization.bnb_4bit_compute_dtype == "bfloat16"
    assert pipeline.model.lora is not None
    assert not [one for one in found.lines if one.verdict == "decide"]


def test_what_a_file_does_not_say_may_stand_in_those_that_it_reads(tmp_path: Path) -> None:
    config = tmp_path / "sft.py"
    config.write_text("from configs.base import *\nadam = dict(lr=1e-4)\n")
    for trainer in ("internevo", "xtuner"):
        found = migrate(trainer, config, gpus=1)
        (clip,) = (one for one in found.toml.splitlines() if one.startswith("max_grad_norm"))
        assert "decide: gradients are not clipped there, unless the files that it reads say otherwise" in clip
    config.write_text("adam = dict(lr=1e-4)\n")
    assert "not clipped there, unless" not in migrate("internevo", config, gpus=1).toml


def test_every_linear_layer_of_axolotl_is_more_than_the_layers_that_it_names_beside_it(tmp_path: Path) -> None:
    config = tmp_path / "lora.yaml"
    config.write_text(
        "base_model: models/base\nadapter: lora\nlora_target_linear: true\nlora_target_modules: [q_proj, v_proj]\n"
    )
    found = migrate("axolotl", config, gpus=1)
    assert "target_modules" not in found.toml, "all-linear is the default"
    assert line(found, "lora_target_modules.0").verdict == "same"
    config.write_text(config.read_text().replace("true", "false"))
    assert 'target_modules = ["q_proj", "v_proj"]' in migrate("axolotl", config, gpus=1).toml.replace("  ", " ")


def test_what_peft_and_fsdp_take_where_nothing_is_said_is_said_here(tmp_path: Path) -> None:
    config = tmp_path / "lora.yaml"
    config.write_text(
        "base_model: models/base\nadapter: lora\nlora_r: 64\nfsdp: [full_shard]\n"
        "fsdp_config: {fsdp_offload_params: true, fsdp_use_orig_params: false}\n"
    )
    found = tomli.loads(migrate("axolotl", config, gpus=1).toml)
    assert found["model"]["lora"] == {"r": 64, "lora_alpha": 8}
    assert found["train"]["deepspeed"] == {"zero_stage": 3, "offload_param": "cpu", "offload_optimizer": "cpu"}
    other = tmp_path / "lora.py"
    other.write_text("from peft import LoraConfig\nmodel = dict(lora=dict(type=LoraConfig, r=64))\n")
    assert tomli.loads(migrate("xtuner", other, gpus=1).toml)["model"]["lora"] == {"r": 64, "lora_alpha": 8}


def test_the_least_rate_among_the_arguments_of_a_schedule_is_ours(tmp_path: Path) -> None:
    config = tmp_path / "sft.yaml"
    config.write_text(
        "model_name_or_path: models/base\nlr_scheduler_type: cosine_with_min_lr\n"
        "lr_scheduler_kwargs: {min_lr: 1.0e-5, num_cycles: 2}\n"
    )
    found = migrate("llamafactory", config, gpus=1)
    assert line(found, "lr_scheduler_kwargs.min_lr").keys == ("train.scheduler.min_lr",)
    assert line(found, "lr_scheduler_kwargs.num_cycles").verdict == "decide"


def test_what_a_config_of_xtuner_does_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    found, pipeline = migrated("xtuner_qlora.py", tmp_path)
    decisions = {one.key for one in found.lines if one.verdict == "decide"}
    assert {
        "own.dataset_map_fn",
        "custom_hooks.2.often",
        "train_cfg.dynamic_intervals.0",
        "DATA",
        "max_length",
    } <= decisions
    assert any("from .schedules import *" in key for key in decisions)
    assert any("model.update" in key for key in decisions)
    assert pipeline.model.lora is not None
    assert pipeline.model.lora.r == 64
    assert pipeline.model.quantization is not None
    assert [source.map for source in pipeline.prep.source[:2]] == ["alpaca", "oasst1"]
    assert pipeline.prep.source[1].samples == 1000
    assert pipeline.prep.pack.cross_sample_attention, "samples saw each other there"
    assert pipeline.template.name == "qwen_chat"
    assert line(found, "some_new_setting.a").verdict == "dropped", "nothing reads it"
    assert line(found, "train_dataloader.sampler.type").value == "DefaultSampler", "of the branch that is taken"
    assert pipeline.train is not None
    assert (pipeline.train.max_grad_norm, pipeline.train.optimizer.weight_decay) == (0.0, 0.01), "defaults there"
    assert pipeline.train.scheduler.interval == "epoch"
    assert pipeline.train.eval is not None
    assert pipeline.train.eval.system.startswith("Below is an instruction")


def test_packs_order_and_batch_of_internevo_stay_what_they_were(tmp_path: Path) -> None:
    found, pipeline = migrated("internevo_sft.py", tmp_path / "sft")
    prep, train = pipeline.prep, pipeline.train
    assert train is not None
    assert (prep.pack.capacity, prep.pack.attention_window) == (2 * 4096, 4096)
    assert (prep.order.shuffle, prep.pack.strategy, prep.pack.scope) == ("xtuner", "concat_split", "file")
    assert (train.shuffle, train.global_batch_size) == ("internevo", 4 * 16 // 2)
    assert (train.parallel.sequence_parallel_size, train.deepspeed.zero_stage) == (2, 3)
    assert (train.max_steps, train.optimizer.betas, train.precision) == (5000, (0.9, 0.98), "bf16")
    assert "import-internevo /ckpts/7b/20000 models/7b_sft" in line(found, "ckpt.load_ckpt_info.path").note
    assert line(found, "UNUSED").verdict == "dropped"
    assert "x.invalid" not in str(found.facts()), "addresses that only the owner may know are not repeated"
    found, pipeline = migrated("internevo_pretrain.py", tmp_path / "pretrain")
    assert pipeline.model.scratch is not None
    assert pipeline.model.scratch["intermediate_size"] == 5632, "2048 x 8 / 3, rounded up to a multiple of 256"
    assert pipeline.prep.pack.cross_sample_attention
    assert line(found, "data.rampup_batch_size").verdict == "decide"


def test_what_axolotl_means_is_written(tmp_path: Path) -> None:
    _, pipeline = migrated("axolotl_lora.yaml", tmp_path / "lora")
    train = pipeline.train
    assert train is not None
    assert (train.global_batch_size, train.optimizer.type, train.optimizer.lr) == (64, "adamw_8bit", 2e-4)
    assert train.optimizer.betas == (0.9, 0.999), "its default, which is not the one here"
    assert (train.scheduler.warmup_steps, train.scheduler.warmup_start_factor) == (10, 0.0)
    assert (pipeline.prep.overlength, pipeline.prep.eval.fraction) == ("drop", Decimal("0.1"))
    assert [source.map for source in pipeline.prep.source] == ["sharegpt", "alpaca"]
    assert (train.deepspeed.zero_stage, train.checkpoint.save_epochs) == (2, 1)
    found, pipeline = migrated("axolotl_full.yaml", tmp_path / "full")
    train = pipeline.train
    assert train is not None
    assert (train.global_batch_size, train.parallel.sequence_parallel_size) == (8 * 16 // 2, 2)
    assert (train.optimizer.betas, train.activation_offload, train.scheduler.min_lr) == ((0.9, 0.99), "cpu", 2e-6)
    assert pipeline.prep.source[0].columns == {"text": "body"}
    assert line(found, "rl").verdict == "decide"


def test_what_llamafactory_means_is_written(tmp_path: Path) -> None:
    found, pipeline = migrated("llamafactory_full.yaml", tmp_path / "full")
    train = pipeline.train
    assert train is not None
    assert (train.deepspeed.zero_stage, train.deepspeed.offload_param) == (3, "cpu"), "by the JSON beside it"
    assert [source.map for source in pipeline.prep.source] == ["alpaca", "openai", "alpaca"]
    assert pipeline.prep.source[0].columns == {"instruction": "q", "output": "a"}
    assert [source.weight for source in pipeline.prep.source] == [Decimal("0.5"), Decimal("0.3"), Decimal("0.2")]
    assert (train.max_epochs, train.scheduler.type, train.activation_checkpointing) == (3, "cosine", "full")
    assert "hf_abcdef" not in found.toml + str(found.facts()), "a secret is not repeated"
    found, pipeline = migrated("llamafactory_qlora.yaml", tmp_path / "qlora")
    train = pipeline.train
    assert train is not None
    assert (train.global_batch_size, train.optimizer.lr, train.scheduler.type) == (8 * 16, 5e-5, "linear"), (
        "its defaults"
    )
    assert (pipeline.prep.pack.strategy, pipeline.prep.pack.capacity) == ("none", 2048), "its defaults"
    twice = [one.verdict for one in found.lines if one.key == "adam_beta1"]
    assert twice == ["dropped", "mapped"], "the second of two counts"


def test_without_gpus_the_batch_is_for_you_to_decide(tmp_path: Path) -> None:
    found, pipeline = migrated("xtuner_tokenized.py", tmp_path, gpus=None)
    assert pipeline.train is not None
    assert pipeline.train.global_batch_size == 8, "on the four GPUs that share a pack"
    assert any("give --gpus" in note for note in found.notes)
    assert "# decide: " in found.toml


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10**12), st.floats(), st.text(max_size=3), st.just([]), st.just({}),
    st.lists(st.one_of(st.none(), st.text(max_size=2), st.integers()), max_size=2), st.just({"a": [None, {"b": 1}]}),
)  # fmt: skip


@settings(max_examples=30)
@given(data=st.data())
def test_odd_values_and_unknown_keys_are_listed_and_never_crash(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    trainer, name = data.draw(st.sampled_from([one for one in ALL if one[1].endswith(".yaml")]))
    config = yaml.safe_load((CONFIGS / name).read_text())
    for key in data.draw(st.lists(st.sampled_from([*config, "never_heard_of"]), max_size=3)):
        config[key] = data.draw(ODD)
    path = tmp_path_factory.mktemp("odd") / name
    path.write_text(yaml.safe_dump(config))
    found = migrate(trainer, path)
    assert yaml_keys(config) <= {one.key for one in found.lines}


@pytest.mark.parametrize(
    "value", ["None", "-1", "1e400", "foo(1)", "torch.x", "[None]", "dict(a=[1])", "'~/x'", "10**10**9"]
)
def test_odd_values_in_a_python_config_are_listed_and_never_crash(value: str, tmp_path: Path) -> None:
    for trainer, name in (one for one in ALL if one[1].endswith(".py")):
        text = placed(name, tmp_path / name).read_text()
        tree = ast.parse(text)
        spots = [node for node in ast.walk(tree) if isinstance(node, ast.keyword | ast.Assign)]
        for spot in spots[:: max(1, len(spots) // 8)]:
            before = spot.value
            spot.value = ast.parse(value, mode="eval").body
            (tmp_path / "odd.py").write_text(ast.unparse(ast.fix_missing_locations(tree)))
            try:
                migrate(trainer, tmp_path / "odd.py")
            except ConfigError as error:
                assert "expected sizes of 1 or more" in str(error)  # noqa: PT017
            spot.value = before


@pytest.mark.parametrize(
    ("trainer", "name", "content", "message"),
    [
        ("xtuner", "a.py", "x = (", "is no Python file"),
        ("internevo", "a.py", "# nothing\n", "sets nothing"),
        ("xtuner", "a.py", "x = " + "-" * 100_000 + "1", "nested too deep"),
        ("internevo", "a.py", "data = dict(micro_num=0)", "expected sizes of 1 or more"),
        ("internevo", "a.py", "parallel = dict(tensor=3)", "tensor 3 x pipeline 1 does not divide it"),
        ("axolotl", "a.yaml", "a: [", "is no YAML file"),
        ("axolotl", "a.yaml", "- a", "expected keys with values"),
        ("axolotl", "a.yaml", "context_parallel_size: 3", "context_parallel_size 3 does not divide it"),
        ("llamafactory", "a.yaml", None, "No such file"),
    ],
)
def test_what_is_wrong_is_said(trainer: Trainer, name: str, content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        migrate(trainer, tmp_path / name, gpus=16)


def test_nothing_in_a_config_runs(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "import os\nos.abort()\nx = open('made', 'w')\nclass A: open('made', 'w')\n"
        "lr = __import__('os').system('touch made')\nmodel = dict(llm=dict(a=f'{exit(1)}'))\n"
    )
    found = migrate("xtuner", tmp_path / "a.py")
    assert [path.name for path in tmp_path.iterdir()] == ["a.py"]
    assert {one.line for one in found.lines if one.verdict == "decide"} >= {2, 4}


def test_files_that_mean_more_than_fits_anywhere_are_read_all_the_same(tmp_path: Path) -> None:
    doubled = "".join(f"a{at + 1} = a{at} + a{at}\nt{at + 1} = f'{{t{at}}}{{t{at}}}'\n" for at in range(60))
    nested = "".join(f"d{at + 1} = dict(x=d{at}, y=d{at})\n" for at in range(60))
    nested += "x = y = 1\n" + "x = x + y\ny = x + y\n" * 1000
    text = f"a0 = [1, 2]\nt0 = 'ab'\nd0 = dict(x=1)\n{doubled}{nested}model = dict(lora=d60)\nmodel['m'] = model\n"
    (tmp_path / "a.py").write_text(text)
    assert migrate("xtuner", tmp_path / "a.py").lines
    laughs = "a0: &a0 [x]\n" + "".join(f"a{at + 1}: &a{at + 1} [*a{at}, *a{at}]\n" for at in range(40))
    (tmp_path / "a.yaml").write_text(laughs)
    with pytest.raises(ConfigError, match="means more than 20,000 keys"):
        migrate("axolotl", tmp_path / "a.yaml")


def test_the_command_writes_the_file_and_the_account(tmp_path: Path) -> None:
    path, out = placed("internevo_sft.py", tmp_path), tmp_path / "my.toml"
    arguments = ["migrate", "internevo", str(path), "-o", str(out), "--gpus", "16"]
    answer = CliRunner().invoke(main, arguments)
    assert (answer.exit_code, answer.stdout) == (0, f"{out}: 2 keys to decide\n")
    assert "mapped: " in answer.stderr
    assert "24: data.micro_num = 4 -> train.global_batch_size" in answer.stderr
    written = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert out.read_text() == f"#:schema pipeline.schema.json\n{written['toml']}", "editors find the schema beside it"
    assert (tmp_path / "pipeline.schema.json").read_bytes() == SCHEMA.read_bytes()
    assert {one["verdict"] for one in written["keys"]} == {"mapped", "same", "dropped", "decide"}
    out.write_text("mine")
    refused = CliRunner().invoke(main, arguments)
    assert (refused.exit_code, out.read_text()) == (2, "mine")
    assert "exists with another content" in refused.stderr
    shown = CliRunner().invoke(main, arguments[:3])
    assert load_text(shown.stdout, tmp_path).train is not None


def load_text(text: str, folder: Path) -> Pipeline:
    (folder / "shown.toml").write_text(text)
    return load(folder / "shown.toml")


def test_the_example_of_the_page_is_what_comes_out(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "migrate.md").read_text()
    (config,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "7b_sft.py").write_text(config)
    assert migrate("internevo", tmp_path / "7b_sft.py", gpus=16).toml == toml


def test_what_packing_without_walls_and_batches_by_length_were_is_said(tmp_path: Path) -> None:
    config = tmp_path / "sft.yaml"
    base = "model_name_or_path: models/base\nlearning_rate: 1e-5\ngroup_by_length: true\n"
    config.write_text(f"{base}packing: true\n")
    found = migrate("llamafactory", config, gpus=1)
    assert "there they see each other without neat_packing" in line(found, "packing").note
    assert line(found, "group_by_length").note == "packing makes lengths equal"
    config.write_text(base)
    found = migrate("llamafactory", config, gpus=1)
    assert "each step takes them in the shuffled order" in line(found, "group_by_length").note
    config.write_text(f"{base}stage: pt\n")
    pack = tomli.loads(migrate("llamafactory", config, gpus=1).toml)["prep"]["pack"]
    assert (pack["strategy"], pack["cross_sample_attention"]) == ("concat_split", True), "texts saw each other there"


def test_placeholders_and_formats_of_ones_own_are_for_you_to_decide(tmp_path: Path) -> None:
    config = tmp_path / "lora.yaml"
    config.write_text(
        "base_model: ${BASE_MODEL}\nsequence_len: ${LENGTH}\nprocessor_type: AutoProcessor\n"
        "datasets:\n- path: ${DATA}\n  type: {field_instruction: prompt, format: '{instruction}'}\n"
    )
    found = migrate("axolotl", config, gpus=1)
    assert load_text(found.toml, tmp_path).prep.source[0].path == tmp_path / "data"
    assert "need a python:module:function" in line(found, "datasets.0.type.format").note
    assert line(found, "processor_type").note == "only text is trained on here"
    assert {one.verdict for one in found.lines} == {"decide"}
