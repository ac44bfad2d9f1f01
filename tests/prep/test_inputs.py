"""What a source's data is, in one digest that the TOML can pin."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.artifacts import canonical_json
from pipelines.errors import DataError
from pipelines.schema import Source
from prep.inputs import Input, digest, pinned, source_digest, source_digests, unchanged
from tests.prep.test_scan import source


def inputs(root: Path, *files: tuple[int, str, str]) -> list[Input]:
    """Inputs of sources by number, each with a path and a content."""
    found = []
    for number, path, content in files:
        where = root / str(number) / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_text(content)
        found.append(Input(number, f"s{number}", path, where, "jsonl", "openai"))
    return digest(found, workers=1, known={})


def sources(*pins: str | None) -> list[Source]:
    return [source(Path("x"), sha256=pin).model_copy(update={"name": f"s{n}"}) for n, pin in enumerate(pins)]


def test_the_digest_is_that_of_paths_and_contents_in_order(tmp_path: Path) -> None:
    one, two = inputs(tmp_path, (0, "b.jsonl", "B"), (0, "é.jsonl", "A"))
    sha = [hashlib.sha256(content).hexdigest() for content in (b"B", b"A")]
    pairs = [["b.jsonl", sha[0]], ["é.jsonl", sha[1]]]
    assert source_digest([one, two]) == hashlib.sha256(canonical_json(pairs)).hexdigest()
    others = [[two, one], [one], [replace(one, path="c.jsonl"), two], [replace(one, sha256=two.sha256), two]]
    assert len({source_digest(found) for found in [[one, two], *others]}) == 5


def test_neither_name_nor_place_of_a_source_counts(tmp_path: Path) -> None:
    found = inputs(tmp_path, (0, "a.jsonl", "A"), (1, "a.jsonl", "A"))
    first, second = source_digests(found, sources(None, None))
    assert first == second == source_digest(found[:1])


def test_a_pinned_source_that_changed_is_refused_with_both_digests(tmp_path: Path) -> None:
    found = inputs(tmp_path, (0, "a.jsonl", "A"), (1, "b.jsonl", "B"))
    right, also = source_digests(found, sources(None, None))
    pinned(found, sources(right, also))
    pinned(found, sources(None, None))
    wrong = "0" * 64
    with pytest.raises(DataError) as caught:
        pinned(found, sources(right, wrong))
    assert "'s0'" not in str(caught.value)
    assert f"[[prep.source]] 's1': its files are not those that sha256 pins: expected {wrong}, found {also};" in str(
        caught.value
    )


def test_a_file_that_changes_or_goes_away_while_it_is_read_is_named(tmp_path: Path) -> None:
    found = inputs(tmp_path, (0, "a.jsonl", "A"))
    unchanged(found)
    found[0].where.write_text("longer")
    with pytest.raises(DataError, match=r"a\.jsonl: changed while prep was reading it"):
        unchanged(found)
    found[0].where.unlink()
    with pytest.raises(DataError, match=r"a\.jsonl: cannot be read any more"):
        unchanged(found)
