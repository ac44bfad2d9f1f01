import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import ConfigError, DataError, MachineError
from pipelines.schema import Pipeline
from prep.order import inputs_in_order, write_order
from tests.prep.test_scan import make


def pipeline(root: Path, *sources: dict[str, Any], **order: Any) -> Pipeline:
    """A pipeline in `root` whose sources, unless told otherwise, are the folders of their names."""
    tables = [{"name": "chat"}] if not sources else list(sources)
    return Pipeline.model_validate(
        {
            "schema_version": 1,
            "run": {"name": "r", "work_dir": str(root / "work")},
            "model": {"scratch": {"model_type": "llama"}},
            "tokenizer": {"name_or_path": "tok"},
            "prep": {
                "source": [{"path": str(root / one["name"]), **one} for one in tables],
                "pack": {"capacity": 8},
                "order": {"file": str(root / "data_order.txt"), **order},
            },
        }
    )


def write(root: Path, content: str | bytes) -> None:
    (root / "data_order.txt").write_bytes(content.encode() if isinstance(content, str) else content)


def paths(one: Pipeline) -> list[str]:
    return [found.path for found in inputs_in_order(one)]


def refusal(one: Pipeline) -> list[str]:
    """The lines of the refusal, without the folder."""
    with pytest.raises(DataError) as caught:
        inputs_in_order(one)
    folder = one.prep.order.file.parent
    return [line.removeprefix(f"{folder}/") for line in str(caught.value).splitlines()]


def test_the_file_lists_one_source_without_and_several_with_their_names(tmp_path: Path) -> None:
    make(tmp_path, "chat/b.jsonl", "chat/a/c.jsonl", "code.bin", "code.bin.meta")
    assert write_order(pipeline(tmp_path)) == 2
    assert (tmp_path / "data_order.txt").read_bytes() == b"a/c.jsonl\nb.jsonl\n"
    code = {"name": "code", "path": str(tmp_path / "code.bin")}
    assert write_order(pipeline(tmp_path, code)) == 1
    assert (tmp_path / "data_order.txt").read_bytes() == b"code.bin\n"
    assert write_order(pipeline(tmp_path, code, {"name": "chat"})) == 3
    assert (tmp_path / "data_order.txt").read_bytes() == b"chat/a/c.jsonl\nchat/b.jsonl\ncode/code.bin\n"


def test_inputs_come_source_by_source_and_tell_all_that_reading_needs(tmp_path: Path) -> None:
    make(tmp_path, "chat/b.jsonl", "chat/a.json", "code.bin")
    both = pipeline(tmp_path, {"name": "code", "path": str(tmp_path / "code.bin"), "map": "none"}, {"name": "chat"})
    write_order(both)
    found = [(one.source, one.name, one.path, one.where, one.format, one.map) for one in inputs_in_order(both)]
    assert found == [
        (0, "code", "code.bin", tmp_path / "code.bin", "ftdp", "none"),
        (1, "chat", "a.json", tmp_path / "chat/a.json", "json", "openai"),
        (1, "chat", "b.jsonl", tmp_path / "chat/b.jsonl", "jsonl", "openai"),
    ]


def test_a_file_in_any_order_is_honoured_line_by_line(tmp_path: Path) -> None:
    # As XTuner's tool writes it: folders as the file system has them, files sorted inside each.
    lines = ["en/alpha/1.bin", "en/alpha/2.bin", "en/Zeta/1.bin", "cn/1.bin", "0.bin"]
    make(tmp_path / "chat", *lines)
    write(tmp_path, "".join(f"{line}\n" for line in lines))
    assert paths(pipeline(tmp_path)) == lines
    assert paths(pipeline(tmp_path, mode="write")) == lines
    assert paths(pipeline(tmp_path, mode="scan")) == sorted(lines)


def written_by_xtuner(folder: str) -> list[str]:
    """What XTuner's tool lists: every folder's files sorted, the folders as a file system may give them."""
    lines = []
    pending = [Path(folder)]
    while pending:
        inside = sorted(pending.pop().iterdir(), key=lambda path: path.name[::-1])  # any order but the sorted one
        pending += [path for path in inside if path.is_dir()]
        below = sorted(str(path) for path in inside if path.suffix == ".bin")
        lines += [path[len(folder) + 1 :] for path in below]
    return lines


