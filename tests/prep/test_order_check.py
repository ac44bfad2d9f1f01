import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.artifacts import Manifest, digest_file, make_directory
from pipelines.errors import CheckError, DataError
from pipelines.schema import Pipeline
from prep.order import inputs_in_order, write_order
from prep.order_check import Difference, check_order, report
from tests.prep.test_order import pipeline, write
from tests.prep.test_scan import make

NAMES = [f"part-{number:02}.bin" for number in range(20)]
RESTORE = "restore the files, or accept what is on disk with `packtrain order write`"
RERUN = "restore what prep read, or run `packtrain prep` to read what is there"


def fill(root: Path, contents: Mapping[str, str]) -> None:
    for path, content in contents.items():
        make(root, path)
        (root / path).write_text(content)


def finish_prep(one: Pipeline) -> None:
    """Write the manifest that prep would, as far as the inputs go."""
    files = [
        {
            "source": found.name,
            "path": found.path,
            "size": found.where.stat().st_size,
            "sha256": digest_file(found.where),
        }
        for found in inputs_in_order(one)
    ]
    Manifest("prep", 1, "0", {}, [], {"files": files}).write(make_directory(one.home / "prep"))


def failure(one: Pipeline, *, quick: bool = False) -> list[str]:
    """The lines of the failed check, without the folder."""
    with pytest.raises(CheckError) as caught:
        check_order(one, quick=quick)
    return str(caught.value).replace(f"{one.prep.order.file.parent}/", "").splitlines()


@pytest.mark.parametrize("quick", [False, True])
def test_files_as_listed_pass_in_any_order(tmp_path: Path, quick: bool) -> None:
    make(tmp_path / "chat", *NAMES)
    write(tmp_path, "".join(f"{name}\n" for name in reversed(NAMES)))
    assert check_order(pipeline(tmp_path), quick=quick) == 20
    finish_prep(pipeline(tmp_path))
    assert check_order(pipeline(tmp_path), quick=quick) == 20


def test_files_that_come_and_go_are_shown_as_a_unified_diff(tmp_path: Path) -> None:
    make(tmp_path / "chat", *NAMES)
    write_order(pipeline(tmp_path))
    make(tmp_path / "chat", "part-02b.bin", "z.bin")
    (tmp_path / "chat/part-05.bin").unlink()
    assert failure(pipeline(tmp_path)) == [
        "data_order.txt: 2 added, 1 removed",
        "--- data_order.txt",
        "+++ files on disk",
        "@@ -1,9 +1,9 @@",
        *(f" part-0{number}.bin" for number in (0, 1, 2)),
        "+part-02b.bin",
        *(f" part-0{number}.bin" for number in (3, 4)),
        "-part-05.bin",
        *(f" part-0{number}.bin" for number in (6, 7, 8)),
        "@@ -18,3 +18,4 @@",
        *(f" part-{number}.bin" for number in (17, 18, 19)),
        "+z.bin",
        RESTORE,
    ]


@pytest.mark.skipif(shutil.which("patch") is None, reason="needs the patch command")
@given(
    before=st.sets(st.integers(10, 59), min_size=1),
    after=st.sets(st.integers(10, 59), min_size=1),
    descending=st.booleans(),
)
def test_the_diff_is_one_that_patch_applies(
    tmp_path_factory: pytest.TempPathFactory, before: set[int], after: set[int], descending: bool
) -> None:
    listed = sorted((f"{number}.bin" for number in before), reverse=descending)
    found = sorted(f"{number}.bin" for number in after)
    added = [line for line in found if line not in listed]
    removed = [line for line in listed if line not in found]
    difference = Difference(added, removed, {}, {}, [])
    lines = [line for line in report(difference, "data_order.txt", listed) if line[0] in "-+@ "]
    file = tmp_path_factory.mktemp("patch") / "data_order.txt"
    file.write_text("".join(f"{line}\n" for line in listed))
    if difference:
        patch = ["patch", "--silent", "--fuzz=0", str(file)]
        subprocess.run(patch, input="\n".join([*lines, ""]), text=True, check=True)
    expected = [line for line in listed if line in found] + added
    assert file.read_text().splitlines() == (expected if descending and len(listed) > 1 else found)


@pytest.mark.parametrize("quick", [False, True])
def test_a_file_of_another_size_than_prep_read_is_changed(tmp_path: Path, quick: bool) -> None:
    fill(tmp_path / "chat", {"a.bin": "1234", "b.bin": "5678"})
    write_order(pipeline(tmp_path))
    finish_prep(pipeline(tmp_path))
    fill(tmp_path / "chat", {"b.bin": "56789"})
    expected = ["data_order.txt: 1 changed", "changed: b.bin: 5 bytes, prep read 4", RERUN]
    assert failure(pipeline(tmp_path), quick=quick) == expected


