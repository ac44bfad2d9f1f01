"""The packs of an XTuner or InternEvo run, from the folder and the order file that it had.

What those two do is written down in tests/elsewhere.py; the stage as a whole has to give the same.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.config import load
from pipelines.errors import ConfigError, DataError
from pipelines.shards import Pack, ShardReader
from prep.run import run
from tests.elsewhere import Expected, Files, documents_of_internevo, labels_of, packs_of_xtuner, write_ftdp
from tests.prep.small import TOKENIZER


def write_run(folder: Path, files: Files, *, seed: int = 1024, capacity: int = 64, on_empty: str = "keep",
              min_length: int = 0, pack: str = "", prep: str = "") -> Path:  # fmt: skip
    """The data, their order as given and the TOML that asks for XTuner's packs."""
    for name, records in files.items():
        write_ftdp(folder / "data" / name, records)
    (folder / "data_order.txt").write_text("".join(f"{name}\n" for name in files), encoding="utf-8")
    toml = folder / "run.toml"
    toml.write_text(
        f'schema_version = 1\n[run]\nname = "r"\nseed = {seed}\n[model.scratch]\nmodel_type = "llama"\n'
        f'[tokenizer]\nname_or_path = "{TOKENIZER}"\n[template.loss]\non_empty = "{on_empty}"\n'
        f"[prep]\nmin_length = {min_length}\n{prep}\n"
        '[prep.order]\nshuffle = "xtuner"\n'
        f'[prep.pack]\ncapacity = {capacity}\nstrategy = "concat_split"\nscope = "file"\ndrop_last = true\n{pack}\n'
        '[[prep.source]]\nname = "all"\npath = "data"\nfiles = ["**/*.bin"]\nmap = "none"\n',
        encoding="utf-8",
    )
    return toml


def packs_in(toml: Path, **how: Any) -> list[Pack]:
    run(load(toml), **{"workers": 1, **how})
    return list(ShardReader(load(toml).home / "prep"))


def assert_same(found: Sequence[Pack], expected: Sequence[Expected]) -> None:
    assert len(found) == len(expected)
    for pack, other in zip(found, expected, strict=True):
        assert pack.tokens.tolist() == [abs(id_) for id_ in other.ids]
        assert pack.cu_seqlens.tolist() == sorted(set(other.ends))
        assert pack.labels.tolist() == labels_of(other)


some_records = st.lists(
    st.one_of(
        st.just([]),
        st.lists(st.integers(-500, 500), max_size=30),
        st.lists(st.integers(-500, 0), min_size=1, max_size=30),  # nothing to train
        st.lists(st.integers(1, 500), min_size=20, max_size=60),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(
    files=st.lists(some_records, min_size=1, max_size=3),
    seed=st.sampled_from([0, 1, 1024, 2**32 - 1]),
    capacity=st.integers(1, 40),
    min_length=st.sampled_from([0, 0, 1, 5, 20]),
)
def test_any_folder_gives_xtuners_packs(
    tmp_path_factory: Any, files: list[list[list[int]]], seed: int, capacity: int, min_length: int
) -> None:
    named = {f"part-{number}.bin": records for number, records in enumerate(files)}
    expected = packs_of_xtuner(named, seed=seed, packed_length=capacity, min_length=min_length)
    toml = write_run(
        tmp_path_factory.mktemp("run"), named, seed=seed, capacity=capacity, min_length=min(min_length, 2**31 - 1)
    )
    if expected:
        assert_same(packs_in(toml), expected)
    else:
        with pytest.raises(DataError, match=r"no sample to train on|no full pack"):
            packs_in(toml)


def test_an_xtuner_run_is_reproduced_token_for_token(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    files: dict[str, list[list[int]]] = {}
    # In the order of the file system, as its tool lists them: folders come as they come.
    for name, count in (("en/beta.bin", 40), ("en/alpha.bin", 25), ("cn/数据.bin", 33), ("cn/tiny.bin", 1)):
        files[name] = [
            (random.integers(1, 500, length) * random.choice([-1, 1], length)).tolist()
            for length in random.integers(0, 150, count)
        ]
        files[name][0] = [-id_ for id_ in range(1, 30)]  # no loss at all
    expected = packs_of_xtuner(files, seed=1024, packed_length=64)
    assert len(expected) > 50
    assert_same(packs_in(write_run(tmp_path, files), workers=2), expected)


def test_a_sample_of_an_xtuner_run_that_has_no_tokens_takes_its_turn(tmp_path: Path) -> None:
    # Of 3 records seed 1024 puts the second first, the third next: worked by hand, so that both sides can be wrong.
    order = np.arange(3)
    np.random.RandomState(1024).shuffle(order)
    records = [[1, 2], [], [3, 4]]
    stream = [id_ for record in order for id_ in records[record]]
    (pack,) = packs_in(write_run(tmp_path, {"a.bin": records}, capacity=4))
    assert pack.tokens.tolist() == stream


def test_xtuners_order_with_records_left_out_for_want_of_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'template\.loss\.on_empty = "drop".*"keep"'):
        load(write_run(tmp_path, {"a.bin": [[1, 2]]}, on_empty="drop"))


def test_a_stream_shorter_than_a_pack_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no full pack"):
        packs_in(write_run(tmp_path, {"a.bin": [[1, 2], [3]]}))


@pytest.mark.parametrize("into_one", [False, True])
@pytest.mark.parametrize("micro_bsz", [1, 4])
def test_an_internevo_run_is_reproduced(tmp_path: Path, into_one: bool, micro_bsz: int) -> None:
    random = np.random.default_rng(6)
    files = {
        name: [
            (random.integers(1, 500, length) * random.choice([-1, 1], length)).tolist()
            for length in random.integers(0, 150, count)
        ]
        for name, count in (("cn/a.bin", 40), ("en/a.bin", 25))
    }
    seq_len = 16
    keys = f"cross_sample_attention = {str(into_one).lower()}\n"
    keys += f"attention_window = {seq_len}\n" if micro_bsz > 1 else ""
    toml = write_run(tmp_path, files, capacity=micro_bsz * seq_len, min_length=50, pack=keys)
    found = packs_in(toml)
    expected = packs_of_xtuner(files, seed=1024, packed_length=micro_bsz * seq_len, min_length=50)
    assert len(found) == len(expected) > 20
    for pack, other in zip(found, expected, strict=True):
        assert pack.tokens.tolist() == [abs(id_) for id_ in other.ids]
        documents = documents_of_internevo(other, into_one=into_one, seq_len=seq_len)
        assert pack.cu_seqlens.tolist() == documents
        assert pack.positions.tolist() == [p for begin, end in pairwise(documents) for p in range(end - begin)]
        # It shifts within each fragment, so where samples meet nothing is trained in either form.
        assert pack.labels.tolist() == labels_of(other)
        assert pack.segments.tolist() == other.ends
    facts = ShardReader(load(toml).home / "prep").manifest.facts
    assert facts["longest_segment"] == max(np.diff(pack.cu_seqlens).max() for pack in found)