def test_what_xtuners_tool_wrote_is_honoured_line_by_line(tmp_path: Path) -> None:
    below = ["en/alpha/2.bin", "en/alpha/10.bin", "en/Zeta/1.bin", "cn/数据/1.bin", "cn/a b.bin", "0.bin", "z/0.bin"]
    make(tmp_path / "chat", *below, "cn/a b.bin.meta", "notes.txt")
    make(tmp_path / "elsewhere", "linked.bin")
    (tmp_path / "chat/en/far").symlink_to(tmp_path / "elsewhere")
    lines = written_by_xtuner(str(tmp_path / "chat"))
    assert sorted(lines) == sorted([*below, "en/far/linked.bin"]) != lines
    write(tmp_path, "".join(f"{line}\n" for line in lines))
    one = {"name": "chat", "files": ["**/*.bin"], "format": "ftdp", "map": "none"}
    assert paths(pipeline(tmp_path, one, follow_symlinks=True)) == lines
    assert 'en/far/linked.bin" is listed, but lies in a linked folder' in "\n".join(refusal(pipeline(tmp_path, one)))


def test_what_xtuners_tool_wrote_for_a_folder_with_a_slash_behind_it_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "chat", "en/1.bin")
    lines = written_by_xtuner(f"{tmp_path}/chat/")  # it cuts a character too many
    write(tmp_path, "".join(f"{line}\n" for line in lines))
    assert refusal(pipeline(tmp_path, {"name": "chat", "files": ["**/*.bin"]}))[:2] == [
        'data_order.txt:1: "n/1.bin" is listed, but is not on disk',
        'data_order.txt: "en/1.bin" is on disk, but not listed',
    ]


def test_the_last_line_may_lack_its_line_feed(tmp_path: Path) -> None:
    make(tmp_path / "chat", "b.bin", "a.bin")
    write(tmp_path, "b.bin\na.bin")
    assert paths(pipeline(tmp_path)) == ["b.bin", "a.bin"]


def test_a_missing_file_is_refused_written_or_not_needed(tmp_path: Path) -> None:
    make(tmp_path / "chat", "b.bin", "a.bin")
    assert refusal(pipeline(tmp_path)) == [
        "data_order.txt: missing; write it with `packtrain order write` and keep it under version control"
    ]
    assert paths(pipeline(tmp_path, mode="scan")) == ["a.bin", "b.bin"]
    assert not (tmp_path / "data_order.txt").exists()
    assert paths(pipeline(tmp_path, mode="write")) == ["a.bin", "b.bin"]
    assert (tmp_path / "data_order.txt").read_bytes() == b"a.bin\nb.bin\n"


def test_neither_locale_nor_hash_seed_nor_terminal_changes_a_byte(tmp_path: Path) -> None:
    make(tmp_path / "chat", "b.bin", "A.bin", "é.bin", "e.bin", "日本/1.bin", "Z/1.bin")
    make(tmp_path / "code", "x.bin")
    file = tmp_path / "x.toml"
    file.write_text(
        'schema_version = 1\nrun.name = "r"\nmodel.scratch = { model_type = "llama" }\ntokenizer.name_or_path = "tok"\n'
        '[[prep.source]]\nname = "code"\npath = "code"\n[[prep.source]]\nname = "chat"\npath = "chat"\n'
        "[prep.pack]\ncapacity = 8\n"
    )
    written = set()
    for number, locale in enumerate(["C", "POSIX", "C.UTF-8"]):
        environment = {**os.environ, "LC_ALL": locale, "LANG": locale, "PYTHONHASHSEED": str(number)}
        command = [sys.executable, "-m", "pipelines", "order", "write", str(file)]
        subprocess.run(command, env=environment, check=True, capture_output=True)
        written.add((tmp_path / "data_order.txt").read_bytes())
    lines = [
        "chat/A.bin",
        "chat/Z/1.bin",
        "chat/b.bin",
        "chat/e.bin",
        "chat/é.bin",
        "chat/日本/1.bin",
        "code/x.bin",
        "",
    ]
    assert written == {"\n".join(lines).encode()}