def test_other_content_of_the_same_size_is_seen_unless_quick(tmp_path: Path) -> None:
    fill(tmp_path / "chat", {"a.bin": "1234", "b.bin": "5678"})
    write_order(pipeline(tmp_path))
    finish_prep(pipeline(tmp_path))
    fill(tmp_path / "chat", {"a.bin": "4321"})
    assert failure(pipeline(tmp_path))[1] == "changed: a.bin: not the content prep read"
    assert check_order(pipeline(tmp_path), quick=True) == 2


def test_a_file_that_moved_is_told_from_one_removed_and_one_added(tmp_path: Path) -> None:
    fill(tmp_path / "chat", {"a.bin": "aa", "b.bin": "bb", "c.bin": "cc"})
    write_order(pipeline(tmp_path))
    finish_prep(pipeline(tmp_path))
    make(tmp_path / "chat/new", "d.bin")
    (tmp_path / "chat/b.bin").rename(tmp_path / "chat/new/b.bin")
    assert failure(pipeline(tmp_path)) == [
        "data_order.txt: 1 added, 1 moved",
        "--- data_order.txt",
        "+++ files on disk",
        *("@@ -1,3 +1,4 @@", " a.bin", "-b.bin", " c.bin", "+new/b.bin", "+new/d.bin"),
        "moved: b.bin -> new/b.bin",
        RESTORE,
    ]
    assert failure(pipeline(tmp_path), quick=True)[0] == "data_order.txt: 2 added, 1 removed"


def test_another_order_than_prep_read_is_shown_by_as_few_lines_as_explain_it(tmp_path: Path) -> None:
    make(tmp_path / "chat", *NAMES)
    write_order(pipeline(tmp_path))
    finish_prep(pipeline(tmp_path))
    moved = [*NAMES[5:9], *NAMES[:5], *NAMES[10:], NAMES[9]]
    write(tmp_path, "".join(f"{name}\n" for name in moved))
    expected = [f"reordered: {name}" for name in (*NAMES[5:9], NAMES[9])]
    assert failure(pipeline(tmp_path), quick=True) == ["data_order.txt: 5 reordered", *expected, RERUN]


def test_a_long_diff_is_cut_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prep.order_check.SHOWN", 5)
    make(tmp_path / "chat", *NAMES)
    write(tmp_path, "")
    shown = [f"+{name}" for name in NAMES[:4]]
    assert failure(pipeline(tmp_path))[3:-1] == ["@@ -0,0 +1,20 @@", *shown, "... and 16 more lines"]


def test_the_order_of_the_sources_is_not_the_order_of_files(tmp_path: Path) -> None:
    make(tmp_path, "a/1.bin", "a/2.bin", "b/1.bin")
    one = pipeline(tmp_path, {"name": "a"}, {"name": "b"})
    write_order(one)
    finish_prep(one)
    other = pipeline(tmp_path, {"name": "b"}, {"name": "a"})
    write(tmp_path, "b/1.bin\na/1.bin\na/2.bin\n")
    assert check_order(other) == 3


def test_a_source_that_prep_had_not_read_is_only_compared_with_the_list(tmp_path: Path) -> None:
    make(tmp_path, "a/1.bin", "b/1.bin")
    write_order(pipeline(tmp_path, {"name": "a"}))
    finish_prep(pipeline(tmp_path, {"name": "a"}))
    both = pipeline(tmp_path, {"name": "a"}, {"name": "b"})
    write_order(both)
    assert check_order(both) == 2


def test_without_an_order_file_only_what_prep_read_is_compared(tmp_path: Path) -> None:
    make(tmp_path / "chat", "a.bin")
    scanning = pipeline(tmp_path, mode="scan")
    assert check_order(scanning) == 1
    finish_prep(scanning)
    fill(tmp_path / "chat", {"a.bin": "more than before"})
    assert failure(scanning)[0] == "data_order.txt: 1 changed"


def test_a_missing_or_faulty_list_is_bad_input_not_a_difference(tmp_path: Path) -> None:
    make(tmp_path / "chat", "a.bin")
    with pytest.raises(DataError, match="missing; write it with"):
        check_order(pipeline(tmp_path, mode="write"))
    write(tmp_path, "/a.bin\n")
    with pytest.raises(DataError, match="is absolute"):
        check_order(pipeline(tmp_path))


def test_neither_readers_nor_compilers_are_imported_to_compare_names() -> None:
    code = "import sys, prep.order_check; print({'numba', 'pyarrow', 'numpy'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"
