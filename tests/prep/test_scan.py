import os
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipelines.errors import ConfigError, DataError
from pipelines.schema import Source
from prep.scan import scan


def source(path: Path, **table: object) -> Source:
    tokenized = {"map": "none"} if table.get("format") == "ftdp" else {}
    return Source.model_validate({"name": "chat", "path": path, **tokenized, **table})


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("{}\n")
    return root


def found(path: Path, *, follow_symlinks: bool = False, **table: object) -> list[str]:
    listed = scan(source(path, **table), follow_symlinks=follow_symlinks)
    assert all(Path(where).is_file() for _, where in listed)
    return [name for name, _ in listed]


def refusal(path: Path, error: type[Exception] = DataError, *, follow_symlinks: bool = False, **table: object) -> str:
    with pytest.raises(error) as caught:
        scan(source(path, **table), follow_symlinks=follow_symlinks)
    return str(caught.value)


def test_files_are_sorted_by_code_point_whatever_order_they_were_made_in(tmp_path: Path) -> None:
    # As a locale would sort: en/alpha before en/Zeta, é beside e, a-b beside a/b.
    expected = ["Z.jsonl", "a-b/1.jsonl", "a.jsonl", "a/10.jsonl", "a/9.jsonl", "cn/数据.jsonl", "é.jsonl", "𝒂.jsonl"]
    assert expected == sorted(expected)
    for seed in range(3):
        root = tmp_path / str(seed)
        make(root, *random.Random(seed).sample(expected, len(expected)))
        assert found(root) == expected


def test_a_folder_gives_the_files_whose_ending_tells_their_format(tmp_path: Path) -> None:
    make(
        tmp_path,
        "a.jsonl",
        "b.bin",
        "b.bin.meta",
        "c.parquet",
        "d.jsonl.zst",
        "README.md",
        "e",
        "f.jsonl.bak",
        "g.bin.gz",
    )
    assert found(tmp_path) == ["a.jsonl", "b.bin", "c.parquet", "d.jsonl.zst"]
    assert found(tmp_path, format="ftdp") == ["b.bin"]
    assert found(tmp_path, format="jsonl") == ["a.jsonl", "d.jsonl.zst"]


def test_hidden_and_unfinished_files_are_never_input(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", ".b.jsonl", ".git/c.jsonl", "d.jsonl~", "e.jsonl.tmp", "f.jsonl.part", "g.tmp/h.jsonl")
    assert found(tmp_path) == ["a.jsonl"]
    assert found(tmp_path, files=["**/*"]) == ["a.jsonl"]


def test_a_source_may_be_one_file_of_any_name(tmp_path: Path) -> None:
    make(tmp_path, ".hidden", "other.jsonl")
    assert scan(source(tmp_path / ".hidden", format="jsonl"), follow_symlinks=False) == [
        (".hidden", f"{tmp_path}/.hidden")
    ]
    message = refusal(tmp_path / "other.jsonl", ConfigError, files=["*"])
    assert message.endswith(f"files chooses from a folder, but {tmp_path}/other.jsonl is a file; remove files")


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.bin"], ["a.bin"]),
        (["**/*.bin"], ["a.bin", "cn/b.bin", "cn/deep/c.bin", "日/数据1.bin"]),
        (["**/deep/*"], ["cn/deep/c.bin"]),
        (["cn/**/*.bin"], ["cn/b.bin", "cn/deep/c.bin"]),
        (["cn/*"], ["cn/b.bin", "cn/x[1].txt"]),
        (["?.bin", "cn/d*p/[a-c].bin"], ["a.bin", "cn/deep/c.bin"]),
        (["**/[!b].bin"], ["a.bin", "cn/deep/c.bin"]),
        (["**/x[[]1].txt"], ["cn/x[1].txt"]),
        (["**/数据?.bin"], ["日/数据1.bin"]),
        (["**/*"], ["a.bin", "cn/b.bin", "cn/deep/c.bin", "cn/x[1].txt", "日/数据1.bin"]),
    ],
)
def test_patterns_choose_files(tmp_path: Path, patterns: Sequence[str], expected: Sequence[str]) -> None:
    make(tmp_path, "a.bin", "cn/b.bin", "cn/deep/c.bin", "cn/x[1].txt", "日/数据1.bin")
    assert found(tmp_path, files=patterns) == expected


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.bin", "cn/b.bin")
    message = f"[[prep.source]] 'chat': no file below {tmp_path} matches 'cn/[!b]*.bin'"
    assert refusal(tmp_path, files=["cn/[!b]*.bin", "a.bin"]) == message


@pytest.mark.parametrize("pattern", ["", "/a.bin", "../a.bin", "a//b", "./a.bin", "cn/", "**", "cn/**"])
def test_what_is_no_pattern_below_the_folder_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ValidationError, match="expected a pattern below the source's directory"):
        source(tmp_path, files=[pattern])


