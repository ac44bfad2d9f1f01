"""Runs on a model of a hub: ranks take what the process that started them found, and another commit is named."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines.artifacts import Manifest, digest_file
from pipelines.cli import main
from pipelines.config import load
from tests.least import least
from tests.train.runs import checkpoints, pipeline, write_prep
from train.attention import PackedAttention
from train.model import build_model
from train.plan import Plan

OLD, SAME, NEW = "a" * 40, "b" * 40, "c" * 40
TOML = f"""{least(40, run="offline = true")}
[model]
source = "huggingface"
name_or_path = "org/name"
source_args = {{{{ cache_dir = "{{cache}}" }}}}
[train]
global_batch_size = 4
max_steps = 1
nproc_per_node = 2
[train.optimizer]
lr = 0.01
"""


def cached(cache: Path, model: Path, commit: str) -> None:
    """A commit in the cache, as huggingface_hub lays it out: files by digest, and links to them."""
    repository = cache / "models--org--name"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (repository / folder).mkdir(parents=True, exist_ok=True)
    for path in model.iterdir():
        digest = digest_file(path)
        shutil.copyfile(path, repository / "blobs" / digest)
        (repository / "snapshots" / commit / path.name).symlink_to(f"../../blobs/{digest}")
    (repository / "refs" / "main").write_text(commit)


@pytest.mark.slow
def test_a_run_records_the_commit_and_names_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PackedAttention("sdpa").register()
    write_prep(tmp_path / "work" / "tiny" / "prep")
    for name, seed in (("old", 1), ("new", 2)):
        made = pipeline(tmp_path)
        made = made.model_copy(update={"run": made.run.model_copy(update={"seed": seed})})
        build_model(made, {"vocab_size": 48, "max_token_id": 47}).save_pretrained(tmp_path / name)
    cached(tmp_path / "cache", tmp_path / "old", OLD)
    (tmp_path / "x.toml").write_text(TOML.format(cache=tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def train() -> Result:
        monkeypatch.setattr("sys.argv", ["packtrain", "train", "x.toml"])  # what the ranks repeat
        return CliRunner().invoke(main, ["train", "x.toml"])

    result = train()
    assert result.exit_code == 0, result.output
    told = {"model": {"source": "huggingface", "repository": "org/name", "revision": OLD}}
    record = json.loads(Path("work/tiny/train/run.json").read_text())
    assert record["origins"] == told
    assert record["command"][-4:] == ["--set", f'model.revision="{OLD}"', "--set", "run.offline=true"]
    manifest = Manifest.read(checkpoints(tmp_path / "work")[-1])
    assert manifest is not None
    assert manifest.facts["origins"] == told

    cached(tmp_path / "cache", tmp_path / "old", SAME)  # a commit that left all that is used as it was
    assert Plan.of(load(tmp_path / "x.toml")).is_finished()
    cached(tmp_path / "cache", tmp_path / "new", NEW)  # weights of the same sizes
    result = train()
    assert result.exit_code == 2
    assert f"origins.model.revision: {OLD} there, {NEW} here" in result.output
    assert "another model: model.name_or_path" in result.output