def test_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "chat", "b.bin", "日.bin", "A.bin")
    write_order(pipeline(tmp_path))
    before = (tmp_path / "data_order.txt").read_bytes()
    write_order(pipeline(tmp_path))
    assert (tmp_path / "data_order.txt").read_bytes() == before == "A.bin\nb.bin\n日.bin\n".encode()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "a.bin\n../b.bin\n",
            "2: \"../b.bin\" has an empty, '.' or '..' part; write the path below its source's folder",
        ),
        ("./a.bin\n", "1: \"./a.bin\" has an empty, '.' or '..' part; write the path below its source's folder"),
        ("x//a.bin\n", "1: \"x//a.bin\" has an empty, '.' or '..' part; write the path below its source's folder"),
        ("/data/a.bin\n", '1: "/data/a.bin" is absolute; write the path below its source\'s folder'),
        ("a.bin\n\nb.bin\n", "2: is empty; remove the line"),
        ("a.bin\nb.bin\n\n", "3: is empty; remove the line"),
        ("\n", "1: is empty; remove the line"),
        ("a.bin\nb.bin\na.bin\n", '3: "a.bin" stands in line 1 already; remove one'),
        ("cafe\u0301.bin\ncaf\u00e9.bin\n", '2: "caf\u00e9.bin" stands in line 1 already; remove one'),
        ("a.bin\r\n", r'1: "a.bin\r" ends with CR LF; save the file with LF alone'),
        ("x\\a.bin\n", r'1: "x\\a.bin" has a backslash; separate folders with /'),
        ("a\tb.bin\n", r"""1: "a\tb.bin" has the control character '\t'; rename the file"""),
        (b"\xef\xbb\xbfa.bin\n", "1: begins with a byte order mark; save it as UTF-8 without one"),
        (b"a.bin\nb\xff.bin\n", "2:2: is not UTF-8; write the file again"),
        (b"\xff", "1:1: is not UTF-8; write the file again"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, content: str | bytes, expected: str) -> None:
    make(tmp_path / "chat", "a.bin", "b.bin")
    write(tmp_path, content)
    assert refusal(pipeline(tmp_path)) == [f"data_order.txt:{expected}"]


def test_every_faulty_line_is_named_up_to_a_limit(tmp_path: Path) -> None:
    make(tmp_path / "chat", "a.bin")
    write(tmp_path, "/x\n" * 25)
    lines = refusal(pipeline(tmp_path))
    assert len(lines) == 21
    assert lines[-1] == "... and 5 more like these"


def test_with_several_sources_a_line_begins_with_one(tmp_path: Path) -> None:
    make(tmp_path, "chat/a.bin", "code/b.bin")
    write(tmp_path, "chat/a.bin\ncoed/b.bin\na.bin\n")
    ending = "begins with no source's name (chat, code); with several sources a line is source/path"
    assert refusal(pipeline(tmp_path, {"name": "chat"}, {"name": "code"})) == [
        f'data_order.txt:2: "coed/b.bin" {ending}',
        f'data_order.txt:3: "a.bin" {ending}',
    ]


def test_files_that_are_missing_or_extra_are_named(tmp_path: Path) -> None:
    make(tmp_path / "chat", "a.bin", "extra.bin", "x/extra.bin")
    write(tmp_path, "gone.bin\na.bin\n")
    assert refusal(pipeline(tmp_path)) == [
        'data_order.txt:1: "gone.bin" is listed, but is not on disk',
        'data_order.txt: "extra.bin" is on disk, but not listed',
        'data_order.txt: "x/extra.bin" is on disk, but not listed',
        "data_order.txt: does not match the data; restore it, or accept what is there with `packtrain order write`; a "
        "pipeline of other data in the same folder needs a file of its own, prep.order.file",
    ]


