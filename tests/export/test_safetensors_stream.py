"""Our safetensors files, read by the safetensors library."""

import json
import threading
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from export.cast import Bits, Dtype
from export.safetensors_stream import INDEX, InOrder, plan_shards, write_file, write_model
from export.weights import Weights
from pipelines.checkpoints import Checkpoint
from tests.export.tiny import LLAMA, random_tensors, write_checkpoint


def ignore(_count: int) -> None:
    pass


def test_the_library_reads_names_shapes_and_numbers(tmp_path: Path) -> None:
    first, second = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7.5, np.float32)
    blocks = [first.view(np.uint32)[:1], first.view(np.uint32)[1:], second.view(np.uint32)]
    write_file(tmp_path / "m", "float32", {"层.weight": (2, 3), "scalar": ()}, blocks, ignore)
    found = load_file(tmp_path / "m")
    np.testing.assert_array_equal(found["层.weight"], first)
    np.testing.assert_array_equal(found["scalar"], second)
    with safe_open(tmp_path / "m", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_numbers_start_at_a_multiple_of_eight(tmp_path: Path) -> None:
    for name in ("a", "ab", "abc", "abcd"):
        write_file(tmp_path / "m", "bfloat16", {name: (1,)}, [np.array([1], np.uint16)], ignore)
        assert int.from_bytes((tmp_path / "m").read_bytes()[:8], "little") % 8 == 0


def test_too_few_numbers_are_our_own_mistake(tmp_path: Path) -> None:
    def blocks() -> Iterator[Bits]:
        yield np.zeros(3, np.uint16)

    with pytest.raises(AssertionError, match="6 bytes of numbers, the header says 8"):
        write_file(tmp_path / "m", "float16", {"a": (4,)}, blocks(), ignore)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("limit", [1, 100_000, 10**9])
def test_a_model_in_any_number_of_files_is_the_same_model(tmp_path: Path, dtype: Dtype, limit: int) -> None:
    tensors = random_tensors(LLAMA)
    weights = Weights(Checkpoint(write_checkpoint(tmp_path / "step-00000001", LLAMA, tensors, ranks=2)), dtype)
    folder = tmp_path / "out"
    folder.mkdir()
    told: list[int] = []
    write_model(folder, weights, limit, told.append)
    found: dict[str, torch.Tensor] = {}
    where: dict[str, str] = {}
    files = sorted(folder.glob("*.safetensors"))
    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                found[name], where[name] = file.get_tensor(name), path.name
    for name, tensor in tensors.items():
        assert torch.equal(found.pop(name), torch.from_numpy(tensor).to(getattr(torch, dtype)))
    assert not found
    assert sum(told) == weights.nbytes
    if len(files) == 1:
        assert not (folder / INDEX).exists()
    else:
        index = json.loads((folder / INDEX).read_bytes())
        assert index["weight_map"] == where
        assert index["metadata"]["total_size"] == weights.nbytes


def test_a_file_takes_tensors_until_the_next_would_not_fit() -> None:
    assert plan_shards({"a": 4, "b": 6, "c": 1, "d": 20, "e": 10}, 10) == [["a", "b"], ["c"], ["d"], ["e"]]


def test_ranges_that_come_early_are_digested_in_order() -> None:
    parts = [np.arange(start, start + 100, dtype=np.uint16) for start in range(0, 500, 100)]
    digest = InOrder(sha256(b"head"), 4)
    for number in (1, 3, 0, 4, 2):
        digest.put(4 + 200 * number, parts[number])
    assert digest.hexdigest(1004) == sha256(b"head" + b"".join(part.tobytes() for part in parts)).hexdigest()
    with pytest.raises(AssertionError, match="1004 of 1204 bytes were digested"):
        digest.hexdigest(1204)


@pytest.mark.parametrize("comes", [True, False])
def test_no_thread_gets_far_ahead_of_the_first_range(comes: bool) -> None:
    part = np.zeros(100, np.uint16)
    digest, put = InOrder(sha256(), 0), threading.Semaphore(0)

    def run_ahead() -> None:
        for number in range(1, 20):
            digest.put(200 * number, part)
            put.release()

    ahead = threading.Thread(target=run_ahead, daemon=True)
    ahead.start()
    for _ in range(4):
        assert put.acquire(timeout=60)
    assert not put.acquire(timeout=0.3)
    if comes:
        digest.put(0, part)
    else:
        digest.give_up()
    ahead.join(60)
    assert not ahead.is_alive()
    if comes:
        assert digest.hexdigest(4000) == sha256(bytes(4000)).hexdigest()


def test_a_block_that_cannot_be_read_ends_all_threads(tmp_path: Path) -> None:
    ahead = threading.Semaphore(0)

    class Failing(Weights):
        def read(self, name: str, start: int, stop: int) -> Bits:
            if start == 0:
                for _ in range(6):
                    ahead.acquire()
                time.sleep(0.1)  # the others wait by then
                raise OSError("gone")
            ahead.release()
            return super().read(name, start, stop)

    tensors = random_tensors(LLAMA)
    weights = Failing(Checkpoint(write_checkpoint(tmp_path / "c", LLAMA, tensors)), "float32")
    with patch("export.blocks.BLOCK", 100), pytest.raises(OSError, match="gone"):
        write_model(tmp_path, weights, 10**9, ignore, threads=3)