def test_a_range_that_is_reversed_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.bin")
    message = "[[prep.source]] 'chat': files: '[z-a].bin' is not a pattern (bad character range z-a)"
    assert refusal(tmp_path, ConfigError, files=["[z-a].bin"]) == message


def test_a_folder_without_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = f"[[prep.source]] 'chat': no file below {tmp_path}/empty has an ending that tells its format; set files"
    assert refusal(tmp_path / "empty") == message
    assert refusal(tmp_path / "nothing").endswith("nothing: no such file or folder")
    assert refusal(tmp_path / "*.bin").endswith("put the pattern in files, and its folder in path")
    assert refusal(tmp_path / ("n" * 300)).endswith(": cannot be read (File name too long)")


def test_a_linked_file_is_read_and_a_linked_folder_only_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "elsewhere/a.jsonl", "data/b.jsonl")
    (tmp_path / "data/link.jsonl").symlink_to(tmp_path / "elsewhere/a.jsonl")
    (tmp_path / "data/linked").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "data") == ["b.jsonl", "link.jsonl"]
    assert f"1 linked folders are left out, the first is {tmp_path}/data/linked" in caplog.text
    assert found(tmp_path / "data", follow_symlinks=True) == ["b.jsonl", "link.jsonl", "linked/a.jsonl"]


def test_the_source_itself_may_be_a_linked_folder(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/a.jsonl")
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path / "data") == ["a.jsonl"]


def test_a_folder_linked_twice_is_read_twice(tmp_path: Path) -> None:
    make(tmp_path, "data/one/a.jsonl")
    (tmp_path / "data/two").symlink_to("one")
    assert found(tmp_path / "data", follow_symlinks=True) == ["one/a.jsonl", "two/a.jsonl"]


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_link_back_to_a_folder_around_it_is_refused_not_walked(tmp_path: Path, target: str) -> None:
    make(tmp_path, "data/deep/a.jsonl")
    (tmp_path / "data/deep/loop").symlink_to(target)
    assert found(tmp_path / "data") == ["deep/a.jsonl"]
    message = refusal(tmp_path, follow_symlinks=True)
    assert message == f"{tmp_path}/data/deep/loop: a link to a folder that it lies in; remove it"


def test_a_link_that_leads_nowhere_is_named_where_it_would_be_input(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    (tmp_path / "notes").symlink_to("gone")
    (tmp_path / "self").symlink_to("self")
    assert found(tmp_path) == ["a.jsonl"]
    for name, target in (("b.jsonl", "gone"), ("c.jsonl", "c.jsonl")):
        (tmp_path / name).symlink_to(target)
        assert refusal(tmp_path).startswith(f"{tmp_path}/{name}: a link that leads nowhere;")
        (tmp_path / name).unlink()


def test_what_is_no_regular_file_is_named_where_it_would_be_input(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl")
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path) == ["a.jsonl"]
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert refusal(tmp_path).startswith(f"{tmp_path}/pipe.jsonl: a device, a pipe or a socket, which is no data;")


def test_names_are_compared_in_nfc(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9.jsonl", unicodedata.normalize("NFD", "caf\u00e9.jsonl")
    make(tmp_path, decomposed)
    assert found(tmp_path) == [composed]
    assert found(tmp_path, files=[decomposed]) == found(tmp_path, files=[composed]) == [composed]
    make(tmp_path, composed)
    assert "in Unicode normalization alone; rename one of them" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        (b"a\nb.jsonl", r"has the control character '\\n'"),
        (b"a\rb.jsonl", r"has the control character '\\r'"),
        (b"a\\b.jsonl", "has a backslash"),
        (b"a\xffb.jsonl", "is not UTF-8"),
    ],
)
def test_a_name_that_no_line_can_hold_is_refused(tmp_path: Path, name: bytes, finding: str) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("{}\n")
    with pytest.raises(DataError, match=f"its name {finding}, so data_order.txt cannot list it; rename it") as caught:
        scan(source(tmp_path), follow_symlinks=False)
    assert str(caught.value).isprintable()


def test_names_with_spaces_and_quotes_are_fine(tmp_path: Path) -> None:
    make(tmp_path, "a b.jsonl", 'it\'s "x".jsonl', " lead.jsonl", "#1.jsonl")
    assert found(tmp_path) == [" lead.jsonl", "#1.jsonl", "a b.jsonl", 'it\'s "x".jsonl']


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "closed/b.jsonl")
    (tmp_path / "closed").chmod(0)
    try:
        assert refusal(tmp_path) == f"{tmp_path}/closed: cannot be read (Permission denied)"
    finally:
        (tmp_path / "closed").chmod(0o755)
