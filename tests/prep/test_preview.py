"""`packtrain preview`: packs, samples of sources and traced tokens, as text, JSON and a page."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pipelines.cli import main
from pipelines.config import load
from pipelines.shards import ShardReader
from prep.run import run
from tests.prep.folders import byte_level, spm
from tests.prep.small import MakePipeline
from tests.prep.test_rendering import CHAT, pipeline_file
from tests.prep.test_resample import source, write_ftdp

EVIL = "<script>alert(1)</script> </pre> &lt; \x1b[2J ⟦x⟧ 上海"
LINES = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"{EVIL} {n}"}, {"role": "assistant", "content": f"yes {n}"}]})
    + "\n"
    for n in range(40)
)


def preview(file: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["preview", str(file), *map(str, arguments)])


def told(file: Path, *arguments: str | Path) -> Any:
    answer = preview(file, "--json", *arguments)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with several packs, shards, and some held out."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "a.jsonl").write_text(LINES)
    file = pipeline_file(folder, "")
    file.write_text(file.read_text().replace('capacity = 64\nstrategy = "none"', "capacity = 512") +
                    "[prep.output]\nshard_tokens = 1000\n[prep.eval]\nfraction = 0.2\n")  # fmt: skip
    run(load(file), workers=1)
    return file


def test_packs_are_shown_where_there_are_shards_and_samples_before(prepared: Path, make_pipeline: MakePipeline) -> None:
    shown = preview(prepared)
    assert shown.stdout.startswith("pack 0, pack 0 of shards/shard-00000.arrow: ")
    assert "what is trained is between ⟦ and ⟧" in shown.stdout
    assert r"\x1b[2J" in shown.stdout
    assert len(told(prepared)["packs"]) == 3
    assert len(told(prepared, "--samples", "--count", "5")["samples"]) == 5
    before = make_pipeline(LINES)
    found = told(before)["samples"]
    assert [one["samples"][0]["record"] for one in found] == [1, 2, 3]
    assert found[0]["title"] == "sample of a"
    assert told(before, "--set", 'prep.order.mode="locked"')["samples"] == found  # before `order write` too
    assert sorted(path.name for path in before.parent.iterdir()) == ["data", "run.toml"]


def test_json_of_a_pack_is_what_the_shard_holds(prepared: Path) -> None:
    reader = ShardReader(load(prepared).home / "prep")
    assert len(reader.packs_per_shard) > 1
    last = len(reader) - 1
    shard, row = len(reader.packs_per_shard) - 1, reader.packs_per_shard[-1] - 1
    [found] = told(prepared, "--pack", str(last))["packs"]
    assert told(prepared, "--shard", str(shard), "--pack", str(row))["packs"] == [found]
    assert (found["pack"], found["row"]) == (last, row)
    pack = reader[last]
    assert [id_ for one in found["samples"] for id_ in one["tokens"]] == pack.tokens.tolist()
    trained = [at for one in found["samples"] for begin, end in one["trained"] for at in range(begin, end)]
    assert trained == pack.loss.nonzero()[0].tolist()
    assert (found["tokens"], found["trained"]) == (pack.tokens.size, len(trained))
    for number, one in enumerate(found["samples"]):
        record = json.loads(LINES.splitlines()[one["record"] - 1])
        assert "".join(one["texts"]).count(record["messages"][0]["content"]) == 1
        assert (one["source"], one["path"], one["begin"]) == ("a", "a.jsonl", pack.segments[number])
    assert told(prepared, "--eval", "--count", "1")["packs"][0]["shard"] == "eval/shards/shard-00000.arrow"


def test_a_sample_of_a_source_is_what_prep_makes_of_it(prepared: Path) -> None:
    [pack] = told(prepared, "--pack", "0")["packs"]
    shown = pack["samples"][0]
    [found] = told(prepared, "--sample", f"a:{shown['record']}")["samples"]
    one = found["samples"][0]
    assert one["tokens"] == shown["tokens"]
    assert [[begin + shown["begin"], end + shown["begin"]] for begin, end in one["trained"]] == shown["trained"]
    assert told(prepared, "--sample", f"a/a.jsonl:{shown['record']}")["samples"] == [found]
    spans = [found["rendered"][begin:end] for begin, end in found["characters"]]
    assert [a for a, b in zip(spans, one["texts"], strict=True) if b and a != b and "\\" not in b] == []
    titled = told(prepared, "--sample", "a:1", "--set", "prep.max_length=9", "--set", 'prep.overlength="drop"')
    assert titled["samples"][0]["title"] == "sample of a (overlong, dropped)"


def test_samples_of_all_kinds_of_tokenizers_and_data_are_shown(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + "\n")
    for tokenizer in (byte_level, spm):
        folder = tokenizer(tmp_path / tokenizer.__name__, special=["<unk>", "<s>", "</s>"])
        shown = preview(pipeline_file(tmp_path, "", template='name = "zephyr"', tokenizer=folder))
        assert re.search("⟦ ?a!</s>⟧", shown.stdout), shown.output  # sentencepiece puts a space before a text
    (tmp_path / "data").mkdir()
    write_ftdp(tmp_path / "data" / "a", [{"text": "x"}])
    [found] = told(source(tmp_path, "none"))["samples"]
    assert "rendered" not in found
    assert found["samples"][0]["tokens"] == [ord("x")]


class Page(HTMLParser):
    """Tags, what refers to something, and the tokens of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.tokens: list[tuple[str, int]] = []
        self.marked: list[int] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.references += [str(value) for name, value in attrs if name in ("src", "href", "action", "onclick")]
        if "data-id" in given:
            self.tokens.append((tag, int(given["data-id"] or 0)))
            self.marked += [len(self.tokens) - 1] if "m" in (given.get("class") or "").split() else []

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_holds_whole_packs_and_nothing_of_the_data_is_markup(prepared: Path, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    assert preview(prepared, "--pack", "1", "--html", place).stdout == f"{place}: 1 packs\n"
    text = place.read_text(encoding="utf-8")
    found = Page(text)
    pack = ShardReader(load(prepared).home / "prep")[1]
    assert [id_ for _, id_ in found.tokens] == pack.tokens.tolist()
    assert [tag == "b" for tag, _ in found.tokens] == pack.loss.tolist()
    assert found.tags.count("section") == pack.file.size
    assert (found.tags.count("script"), found.tags.count("pre")) == (1, pack.file.size)
    assert EVIL.replace("\x1b", r"\x1b") in found.text
    assert found.references == []
    assert not re.search(r"https?:|//[a-z]|url\(|@import", text)
    assert "default-src 'none'" in text
    assert preview(prepared, "--pack", "1", "--html", place).exit_code == 0  # and the same bytes again
    assert place.read_text(encoding="utf-8") == text


def test_a_traced_token_is_told_and_marked(prepared: Path, tmp_path: Path) -> None:
    place = tmp_path / "page.html"
    answer = preview(prepared, "--token", "1:9", "--html", place)
    assert answer.exit_code == 0
    assert re.search(r"^token 9 of pack 1 \(pack \d of shards/shard-\d{5}.arrow\): ", answer.stdout)
    assert "\nfield    messages[0].content, characters " in answer.stdout
    assert "\nchecked  the record gives the " in answer.stdout
    assert Page(place.read_text(encoding="utf-8")).marked == [9]
    one = told(prepared, "--token", "1:9")["token"]
    assert (one["position"], one["same"], one["why"]) == (9, True, "")
    different = preview(prepared, "--token", "1:9", "--set", "run.seed=5")
    assert (different.exit_code, "not checked: run.seed is 5" in different.stdout) == (4, True)


@pytest.mark.parametrize(
    ("arguments", "code", "finding"),
    [
        (["--pack", "99"], 2, "--pack 99: "),
        (["--shard", "9"], 2, "has the shards 0 to "),
        (["--shard", "0", "--pack", "50"], 2, "shard 0 of "),
        (["--sample", "b:1"], 2, "no such source or file; the sources are a"),
        (["--sample", "a:0"], 2, "expected SOURCE:RECORD"),
        (["--sample", "a:41"], 3, "has 40 records, no 41"),
        (["--token", "3"], 2, "expected PACK:POSITION"),
        (["--token", "0:99999"], 2, "pack 0 has the tokens 0 to"),
        (["--token", "0:1", "--pack", "1"], 2, "--token names its pack itself"),
        (["--sample", "a:1", "--pack", "1"], 2, "are about shards"),
        (["--eval", "--set", 'run.name="other"'], 3, "no finished prep output here"),
    ],
)
def test_what_is_not_there_is_said(arguments: list[str], code: int, finding: str, prepared: Path) -> None:
    answer = preview(prepared, *arguments)
    assert (answer.exit_code, finding in answer.stderr) == (code, True), answer.output


def test_a_source_of_several_files_and_a_blank_line_are_named(make_pipeline: MakePipeline) -> None:
    file = make_pipeline("\n" + LINES)
    assert "gives no sample; is it blank" in preview(file, "--sample", "a:1").stderr
    (file.parent / "data" / "b.jsonl").write_text(LINES)
    assert "a has 2 files; name one, such as a/a.jsonl:1" in preview(file, "--sample", "a:2").stderr
    assert told(file, "--sample", "a/b.jsonl:2")["samples"][0]["samples"][0]["path"] == "b.jsonl"


def test_every_command_of_the_page_is_understood(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "preview.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    for line in block.splitlines():
        words = line.partition("#")[0].split()
        assert words[:3] == ["packtrain", "preview", "my-sft.toml"]
        names = {"17": "1", "40": "2", "chats:1240": "a:7", "17:306": "1:9"}
        answer = preview(prepared, *[names.get(word, word) for word in words[3:]])
        assert answer.exit_code == 0, (line, answer.output)
    assert (tmp_path / "pack.html").is_file()


def test_samples_that_prep_refuses_are_shown_with_the_reason(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(LINES)
    (one,) = told(file, "--sample", "a:1", "--set", "prep.max_length=20", "--set", 'prep.overlength="error"')["samples"]
    assert re.search(r"\(overlong: \d+ tokens, prep\.max_length is 20\)", one["title"])


def test_sources_without_a_sample_and_faulty_records_are_one_line(make_pipeline: MakePipeline) -> None:
    answer = preview(make_pipeline(""))
    assert (answer.exit_code, "no sample in the sources" in answer.output) == (3, True), answer.output
    file = make_pipeline(LINES.replace("yes 2", "\\ud800"))
    for arguments in ((), ("--sample", "a:3")):
        answer = preview(file, *arguments)
        assert (answer.exit_code, "a.jsonl:3: " in answer.output) == (3, True), answer.output
