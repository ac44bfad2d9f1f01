"""Repositories of hubs are brought here once, by the commit that was meant, and without a network from the cache."""

import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.config import load
from pipelines.errors import ConfigError, MachineError, PacktrainError
from pipelines.model_source import code_digest, fetch, with_model, with_small_files, with_tokenizer
from pipelines.schema import Pipeline
from tests.least import least

OLD, NEW = "a" * 40, "b" * 40
SMALL = {"config.json": b'{"model_type": "llama"}', "tokenizer.json": b"{}", "modeling.py": b"raise SystemExit"}
FILES = {
    OLD: {**SMALL, "model.safetensors": b"old weights", "pytorch_model.bin": b"pickled"},
    NEW: {**SMALL, "model.safetensors": b"new weights"},
}
TOML = f"""{least(8)}
[model]
source = "huggingface"
name_or_path = "org/name"
source_args = {{{{ endpoint = "{{endpoint}}", cache_dir = "{{cache}}", token_env = "OUR_TOKEN" }}}}
[train]
global_batch_size = 1
optimizer.lr = 1e-3
"""


class FakeHub(BaseHTTPRequestHandler):
    """The few routes of huggingface.co that a download asks."""

    asked: ClassVar[list[str]] = []
    main: ClassVar[str] = OLD

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path} {self.headers.get('Authorization')}")
        found, headers = self._find(path.removeprefix("/"))
        self.send_response(404 if found is None else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(found or b"")))
        self.end_headers()
        if body and found:
            self.wfile.write(found)

    def _find(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        for commit, files in FILES.items():
            names = (commit, "main") if commit == self.main else (commit,)
            if path in [f"api/models/org/name/revision/{name}" for name in names]:
                siblings = [{"rfilename": name} for name in files]  # earlier versions of the library ask for no tree
                return json.dumps({"id": "org/name", "sha": commit, "siblings": siblings}).encode(), {}
            if path in [f"api/models/org/name/tree/{name}" for name in names]:
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in files.items()
                ]
                return json.dumps(tree).encode(), {}
            name = path.removeprefix(f"org/name/resolve/{commit}/")
            if name in files:
                etag = hashlib.sha1(files[name]).hexdigest()
                return files[name], {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        return None, {"X-Error-Code": "EntryNotFound"}

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("OUR_TOKEN", "hf_secret")
    FakeHub.asked.clear()
    FakeHub.main = OLD
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "x.toml").write_text(TOML.format(endpoint=endpoint, cache=tmp_path / "cache"))
    yield endpoint
    server.shutdown()
    server.server_close()


def read(folder: Path, *overrides: str) -> Pipeline:
    return load(folder / "x.toml", overrides)


def test_a_branch_is_brought_here_and_recorded_as_the_commit_that_it_was(hub: str, tmp_path: Path) -> None:
    first = with_model(read(tmp_path))
    assert first.model.name_or_path is not None
    assert (first.model.name_or_path / "model.safetensors").read_bytes() == b"old weights"
    assert first.origins == {"model": {"source": "huggingface", "repository": "org/name", "revision": OLD}}
    assert with_model(first) is first
    names = {path.name for path in first.model.name_or_path.iterdir()}
    assert names == {"config.json", "model.safetensors"}  # no code, no pickles
    assert any(line.endswith("Bearer hf_secret") for line in FakeHub.asked)
    FakeHub.main = NEW
    second = with_model(read(tmp_path))
    assert second.origins["model"]["revision"] == NEW
    pinned = with_model(read(tmp_path, f'model.revision="{OLD}"'))
    assert pinned.model.name_or_path == first.model.name_or_path


