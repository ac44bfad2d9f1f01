"""Blocks in threads: the same bytes at any number of them, little memory, and one failure for all."""

import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from export.blocks import THREADS, each
from export.cast import Dtype
from export.safetensors_stream import write_model
from export.source import open_source
from export.sources.foreign import Foreign
from export.verify import compare_safetensors
from export.weights import BLOCK, Weights
from pipelines.artifacts import digest_file
from pipelines.errors import CheckError
from tests.export.sources.test_foreign import complete
from tests.export.sources.zero import write_zero
from tests.export.tiny import LLAMA, random_tensors

WIDE = LLAMA | {"vocab_size": 20_000, "num_hidden_layers": 1}
"""Two matrices of 10 MB, which are several blocks each."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    folder = tmp_path_factory.mktemp("zero")
    tensors = random_tensors(WIDE)
    tensors["lm_head.weight"][::50] = 1e-30
    write_zero(folder, tensors, stage=3, ranks=3)
    found = open_source(complete(folder, WIDE))
    assert isinstance(found, Foreign)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_any_number_of_threads_writes_the_same_bytes(tmp_path: Path, source: Foreign, dtype: Dtype) -> None:
    files = []
    for threads in (1, 2, 5):
        folder = tmp_path / str(threads)
        folder.mkdir()
        weights = Weights(source, dtype)
        digests = write_model(folder, weights, 6_000_000, lambda _: None, threads=threads)
        files.append({path.name: path.read_bytes() for path in sorted(folder.iterdir())})
        assert digests == {path.name: digest_file(path) for path in folder.glob("*.safetensors")}
        assert compare_safetensors(weights, folder, digests, threads=threads) == len(weights.shapes)
    assert len(files[0]) > 2
    assert files[0] == files[1] == files[2]


def test_what_was_lost_is_counted_by_all_threads(tmp_path: Path, source: Foreign) -> None:
    found = []
    for threads in (1, 5):
        weights = Weights(source, "float16")
        write_model(tmp_path, weights, 10**9, lambda _: None, threads=threads)
        found.append(weights.vanished)
    assert found[0] == found[1] >= 400 * 128


def test_memory_is_that_of_a_few_blocks(tmp_path: Path, source: Foreign) -> None:
    weights = Weights(source, "bfloat16")
    tracemalloc.start()
    digests = write_model(tmp_path, weights, 10**9, lambda _: None)
    compare_safetensors(weights, tmp_path, digests)
    compare_safetensors(weights, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < THREADS * 3 * 4 * BLOCK  # numbers, bits, and what is compared with them


def test_a_changed_byte_is_found_in_its_block(tmp_path: Path, source: Foreign) -> None:
    weights = Weights(source, "bfloat16")
    digests = write_model(tmp_path, weights, 10**9, lambda _: None)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    for known in (digests, None):
        with pytest.raises(CheckError, match=r"lm_head\.weight differs from the checkpoint in 1 of"):
            compare_safetensors(weights, tmp_path, known)
    other = {"model.safetensors": "0" * 64}
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckError, match=r"model\.safetensors: what is in it was computed otherwise before"):
        compare_safetensors(weights, tmp_path, other)


def test_the_first_failure_ends_the_work() -> None:
    done: list[int] = []
    lock = threading.Lock()

    def work(item: int) -> None:
        if item == 3:
            raise ValueError("three")
        with lock:
            done.append(item)

    with pytest.raises(ValueError, match="three"):
        each(work, range(2_000), 2)
    assert len(done) < 2_000
    assert np.unique(done).size == len(done)
