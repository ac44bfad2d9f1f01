"""A small pipeline with real stages, run as processes as a user runs them, and every byte that it leaves."""

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from tests.faults.process import Process
from tests.faults.strike import fault

ROOT = Path(__file__).parents[2]
Stage = Literal["prep", "train", "export"]
STAGES: tuple[Stage, ...] = ("prep", "train", "export")

_TOML = """
schema_version = 1
[run]
name = "case"
work_dir = "work"
[model.scratch]
model_type = "llama"
hidden_size = 64
intermediate_size = 96
num_hidden_layers = 2
num_attention_heads = 1
num_key_value_heads = 1
max_position_embeddings = 256
tie_word_embeddings = true
[tokenizer]
name_or_path = "tokenizer"
[prep]
max_length = 256
workers = 2
[prep.order]
file = "data_order.txt"
mode = "write"
[prep.pack]
capacity = 256
[prep.output]
shard_tokens = 2048
[[prep.source]]
name = "talks"
path = "data/talks"
map = "openai"
[[prep.source]]
name = "texts"
path = "data/texts"
files = ["*.jsonl"]
map = "pretrain"
template = "none"
[train]
global_batch_size = 2
precision = "fp32"
max_steps = 6
[train.optimizer]
lr = 1e-3
[train.checkpoint]
save_steps = 2
save_total_limit = -1
[train.log]
show_samples = 0
[export]
targets = ["hf", "turbomind"]
[export.hf]
dtype = "float32"
max_shard_size = 200_000
[export.verify]
greedy_tokens = 0
"""
_TIMES = ("step_time_s", "tokens_per_s", "memory_gb", "mfu", "time", "seconds")


class Case:
    """One directory with the pipeline's inputs, and its work directory below.

    Args:
        forks: its processes are forked from this one, which has imported the stages.
    """

    def __init__(self, folder: Path, *, forks: bool) -> None:
        self.folder, self.forks = folder, forks
        self.file = folder / "case.toml"
        self.home = folder / "work" / "case"

    @classmethod
    def make(cls, folder: Path, *, forks: bool = False) -> "Case":
        """Write the inputs: conversations in two files, texts in two."""
        case = cls(folder, forks=forks)
        for name in ("talks", "texts"):
            (folder / "data" / name).mkdir(parents=True)
        shutil.copytree(ROOT / "pipelines" / "quickstart" / "tokenizer", folder / "tokenizer")
        for part in range(2):
            talks = [_talk(part * 60 + at) for at in range(60)]
            (folder / "data" / "talks" / f"part-{part}.jsonl").write_text("".join(talks), "utf-8")
            texts = [json.dumps({"text": f"{at} ducks of part {part}. " * (1 + at % 9)}) + "\n" for at in range(40)]
            (folder / "data" / "texts" / f"part-{part}.jsonl").write_text("".join(texts), "utf-8")
        case.file.write_text(_TOML)
        return case

    def copy(self, folder: Path) -> "Case":
        """The same with all that was made so far, elsewhere."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Case(folder, forks=self.forks)

    def start(
        self,
        stage: str,
        *options: str,
        env: Mapping[str, str] | None = None,
        afresh: bool = False,
        group: int = 0,
        largest: int | None = None,
        first: Callable[[], None] | None = None,
    ) -> Process:
        """The process of a stage; see `Process` for what is not the command's."""
        return Process(
            [stage, str(self.file), *options],
            folder=self.folder,
            environment=_environment() | dict(env or {}),
            afresh=afresh or not self.forks,
            group=group,
            largest=largest,
            first=first,
        )

    def run(
        self,
        stage: str,
        *options: str,
        env: Mapping[str, str] | None = None,
        afresh: bool = False,
        largest: int | None = None,
    ) -> tuple[int, str]:
        """Exit code and output of a stage; -9 where it was killed."""
        process = self.start(stage, *options, env=env, afresh=afresh, largest=largest)
        code, output = process.wait()
        process.send_group(signal.SIGKILL)  # what it started, where it was killed alone
        return code, output

    def sites(self, stage: Stage, what: str, *options: str) -> list[str]:
        """All changes or reads that a stage makes: of its work directory, or of that and its inputs."""
        listed = self.folder.with_name("sites")
        listed.unlink(missing_ok=True)
        code, output = self.run(stage, *options, env=self.fault(what, "count", 0) | {"FAULT_SITES": str(listed)})
        assert code == 0, output
        return listed.read_text().splitlines()

    def fault(self, what: str, kind: str, at: int) -> dict[str, str]:
        """The environment in which a stage meets a fault at its change or read number `at`, of all its processes."""
        folder = self.home if what == "change" else self.folder
        return fault(what, kind, at, folder, self.folder.with_name("counter"))

    def tree(self, stage: Stage) -> dict[str, str]:
        """Digest of every file that a stage is to leave, without times and places."""
        home = self.home / stage
        files = [path for path in sorted(home.rglob("*")) if path.is_file()]
        left_out = ("run.json", ".run.json.tmp", ".lock")  # the second of a run that was killed when all was done
        return {path.relative_to(home).as_posix(): _digest(path) for path in files if path.name not in left_out}


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FAULT", "PACKTRAIN", "PYTEST"))}
    return kept | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in content.splitlines()]
        kept = [{key: value for key, value in row.items() if key not in _TIMES} for row in rows]
        content = json.dumps(kept, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _talk(number: int) -> str:
    turns = [
        {"role": "user", "content": f"How many are {number} and {number % 7}? 多少"},
        {"role": "assistant", "content": f"{number + number % 7}. " * (1 + number % 5)},
    ]
    return json.dumps({"messages": turns}, ensure_ascii=False) + "\n"
