"""The packs of an XTuner run, from the folder and the order file that it had."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipelines.config import load
from pipelines.shards import ShardReader
from prep.run import run

TOKENIZER = Path(__file__).parents[2] / "pipelines" / "quickstart" / "tokenizer"
PACKED_LENGTH = 64
SEED = 1024

Record = Sequence[int]
"""Token ids, negated where no loss is taken."""


def write_ftdp(path: Path, records: Sequence[Record]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with path.open("wb") as file:
        for record in records:
            rows.append((file.tell(), len(record)))
            file.write(json.dumps({"tokens": list(record)}).encode() + b"\n")
    with path.with_name(f"{path.name}.meta").open("wb") as file:
        np.save(file, np.array(rows, np.int64))


def packs_of_xtuner(files: Mapping[str, Sequence[Record]]) -> list[tuple[list[int], list[int]]]:
    """Its rules, written down: every pack's signed ids and where its pieces begin and end."""
    packs = []
    for records in files.values():
        order = list(range(len(records)))
        np.random.RandomState(SEED).shuffle(order)
        stream = [token for index in order for token in records[index]]
        ends = np.cumsum([len(records[index]) for index in order]).tolist()
        for begin in range(0, len(stream) - PACKED_LENGTH + 1, PACKED_LENGTH):
            inside = [end - begin for end in ends if begin < end < begin + PACKED_LENGTH]
            packs.append((stream[begin : begin + PACKED_LENGTH], [0, *inside, PACKED_LENGTH]))
    return packs


def test_an_xtuner_run_is_reproduced_token_for_token(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    files: dict[str, list[list[int]]] = {}
    # In the order of the file system, as its tool lists them: folders come as they come.
    for name, count in (("en/beta.bin", 40), ("en/alpha.bin", 25), ("cn/数据.bin", 33), ("cn/tiny.bin", 1)):
        files[name] = [
            (random.integers(1, 500, length) * random.choice([-1, 1], length)).tolist()
            for length in random.integers(8, 150, count)
        ]
        files[name] = [[*record[:-1], abs(record[-1])] for record in files[name]]  # some loss in each
        write_ftdp(tmp_path / "data" / name, files[name])
    (tmp_path / "data_order.txt").write_text("".join(f"{name}\n" for name in files), encoding="utf-8")
    (tmp_path / "run.toml").write_text(
        f'schema_version = 1\n[run]\nname = "r"\nseed = {SEED}\n[model.scratch]\nmodel_type = "llama"\n'
        f'[tokenizer]\nname_or_path = "{TOKENIZER}"\n[prep]\nmax_length = 1000\n'
        '[prep.order]\nshuffle = "xtuner"\n'
        f'[prep.pack]\ncapacity = {PACKED_LENGTH}\nstrategy = "concat_split"\nscope = "file"\ndrop_last = true\n'
        '[[prep.source]]\nname = "all"\npath = "data"\nfiles = ["**/*.bin"]\nmap = "none"\n',
        encoding="utf-8",
    )
    run(load(tmp_path / "run.toml"), workers=1)

    expected = packs_of_xtuner(files)
    found = list(ShardReader(tmp_path / "work" / "r" / "prep"))
    assert len(found) == len(expected) > 50
    for pack, (ids, bounds) in zip(found, expected, strict=True):
        assert pack.tokens.tolist() == [abs(id_) for id_ in ids]
        assert pack.cu_seqlens.tolist() == bounds
        begins = set(bounds[:-1])  # a piece's first token is no target: nothing before it predicts it
        assert pack.loss.tolist() == [id_ > 0 and place not in begins for place, id_ in enumerate(ids)]