def test_what_is_cached_is_taken_without_a_network(hub: str, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"revision main is not there, and run.offline = true; run `packtrain fetch"):
        with_model(read(tmp_path, "run.offline=true"))
    with_tokenizer(read(tmp_path))
    with pytest.raises(MachineError, match=r"revision main has no config.json, and run.offline = true"):
        with_model(read(tmp_path, "run.offline=true"))
    result = CliRunner().invoke(main, ["fetch", str(tmp_path / "x.toml"), "--set", "run.offline=true", "--json"])
    assert result.exit_code == 0
    (fetched,) = json.loads(result.stdout)["fetched"]
    assert (fetched["table"], fetched["revision"]) == ("model", OLD)
    FakeHub.asked.clear()
    offline = with_small_files(with_model(read(tmp_path, "run.offline=true")))
    assert str(offline.model.name_or_path) == fetched["folder"]
    assert with_model(read(tmp_path, f'model.revision="{OLD}"')).origins == offline.origins
    assert not FakeHub.asked
    (offline.tokenizer_dir / "model.safetensors").unlink()  # a download that was cut off
    with pytest.raises(MachineError, match="revision main has no weights in safetensors files"):
        with_model(read(tmp_path, "run.offline=true"))


def test_processes_of_one_machine_download_once(hub: str, tmp_path: Path) -> None:
    pinned = read(tmp_path, f'model.revision="{OLD}"')
    with ThreadPoolExecutor(4) as ranks:
        found = list(ranks.map(with_model, [pinned] * 4))
    assert len({one.model.name_or_path for one in found}) == 1
    assert sum(line.startswith("GET /org/name/resolve") for line in FakeHub.asked) == 2


def test_pickled_weights_and_code_come_only_where_they_are_asked_for(hub: str, tmp_path: Path) -> None:
    trusted = with_model(read(tmp_path, f'model.revision="{OLD}"', "model.trust_remote_code=true"))
    assert trusted.model.name_or_path is not None
    assert (trusted.model.name_or_path / "modeling.py").is_file()
    digest = code_digest(trusted.model.name_or_path)
    (trusted.model.name_or_path / "more.py").write_text("")
    assert code_digest(trusted.model.name_or_path) != digest
    del FILES[OLD]["model.safetensors"]
    try:
        with pytest.raises(ConfigError, match=r'no weights .*set model.weights_format = "safetensors_or_bin"'):
            with_model(read(tmp_path, f'model.source_args.cache_dir="{tmp_path / "other"}"'))
        bins = ('model.weights_format="safetensors_or_bin"', f'model.source_args.cache_dir="{tmp_path / "other"}"')
        folder = with_model(read(tmp_path, *bins)).model.name_or_path
    finally:
        FILES[OLD]["model.safetensors"] = b"old weights"
    assert folder is not None
    assert (folder / "pytorch_model.bin").is_file()


REFUSED: list[tuple[tuple[str, ...], type[PacktrainError], str]] = [
    (('model.name_or_path="org/none"',), MachineError, "huggingface does not give revision main: "),
    (('model.source_args.colour="red"',), ConfigError, "huggingface_hub.snapshot_download takes no colour; remove it"),
    (('model.source_args.token_env="NOT_SET"',), ConfigError, "environment variable NOT_SET is not set; set it"),
    (('model.source="openmind"',), MachineError, "needs openmind_hub, which is not installed here; pip install 'packt"),
]


