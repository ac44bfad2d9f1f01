"""Whatever is wrong with the data, the command ends with one clear line, an exit code and bounded memory."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner

from pipelines.artifacts import Manifest
from pipelines.cli import main
from tests.prep.small import LINE, TOKENIZER, conversations

DATA, CHECK, CONFIG = 3, 4, 2
GIB = 1 << 30


def write(folder: Path, content: bytes, name: str = "a.jsonl") -> Path:
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / name).write_bytes(content)
    return folder


def pipeline(folder: Path, prep: str = "", source: str = "", order: str = 'mode = "scan"') -> Path:
    file = folder / "run.toml"
    file.write_text(
        f'schema_version = 1\n[run]\nname = "r"\n[model.scratch]\nmodel_type = "llama"\n'
        f'[tokenizer]\nname_or_path = "{TOKENIZER}"\n[prep]\n{prep}\n'
        f'[[prep.source]]\nname = "a"\npath = "data"\n{source}\n[prep.pack]\ncapacity = 256\n[prep.order]\n{order}\n'
    )
    return file


def refusal(file: Path, code: int = DATA, *command: str) -> str:
    """What the command says, which ends with this code."""
    result = CliRunner().invoke(main, [*(command or ("prep", "--workers", "1")), str(file)])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr.replace(f"{file.parent}/", "")


def samples(file: Path) -> int:
    """How many samples the command finds, which succeeds."""
    result = CliRunner().invoke(main, ["prep", "--workers", "1", str(file)])
    assert result.exit_code == 0, result.output
    done = Manifest.read(file.parent / "work" / "r" / "prep")
    assert done is not None
    return int(done.facts["samples"])


RECORDS = [
    (b'{"messages": "\xe4"}', "a.jsonl:3:15: not valid UTF-8; convert the file"),
    (b'{"a": NaN}', "a.jsonl:3:7: not valid JSON"),
    (b'{"a": -Infinity}', "a.jsonl:3:8: not valid JSON"),
    (b'{"a": 1, "b": {"c": 1, "c": 2}}', 'a.jsonl:3:24: the key "c" stands twice in one object, at byte 16'),
    (b"[" * 3000 + b"]" * 3000, "a.jsonl:3: nested deeper than 100 objects and arrays"),
    (b'{"a":' * 3000 + b"1" + b"}" * 3000, "a.jsonl:3: nested deeper than 100 objects and arrays"),
    (b'"' + b"x" * 20000 + b'"', "a.jsonl:3: longer than prep.max_record_bytes = 20000; raise it if this is meant"),
    (b"\x00", "a.jsonl:3:1: not valid JSON"),
]


@pytest.mark.parametrize(("line", "message"), RECORDS)
def test_a_faulty_record_is_named_by_file_line_and_byte(tmp_path: Path, line: bytes, message: str) -> None:
    write(tmp_path, conversations(2).encode() + line + b"\n" + conversations(2).encode())
    assert refusal(pipeline(tmp_path, "max_record_bytes = 20000")).startswith(f"data/{message}")


def test_faulty_records_are_skipped_when_asked_and_listed(tmp_path: Path) -> None:
    write(tmp_path, conversations(2).encode() + b"".join(line + b"\n" for line, _ in RECORDS))
    file = pipeline(tmp_path, 'max_record_bytes = 20000\non_bad_record = "skip"\nmax_bad_fraction = 0.9')
    assert samples(file) == 2
    rejects = (tmp_path / "work" / "r" / "prep" / "rejects.jsonl").read_text().splitlines()
    assert [json.loads(reject)["record"] for reject in rejects] == list(range(2, 2 + len(RECORDS)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"a": 1, "a": 2}]', 'a.json:1:10: the key "a" stands twice'),
        ("a.csv", b"instruction,output\n1,2,3\n", "a.csv:1: line 2: 3 cells, the header names 2 columns"),
        ("a.txt", b"\xff\n", "a.txt:1:1: not valid UTF-8"),
        ("a.jsonl.gz", b"\x1f\x8bnothing", "a.jsonl.gz: damaged or truncated"),
        ("a.jsonl.zst", b"nothing", "a.jsonl.zst: damaged or truncated"),
        ("a.parquet", b"PAR1nothing", "a.parquet: not a Parquet or Arrow file"),
        ("a.arrow", b"nothing", "a.arrow: not a Parquet or Arrow file"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    write(tmp_path, content, name)
    assert refusal(pipeline(tmp_path)).startswith(f"data/{message}")


def test_a_column_of_a_type_that_json_has_not_is_named(tmp_path: Path) -> None:
    write(tmp_path, b"")
    (tmp_path / "data" / "a.jsonl").unlink()
    table = pa.table({"text": pa.array([1], pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "data" / "a.parquet")
    said = refusal(pipeline(tmp_path, source='map = "pretrain"\ntemplate = "none"'))
    assert said.startswith("data/a.parquet:1: text: expected a string, found a column of type timestamp[us]")


@pytest.mark.parametrize(
    ("content", "prep", "message"),
    [
        (b"", "", "no sample to train on in 1 input files; they are empty"),
        (b"\n \n\r\n", "", "no sample to train on in 1 input files; they are empty"),
        (conversations(3).encode(), "min_length = 200", "every record was dropped: 3 shorter than prep.min_length"),
        (LINE.format("long " * 300).encode(), 'overlength = "drop"', "every record was dropped: 1 overlong, dropped"),
    ],
)
def test_nothing_to_train_on_is_an_error_that_says_why(tmp_path: Path, content: bytes, prep: str, message: str) -> None:
    write(tmp_path, content)
    assert message in refusal(pipeline(tmp_path, prep))


def test_an_empty_folder_and_a_missing_one_are_named(tmp_path: Path) -> None:
    assert "no such file or folder" in refusal(pipeline(tmp_path))
    (tmp_path / "data").mkdir()
    assert "no file below data has an ending that tells its format" in refusal(pipeline(tmp_path))


def ftdp(folder: Path, line: bytes, meta: Any) -> Path:
    write(folder, line, "a.bin")
    with (folder / "data" / "a.bin.meta").open("wb") as file:
        np.save(file, np.array(meta))
    return pipeline(folder, source='map = "none"')


@pytest.mark.parametrize(
    ("line", "meta", "message"),
    [
        (b'{"tokens": [1, 2]}\n', [[0, 3]], "a.bin:1:1: 2 tokens, the meta file says 3"),
        (b'{"tokens": [1, 2]}\n', [[7, 2]], "a.bin.meta: puts the first line at byte 7"),
        (b'{"tokens": [1, 2]}\n', [[0, 2], [-5, 2]], "a.bin.meta: row 1 is (offset -5"),
        (b'{"tokens": [1, 2]}\n', [[0, 2], [1 << 40, 2]], "a.bin.meta: row 1 is (offset 1099511627776"),
        (b'{"tokens": [1, 99999]}\n', [[0, 2]], "a.bin:1:16: a token id above"),
        (b'{"tokens": [1, -99999]}\n', [[0, 2]], "a.bin:1:17: a token id above"),
        (b'{"tokens": [1, 36893488147419103233]}\n', [[0, 2]], "a.bin:1:16: a token id above"),
        (b'{"tokens": [1, --2]}\n', [[0, 2]], "a.bin:1:17: expected"),
    ],
)
def test_a_token_file_that_does_not_fit_its_meta_or_the_vocabulary_is_named(
    tmp_path: Path, line: bytes, meta: Any, message: str
) -> None:
    assert refusal(ftdp(tmp_path, line, meta)).startswith(f"data/{message}")


def test_a_meta_file_that_was_repaired_is_read_anew(tmp_path: Path) -> None:
    lines = b'{"tokens": [1, 2]}\n{"tokens": [3, 4]}\n'
    assert "expected" in refusal(ftdp(tmp_path, lines, [[0, 2]]))  # half of the rows: the first line does not end
    repaired = CliRunner().invoke(main, ["prep", "--workers", "1", str(ftdp(tmp_path, lines, [[0, 2], [19, 2]]))])
    assert "2 samples" in repaired.output


@pytest.mark.parametrize(
    ("lines", "finding"),
    [
        (b"../a.jsonl\n", "'..' part"),
        (b"/data/a.jsonl\n", "is absolute"),
        (b"a.jsonl\na.jsonl\n", "stands in line 1 already"),
        (b"a.jsonl\r\n", "ends with CR LF"),
    ],
)
@pytest.mark.parametrize("command", [(), ("order", "check"), ("order", "check", "--quick")])
def test_a_faulty_line_of_the_order_is_refused_by_every_command(
    tmp_path: Path, lines: bytes, finding: str, command: tuple[str, ...]
) -> None:
    write(tmp_path, conversations(3).encode())
    (tmp_path / "data_order.txt").write_bytes(lines)
    said = refusal(pipeline(tmp_path, order=""), DATA, *command)
    assert said.startswith("data_order.txt:")
    assert finding in said


def test_a_loop_of_links_is_refused_not_walked(tmp_path: Path) -> None:
    write(tmp_path, conversations(3).encode())
    (tmp_path / "data" / "loop").symlink_to(".")
    file = pipeline(tmp_path, order="follow_symlinks = true")
    assert "data/loop: a link to a folder that it lies in; remove it" in refusal(file, DATA, "order", "write")


BOUNDED = """
import resource, sys
from pipelines.cli import main
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[1]), int(sys.argv[1])))
main(sys.argv[2:])
"""


def refusal_within(file: Path, limit: int) -> str:
    """What prep says with no more than `limit` bytes of memory of its own."""
    command = [sys.executable, "-c", BOUNDED, str(limit), "prep", "--workers", "1", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == DATA, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.replace(f"{file.parent}/", "")


def huge(folder: Path, name: str) -> Path:
    """A file of one line of 1 GiB, or of 1 GiB in one cell; small on disk."""
    path = write(folder, b"", name) / "data" / name
    block = b"0" * (16 << 20)
    if name.endswith(".gz"):
        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(GIB // len(block)):
                file.write(block)
    elif name.endswith(".zst"):
        with path.open("wb") as raw, zstandard.ZstdCompressor(level=1).stream_writer(raw) as writer:
            for _ in range(GIB // len(block)):
                writer.write(block)
    elif name.endswith(".parquet"):
        table = pa.table({"text": ["0" * GIB]})
        pq.write_table(table, path, compression="zstd", use_dictionary=False, write_statistics=False)
    else:
        begin = b'a,b\n"' if name.endswith(".csv") else b'[{"a":"' if name.endswith(".json") else b""
        with path.open("wb") as file:
            file.write(begin)
            file.truncate(GIB)
    return pipeline(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("a.jsonl", "a.jsonl:1: longer than prep.max_record_bytes"),
        ("a.jsonl.gz", "a.jsonl.gz:1: longer than prep.max_record_bytes"),
        ("a.jsonl.zst", "a.jsonl.zst:1: longer than prep.max_record_bytes"),
        ("a.txt", "a.txt:1: longer than prep.max_record_bytes"),
        ("a.csv", "a.csv:1: longer than prep.max_record_bytes"),
        ("a.json", "not valid JSON: the array is not closed"),
        ("a.parquet", "a.parquet: column 'text' of row group 0"),
    ],
)
def test_a_line_of_a_gibibyte_and_a_compression_bomb_take_no_memory(tmp_path: Path, name: str, finding: str) -> None:
    assert finding in refusal_within(huge(tmp_path, name), GIB // 2)


@pytest.mark.slow
def test_many_tiny_lines_are_just_data(tmp_path: Path) -> None:
    with gzip.open(write(tmp_path, b"") / "data" / "b.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b"\n" * 3_000_000 + conversations(2).encode())
    assert samples(pipeline(tmp_path)) == 2
