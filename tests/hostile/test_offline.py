"""run.offline = true opens no connection, and a pipeline of local paths none without it: by its system calls."""

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.process import PACKTRAIN, ended
from tests.prep.small import TOKENIZER, conversations

TOML = """
schema_version = 1
[run]
name = "r"
offline = {offline}
[model.scratch]
model_type = "llama"
vocab_size = 4096
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 256
tie_word_embeddings = true
[tokenizer]
name_or_path = "{tokenizer}"
[[prep.source]]
name = "a"
path = "data"
[prep.pack]
capacity = 128
[prep.order]
mode = "write"
[train]
global_batch_size = 2
max_steps = 2
precision = "fp32"
[train.optimizer]
lr = 0.001
[train.eval]
steps = 1
prompts = ["Hello!"]
max_new_tokens = 4
[export]
targets = ["hf"]
"""
COMMANDS = [
    ("check", "run.toml"),
    ("prep", "run.toml"),
    ("train", "run.toml"),
    ("export", "run.toml"),
    ("chat", "work/r/export/hf", "--prompt", "Hello!", "--max-new-tokens", "2"),
    ("train", "run.toml", "--no-resume"),
]
LOCAL = [("check", "run.toml"), ("prep", "run.toml"), ("train", "run.toml")]
TWO_RANKS = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc-per-node=2", "--no-python"]
"""For what begins over. They meet on this machine's own addresses."""
_ADDRESS = re.compile(r'sin6?_port=htons\((?P<port>\d+)\).*?(?:inet_addr\("|inet_pton\(AF_INET6, ")(?P<host>[^"]+)"')


def asked(folder: Path, *, ranks: int = 1) -> Iterator[str]:
    """System calls in the logs of strace that reach another machine, or would, or ask for a name.

    Of several ranks those that ask for a name are left out: PyTorch's store asks for that of its own address.
    """
    lines = [line for log in folder.glob("calls*") for line in log.read_text(errors="replace").splitlines()]
    for line in lines:
        if "sa_family=AF_INET" in line:
            found = _ADDRESS.search(line)
            assert found is not None, line
            own = found["host"].startswith("127.") or found["host"] in ("::1", "0.0.0.0", "::", "::ffff:127.0.0.1")
            if found["port"] == "53" and ranks > 1:
                continue
            if not own or found["port"] == "53":
                yield line


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which tells the system calls")
@pytest.mark.parametrize("offline", ["true", "false"])
def test_no_command_connects_to_another_machine(tmp_path: Path, offline: str) -> None:
    (tmp_path / "run.toml").write_text(TOML.format(offline=offline, tokenizer=TOKENIZER.absolute()))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.jsonl").write_text(conversations(60))
    strace = ["strace", "-ff", "-qq", "-o", str(tmp_path / "calls"), "-e", "trace=connect,sendto,sendmsg,sendmmsg"]
    for words in COMMANDS if offline == "true" else LOCAL:
        launcher = TWO_RANKS if words[-1] == "--no-resume" else []
        done = ended([*launcher, *strace, PACKTRAIN, *words], cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
        assert done.code == 0, f"{words}: {done.err}"
        assert [*asked(tmp_path, ranks=2 if launcher else 1)] == [], words


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which tells the system calls")
def test_a_connection_would_be_seen(tmp_path: Path) -> None:
    script = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).connect((sys.argv[1], 80))"
    for host in ("127.0.0.1", "192.0.2.1"):
        log = str(tmp_path / f"calls-{host}")
        ended(["strace", "-ff", "-qq", "-o", log, "-e", "trace=connect", sys.executable, "-c", script, host])
    assert len([*asked(tmp_path)]) == 1
