"""Configs of XTuner 0.1, so that packs, their order and the global batch stay what they were.

What each key comes to here, and where the two differ, is on the page docs/from-xtuner.md.
"""

from collections.abc import Mapping
from pathlib import Path

from pipelines.migrate.config_tree import Finding, Node, listed
from pipelines.migrate.draft import Draft, Rule, asks, drops, known_elsewhere, only, same, to
from pipelines.migrate.origins import run_name
from pipelines.migrate.xtuner.batch import map_batch
from pipelines.migrate.xtuner.datasets import map_datasets
from pipelines.migrate.xtuner.hooks import DEFAULT_HOOKS, map_hook
from pipelines.migrate.xtuner.iterations import steps
from pipelines.migrate.xtuner.names import name_symbols
from pipelines.migrate.xtuner.optimizer import map_optimizer
from pipelines.migrate.xtuner.order import map_order
from pipelines.migrate.xtuner.schedule import map_schedule
from pipelines.migrate.xtuner.strategy import map_strategy
from pipelines.migrate.xtuner.weights import map_weights


def draft(config: Node, *, name: str, gpus: int | None) -> Draft:
    """A pipeline of a config's keys.

    Args:
        config: as `python_config.read` gives it.
        name: of the file.
        gpus: of the whole run, which the config does not say.
    """
    name_symbols(config)
    found = Draft(config, trainer="XTuner 0.1", name=name)
    run_name(found, Path(name).stem)
    map_weights(found)
    map_order(found, exact=map_datasets(found))
    map_batch(found, gpus)
    map_strategy(found)
    map_optimizer(found)
    map_schedule(found)
    for hook in listed(config.at("custom_hooks")):
        map_hook(found, hook)
    found.rules(config, DEFAULT_HOOKS)
    found.rules(config, TOP)
    found.close(unused=_unused)
    return found


def _unused(node: Node) -> Finding:
    root = str(node.path[0])
    if root in READ or root.startswith("line "):
        return known_elsewhere(node)
    return Finding("dropped", (), "nothing in the file uses this name, and XTuner reads no such name")


def _visualizer(draft: Draft, node: Node) -> None:
    text = " ".join(str(leaf.value) for leaf in node.leaves())
    named = {"WandbVis": "wandb", "TensorboardVis": "tensorboard", "MLflowVis": "mlflow", "SwanLab": "swanlab"}
    trackers = [tracker for part, tracker in named.items() if part in text]
    if trackers:
        draft.map(node, "train.log.trackers", trackers, note="project and address by its own environment variables")
    else:
        draft.same(node, "metrics.jsonl is always written")


READ = frozenset(
    {
        *("model", "tokenizer", "train_dataset", "train_dataloader", "val_dataloader", "test_dataloader"),
        *("optim_wrapper", "param_scheduler", "train_cfg", "val_cfg", "test_cfg", "val_evaluator", "test_evaluator"),
        *("custom_hooks", "default_hooks", "hooks", "env_cfg", "visualizer", "log_level", "log_processor", "_base_"),
        *("load_from", "resume", "randomness", "work_dir", "launcher", "custom_imports", "default_scope", "exp_name"),
        *("experiment_name", "strategy", "runner_type", "compile", "auto_scale_lr", "sequence_parallel_size", "cfg"),
        *("model_resource", "framework_type", "training_args", "trainer"),
    }
)
"""The names of a file that XTuner itself reads."""
TOP: Mapping[str, Rule] = {
    "tokenizer.type": same("tokenizer.json or tokenizer.model is read as it is"),
    "tokenizer.trust_remote_code": drops("no code of a tokenizer runs"),
    "tokenizer.padding_side": drops("packs have no padding"),
    "tokenizer.use_fast": drops("tokenizer.json or tokenizer.model is read as it is"),
    "tokenizer.encode_special_tokens": drops('template.special_text = "escape" is the default'),
    "tokenizer.model_max_length": drops("prep.max_length cuts samples"),
    "train_dataloader.dataset": same("[[prep.source]]"),
    "train_dataloader.num_workers": drops("training reads finished shards"),
    "train_dataloader.prefetch_factor": drops("training reads finished shards"),
    "train_dataloader.persistent_workers": drops("training reads finished shards"),
    "train_dataloader.pin_memory": drops("training reads finished shards"),
    "train_dataloader.collate_fn": drops("prep writes what training reads"),
    "train_dataloader.batch_sampler": drops("train.global_batch_size counts packs, and steps are always full"),
    "train_cfg.type": same("the loop is the trainer's"),
    "train_cfg.max_epochs": to("train.max_epochs"),
    "train_cfg.max_iters": steps("train.max_steps"),
    "train_cfg.by_epoch": same("max_epochs or max_steps"),
    "env_cfg.cudnn_benchmark": drops("language models run no convolution that cuDNN could choose a kernel for"),
    "env_cfg.mp_cfg": drops("no process is forked while training"),
    "env_cfg.dist_cfg.backend": to("train.runtime.backend", {"nccl": "auto", "gloo": "gloo"}),
    "env_cfg.dist_cfg.init_timeout": asks("see train.runtime.timeout_minutes"),
    "visualizer": _visualizer,
    "log_level": drops("`packtrain --verbose` shows more"),
    "log_processor": drops("metrics.jsonl has every step"),
    "load_from": only(None, "not set", "export that checkpoint to a Hugging Face directory, and name that one"),
    "resume": only(False, "a new run starts anew; this very run continues", "train.resume continues runs of its own"),
    "randomness.deterministic": to("train.runtime.deterministic"),
    "randomness.diff_rank_seed": drops("every rank has its own from run.seed"),
    "work_dir": to("run.work_dir"),
    "launcher": drops("what started the process says it"),
    "default_scope": drops("nothing is registered here"),
    "exp_name": drops("run.name"),
    "model_resource": same("model.source"),
    "val_dataloader": only(None, "not set", "see prep.eval.fraction"),
    "test_dataloader": only(None, "not set", "see prep.eval.fraction"),
    "val_cfg": only(None, "not set", "see [train.eval]"),
    "test_cfg": only(None, "not set", "see [train.eval]"),
    "val_evaluator": only(None, "not set", "see [train.eval]"),
    "test_evaluator": only(None, "not set", "see [train.eval]"),
    "runner_type": same("[train.deepspeed]"),
}