def test_a_line_too_long_for_a_file_name_is_not_on_disk(tmp_path: Path) -> None:
    make(tmp_path / "chat", "a.bin")
    write(tmp_path, f"a.bin\n{'x' * 5000}.bin\n")
    assert refusal(pipeline(tmp_path))[0].endswith("is listed, but is not on disk")


def test_an_empty_file_lists_nothing(tmp_path: Path) -> None:
    make(tmp_path / "chat", "a.bin")
    write(tmp_path, "")
    assert refusal(pipeline(tmp_path))[0] == 'data_order.txt: "a.bin" is on disk, but not listed'


def test_a_listed_file_that_is_there_but_never_read_is_explained(tmp_path: Path) -> None:
    make(tmp_path, "chat/a.bin", "chat/.b.bin", "chat/old/c.bin~", "chat/d.txt.bak", "elsewhere/e.bin")
    (tmp_path / "chat/linked").symlink_to(tmp_path / "elsewhere")
    write(tmp_path, "a.bin\n.b.bin\nold/c.bin~\nd.txt.bak\nlinked/e.bin\n")
    assert [line.split(" is listed, but ") for line in refusal(pipeline(tmp_path))[:4]] == [
        ['data_order.txt:2: ".b.bin"', "is hidden or unfinished by its name, so it is never read"],
        ['data_order.txt:3: "old/c.bin~"', "is hidden or unfinished by its name, so it is never read"],
        ['data_order.txt:4: "d.txt.bak"', "[[prep.source]] 'chat' does not take it; see its files and format"],
        ['data_order.txt:5: "linked/e.bin"', "lies in a linked folder; set prep.order.follow_symlinks = true"],
    ]
    write(tmp_path, "linked/e.bin\na.bin\n")
    assert paths(pipeline(tmp_path, follow_symlinks=True)) == ["linked/e.bin", "a.bin"]


def test_a_line_may_be_in_either_unicode_form(tmp_path: Path) -> None:
    make(tmp_path / "chat", "caf\u00e9.bin")
    write(tmp_path, "cafe\u0301.bin\n")
    assert paths(pipeline(tmp_path)) == ["caf\u00e9.bin"]


def test_a_source_that_begins_like_another_is_not_mistaken_for_it(tmp_path: Path) -> None:
    make(tmp_path, "a/x.bin", "a.b/x.bin", "ab/a/x.bin")
    three = pipeline(tmp_path, {"name": "ab"}, {"name": "a"}, {"name": "a.b"})
    write_order(three)
    assert (tmp_path / "data_order.txt").read_text() == "a.b/x.bin\na/x.bin\nab/a/x.bin\n"
    assert [(one.name, one.path) for one in inputs_in_order(three)] == [
        ("ab", "a/x.bin"),
        ("a", "x.bin"),
        ("a.b", "x.bin"),
    ]


def test_a_file_that_tells_no_format_asks_for_one(tmp_path: Path) -> None:
    make(tmp_path / "chat", "a.data")
    message = "its ending does not tell the format; set format in [[prep.source]] 'chat'"
    assert refusal(pipeline(tmp_path, {"name": "chat", "files": ["*"]}, mode="scan")) == [f"chat/a.data: {message}"]


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    make(tmp_path / "chat", "a.bin")
    (tmp_path / "data_order.txt").mkdir()
    assert refusal(pipeline(tmp_path)) == ["data_order.txt: cannot be read (Is a directory)"]
    with pytest.raises(
        MachineError, match=r"data_order\.txt: cannot be written \(Is a directory\); set prep\.order\.file elsewhere"
    ):
        write_order(pipeline(tmp_path))
    make(tmp_path, "file")
    with pytest.raises(MachineError, match=r"data_order\.txt: cannot be written"):
        write_order(pipeline(tmp_path, file=str(tmp_path / "file" / "data_order.txt")))


def test_patterns_for_a_single_file_are_a_mistake_in_the_toml(tmp_path: Path) -> None:
    make(tmp_path, "chat")
    with pytest.raises(ConfigError, match="is a file; remove files"):
        inputs_in_order(pipeline(tmp_path, {"name": "chat", "files": ["*"], "format": "jsonl"}, mode="scan"))
