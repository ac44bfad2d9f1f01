"""Packs as a person reads them."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from pipelines.preview import Preview
from pipelines.shards import Pack, ShardReader
from tests.prep.folders import byte_level
from tests.train.runs import write_prep

FILES = [{"source": "chat", "path": "a/one.jsonl"}]


class Samples:
    """A prep directory, and packs of given texts for it."""

    def __init__(self, folder: Path) -> None:
        write_prep(folder)
        byte_level(folder / "tokenizer")
        self.folder = folder
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))

    def pack(self, *samples: Sequence[tuple[str, bool]]) -> Pack:
        tokens: list[int] = []
        loss: list[bool] = []
        ends = [0]
        for sample in samples:
            for text, trained in sample:
                ids = self.tokenizer.encode(text, add_special_tokens=False).ids
                tokens, loss = tokens + ids, loss + [trained] * len(ids)
            ends.append(len(tokens))
        bounds, numbers = np.array(ends, np.int32), np.arange(len(samples), dtype=np.uint32)
        return Pack(
            np.array(tokens, np.uint16), np.array(loss, np.bool_), bounds, bounds, 0 * numbers, numbers, 0 * numbers
        )

    def show(self, pack: Pack, *, colour: bool = False, lines: int = 40, width: int = 80) -> list[str]:
        preview = Preview(FILES, self.folder / "tokenizer", colour=colour, lines=lines, width=width)
        return preview.of(pack, "pack").split("\n")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    return Samples(tmp_path_factory.mktemp("samples") / "prep")


def test_what_is_trained_stands_between_marks_below_where_it_came_from(samples: Samples) -> None:
    pack = samples.pack([("<|im_start|>user\n上海?", False), ("龘是\x1b[2J", True)], [("plain ⟦text⟧", False)])
    trained, other = int(pack.loss.sum()), int(np.diff(pack.segments)[1])
    assert samples.show(pack) == [
        f"pack: {pack.tokens.size} tokens, {trained} trained in 2 samples; what is trained is between ⟦ and ⟧",
        f"├ chat/a/one.jsonl:1: {int(pack.segments[1])} tokens, {trained} trained",
        "│ <|im_start|>user↵",
        r"│ 上海?⟦龘是\x1b[2J⟧",
        f"├ chat/a/one.jsonl:2: {other} tokens, 0 trained",
        r"│ plain \u27e6text\u27e7",
        "└",
    ]


def test_with_colours_it_is_green_and_the_text_the_same(samples: Samples) -> None:
    pack = samples.pack([("question ", False), ("an answer\nof two lines", True)])
    lines = samples.show(pack, colour=True)
    assert lines[2:4] == ["│ question \x1b[32man answer↵\x1b[0m", "│ \x1b[32mof two lines\x1b[0m"]
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in lines[1:]]
    assert plain == [re.sub("[⟦⟧]", "", line) for line in samples.show(pack)[1:]]


def test_long_samples_lose_their_middle_and_it_is_counted(samples: Samples) -> None:
    long = "\n".join(f"line {number}" for number in range(200))
    pack = samples.pack([("short", False)], [(long, True)])
    lines = samples.show(pack, lines=20)
    assert len(lines) == 1 + 20 + 1
    assert lines[4] == "│ ⟦line 0↵⟧"
    assert lines[-2] == "│ ⟦line 199⟧"
    (gap,) = [at for at, line in enumerate(lines) if "left out" in line]
    kept = [line[3:-1].removesuffix("↵") for line in lines[4:gap] + lines[gap + 1 : -1]]
    rest = [line for line in long.split("\n") if line not in kept]
    count = int(re.findall(r"… ([\d,]+) tokens, \1 trained left out …", lines[gap])[0].replace(",", ""))
    assert count == len(samples.tokenizer.encode("\n".join(rest) + "\n").ids)
    alone = samples.pack([(long * 40, False)])
    assert alone.tokens.size > 50_000  # more than is laid out
    lines = samples.show(alone)
    assert (lines[2], lines[-2], len(lines)) == ("│ line 0↵", "│ line 199", 42)


def test_many_samples_lose_those_in_the_middle(samples: Samples) -> None:
    pack = samples.pack(*[[(f"sample {number}", number % 2 == 0)] for number in range(100)])
    lines = samples.show(pack, lines=24)
    assert [line for line in lines if line.startswith("│")] == [
        f"│ ⟦sample {number}⟧" if number % 2 == 0 else f"│ sample {number}" for number in (0, 1, 2, 97, 98, 99)
    ]
    inside = slice(int(pack.segments[3]), int(pack.segments[97]))
    count = f"94 samples of {inside.stop - inside.start} tokens, {int(pack.loss[inside].sum())} trained left out"
    assert f"⋮ {count}" in lines


def test_documents_that_are_not_samples_are_told_of(samples: Samples) -> None:
    pack = samples.pack([("one", False)], [("two two", False)])
    across = replace(pack, cu_seqlens=pack.segments[[0, -1]])
    assert [line.endswith("attends to what is before it") for line in samples.show(across) if "├" in line] == [0, 1]
    window = replace(pack, cu_seqlens=np.insert(pack.segments, 2, pack.segments[1] + 1), start=np.array([0, 7], "u4"))
    lines = samples.show(window)
    assert "│ ┄ attention begins anew" in lines
    assert ":2, from its token 7 on: " in lines[3]


def test_without_a_tokenizer_ids_are_shown(tmp_path: Path) -> None:
    write_prep(tmp_path / "prep")
    reader = ShardReader(tmp_path / "prep")
    files = reader.manifest.facts["files"]
    lines = Preview(files, tmp_path / "prep" / "tokenizer", colour=False).of(reader[0], "pack").split("\n")
    assert "; token ids, as there is " in lines[0]
    assert "not a tokenizer" in lines[0]
    assert re.fullmatch(r"├ .*1: \d+ tokens?, \d+ trained", lines[1])
    shown = re.sub("[⟦⟧│├└]", "", lines[2]).split()
    assert [int(one) for one in shown] == reader[0].tokens[: len(shown)].tolist()