@pytest.mark.parametrize(("overrides", "kind", "finding"), REFUSED)
def test_what_a_hub_does_not_give_is_said_in_one_line(
    overrides: tuple[str, ...], kind: type[PacktrainError], finding: str, hub: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=finding) as refusal:
        with_model(read(tmp_path, *overrides))
    assert "\n" not in str(refusal.value)
    assert "hf_secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("overrides", "finding"),
    [
        (('model.source="local"',), "model.source_args: belongs to a hub's repository"),
        (
            ("model.trust_remote_code=true",),
            "model.trust_remote_code = true: the code that runs has to be one that was",
        ),
        (
            (f'model.revision="{OLD}"', "model.trust_remote_code=true", "model.lora={}"),
            "with its own code is not supported",
        ),
        (('model.name_or_path="a/b/c"',), 'expected a repository such as "org/name", as source = "huggingface" says'),
        (
            ('model.source_args.token="x"',),
            "a secret has no place in a file; set token_env to the environment variable",
        ),
        (('model.source_args.endpoint="https://me:pw@x/y"',), "a password has no place in a file; set endpoint_env to"),
        (('model.source_args.proxies.https="http://me:pw@x"',), "a password has no place in a file"),
        (('model.source_args.repo_id="x"',), "packtrain sets it; remove it"),
        (('model.source_args.cache_dir="x"',), "expected an absolute path"),
        (('model.revision=".."',), "expected a commit, a tag or a branch"),
        (('tokenizer.revision="main"',), "tokenizer.revision = .*belongs to a hub's repository"),
        (('tokenizer.source="huggingface"',), "tokenizer.source = .*without a repository; set name_or_path"),
        (("tokenizer.trust_remote_code=true",), "not a key here: a tokenizer is read from tokenizer.json"),
        (('tokenizer.add_special_tokens=["<a>", "<a>"]',), "is there twice; remove one"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(
    overrides: tuple[str, ...], finding: str, hub: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=finding):
        read(tmp_path, *overrides)


def test_a_hub_name_that_is_taken_for_a_path_is_told_the_key(hub: str, tmp_path: Path) -> None:
    text = (tmp_path / "x.toml").read_text()
    (tmp_path / "x.toml").write_text(text.replace('source = "huggingface"\n', "").partition("source_args")[0] + (
        text.partition("}\n")[2]
    ))  # fmt: skip
    for locate in (with_model, with_tokenizer):
        with pytest.raises(ConfigError, match=r'if it is a hub\'s repository, set model.source = "huggingface"'):
            locate(read(tmp_path))


def test_a_repository_of_a_file_that_is_extended_stays_one(hub: str, tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "x.toml").rename(tmp_path / "common" / "base.toml")
    (tmp_path / "x.toml").write_text('extends = ["common/base.toml"]\nschema_version = 1\n')
    assert str(read(tmp_path).model.name_or_path) == "org/name"


def test_other_hubs_are_asked_through_their_own_libraries(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot_download(
        name: str,
        revision: str,
        allow_patterns: list[str] | None = None,
        local_files_only: bool = False,
        **arguments: Any,
    ) -> str:
        asked.append({"name": name, "revision": revision, "local": local_files_only, **arguments})
        folder = tmp_path / "there" / "snapshots" / (OLD if "om" in arguments else revision)
        if local_files_only and not folder.exists():
            raise ValueError("not in the cache")
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in FILES[OLD].items():
            (folder / file).write_bytes(content)
        return str(folder)

    library = SimpleNamespace(
        __name__="fake", snapshot_download=snapshot_download, OM_HUB_CACHE=str(tmp_path / "openmind")
    )
    monkeypatch.setitem(sys.modules, "modelscope", library)
    monkeypatch.setitem(sys.modules, "openmind_hub", library)
    ours = ('model.source="modelscope"', "model.source_args={}")
    with pytest.raises(MachineError, match="in the local cache of modelscope, revision master is not there"):
        with_model(read(tmp_path, *ours, "run.offline=true"))
    found = with_model(read(tmp_path, *ours))
    assert found.origins["model"]["revision"] == "master"  # ModelScope tells no commit
    assert with_model(read(tmp_path, *ours, "run.offline=true")).model.name_or_path == found.model.name_or_path
    assert [one["local"] for one in asked] == [True, False, True]
    asked.clear()
    found = with_model(read(tmp_path, 'model.source="openmind"', "model.source_args={ om = 1, token_env='OUR_TOKEN' }"))
    assert found.origins["model"] == {"source": "openmind", "repository": "org/name", "revision": OLD}
    assert asked == [{"name": "org/name", "revision": "main", "local": False, "om": 1, "token": "hf_secret"}]
    cached = tmp_path / "openmind" / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(OLD)
    (cached / "snapshots").mkdir()
    (cached / "snapshots" / OLD).symlink_to(tmp_path / "there" / "snapshots" / OLD)
    assert fetch(read(tmp_path, *ours))[0]["source"] == "modelscope"
    asked.clear()
    cached_only = ('model.source="openmind"', "model.source_args={}", "run.offline=true")
    assert with_model(read(tmp_path, *cached_only)).model.name_or_path == cached / "snapshots" / OLD
    assert not asked  # its library would look whether the repository exists
