"""A small pipeline with real stages, run as processes as a user runs them, and every byte that it leaves."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
HOOK = Path(__file__).with_name("hook")
Stage = Literal["prep", "train", "export"]
STAGES: tuple[Stage, ...] = ("prep", "train", "export")
PATIENCE = 300.0
"""Seconds that a stage may take before it counts as hanging."""

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
    """One directory with the pipeline's inputs, and its work directory below."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "case.toml"
        self.home = folder / "work" / "case"

    @classmethod
    def make(cls, folder: Path) -> "Case":
        """Write the inputs: conversations in two files, texts in two."""
        case = cls(folder)
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
        return Case(folder)

    def start(
        self, stage: str, *options: str, env: Mapping[str, str] | None = None, before: Sequence[str] = ()
    ) -> "subprocess.Popen[bytes]":
        """The process of a stage, in a process group of its own.

        Args:
            before: a command that runs it, such as `prlimit`.
        """
        command = [*before, sys.executable, "-m", "pipelines", stage, str(self.file), *options]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=_environment() | dict(env or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(
        self, stage: str, *options: str, env: Mapping[str, str] | None = None, before: Sequence[str] = ()
    ) -> tuple[int, str]:
        """Exit code and output of a stage; -9 where it was killed."""
        process = self.start(stage, *options, env=env, before=before)
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return 124, f"hung for {PATIENCE:g} s"
        return process.returncode, output.decode("utf-8", "replace")

    def changes(self, stage: Stage) -> int:
        """Changes of the work directory that the busiest process of a stage makes."""
        counts = self.folder / "counts"
        code, output = self.run(stage, env=self.fault("count", 0) | {"FAULT_COUNTS": str(counts)})
        assert code == 0, output
        return max(int(line) for line in counts.read_text().split())

    def fault(self, kind: str, at: int) -> dict[str, str]:
        """The environment in which a stage meets a fault at its change number `at`."""
        return {"FAULT": f"{kind} {at} {self.home}", "PYTHONPATH": f"{HOOK}:{ROOT}"}

    def tree(self, stage: Stage) -> dict[str, str]:
        """Digest of every file that a stage is to leave, without times and places."""
        home = self.home / stage
        files = [path for path in sorted(home.rglob("*")) if path.is_file()]
        left_out = ("run.json", ".lock")
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
