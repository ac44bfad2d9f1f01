"""The page: well-formed, self-contained, of the run's own files alone, at any point of the run."""

import base64
import hashlib
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipelines.artifacts import Manifest
from pipelines.errors import CheckError, DataError
from pipelines.report.markup import element
from pipelines.report.page import page
from pipelines.report.run import Run
from pipelines.report.verdict import facts, headline, warnings
from tests.pipelines.report.written import HOSTILE, SOURCES, write_export, write_run, write_train

VOID = {"meta"}


class Page(HTMLParser):
    """What a parser makes of the page; fails where tags do not fit each other."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("path", "rect", "line")
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def read(run: Path) -> Page:
    return Page(page(Run.open(run)).decode())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("whole"))


def test_it_is_well_formed_and_refers_to_nothing_outside(whole: Path) -> None:
    html = page(Run.open(whole)).decode()
    found = Page(html)
    assert {name for name, _ in found.elements}.isdisjoint(
        {"link", "img", "iframe", "object", "embed", "base", "form", "a", "audio", "video", "use", "image"}
    )
    for _, attributes in found.elements:
        assert attributes.keys().isdisjoint({"src", "href", "srcset", "action", "xlink:href", "data"})
        assert not [key for key in attributes if key.startswith("on")]
    style, script = (re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL) for tag in ("style", "script"))
    assert (len(style), len(script)) == (1, 1)
    assert not re.search(r"url\(|@import", style[0])
    assert not re.search(r"fetch|XMLHttp|import\(|innerHTML|https?:", script[0])
    [policy] = [one["content"] for _, one in found.elements if one.get("http-equiv") == "Content-Security-Policy"]
    allowed = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert policy is not None
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{allowed}'; style-src 'unsafe-inline';")


def test_what_others_wrote_is_text_and_nothing_else(whole: Path) -> None:
    html = page(Run.open(whole)).decode()
    found = Page(html)
    assert [name for name, _ in found.elements].count("script") == 1
    assert not re.search("[\u202e\x1b\ud800]", html)
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    # An answer, a prompt, a faulty record and its reason, an expected answer, a setting.
    assert found.text.count(shown) >= 5
    assert SOURCES[1] in found.text


def test_markup_escapes_whatever_is_not_markup() -> None:
    inner = element("b", "1 < 2")
    assert element("p", 'a & "b"', inner, title="'\">") == (
        '<p title="&#x27;&quot;&gt;">a &amp; &quot;b&quot;<b>1 &lt; 2</b></p>'
    )


def test_equal_files_give_equal_bytes(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "tiny")
    assert page(Run.open(whole)) == page(Run.open(tmp_path / "tiny"))


def test_it_is_fit_to_be_sent(whole: Path) -> None:
    html = page(Run.open(whole)).decode()
    for private in ("secret", "NCCL", "/home", str(whole.parent)):
        assert private not in html


def test_it_begins_with_what_came_of_it(whole: Path) -> None:
    run = Run.open(whole)
    found = headline(run)
    assert (found["model"], found["trained_parameters"]) == ("LlamaForCausalLM", 1_200_064)
    assert (found["step"], found["total_steps"], found["fill"]) == (300, 300, 0.93625)
    assert (found["verified"], found["accuracy"]) == (["hf", "turbomind"], 0.9)
    assert [stage["finished"] for stage in facts(run)["stages"].values()] == [True, True, True]
    text = read(whole).text
    assert "38 tensors equal bit for bit" in text
    for figure in ("Loss", "Loss by source", "Held-out loss by source", "Learning rate", "Lengths of samples"):
        assert figure in text


def test_the_mix_is_shown_as_asked_and_as_realised(whole: Path) -> None:
    rows = [re.sub(r"\s+", " ", row) for row in re.findall(r"<tr>(.*?)</tr>", page(Run.open(whole)).decode())]
    cells = [re.findall(r"<td[^>]*>([^<]*)(?:<|$)", row) for row in rows if 'class="share"' in row]
    assert [row[2:] for row in cells] == [
        ["74.40%", "74.40%", "600", "5,580", "0.61"],
        ["2.5 passes", "25.60%", "200", "1,920", "2.50"],
    ]


def test_what_to_look_at_is_said(whole: Path) -> None:
    assert warnings(Run.open(whole)) == [
        "1 of 1,003 records were faulty and left out",
        "12 records: overlong, cut",
        f"samples are repeated of 1 source: {SOURCES[1]} (2.5 passes)",
        "10 tokens behind the last full packs are left out (prep.pack.drop_last)",
        "2 steps skipped, as loss or gradient was not finite: steps 100 to 101",
        "the held-out loss was lowest after step 210, 0.4036, and is 0.5959 after step 300",
    ]


def test_other_shards_an_older_export_and_files_that_changed_are_said(tmp_path: Path) -> None:
    home = write_run(tmp_path)
    shutil.rmtree(home / "train")
    write_train(home / "train", steps=200, total=400)
    (home / "export" / "hf" / "model.safetensors").write_bytes(b"")
    (home / "prep" / "shards" / "shard-00001.arrow").unlink()
    prep = Manifest.read(home / "prep")
    assert prep is not None
    Manifest("prep", 1, "0" * 64, {}, prep.files, prep.facts).write(home / "prep")
    found = "\n".join(warnings(Run.open(home)))
    for finding in (
        "export/hf: model.safetensors missing, or of another size",
        "prep: shards/shard-00001.arrow missing, or of another size",
        "train/checkpoints/step-00000200 was trained on other shards",
        "the export is not of the newest checkpoint, step 200, but of step 300",
        "prep: shards/shard-00001.arrow is missing or damaged",
    ):
        assert finding in found
    assert "a prep that is not here" in read(home).text


@pytest.mark.parametrize("until", ["prep", "train"])
def test_stages_that_have_not_run_are_said(tmp_path: Path, until: str) -> None:
    found = read(write_run(tmp_path, until=until))
    assert "Export has not run." in found.text
    assert ("Training has not run." in found.text) == (until == "prep")
    assert "No finished prep output" not in found.text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "tiny" / "prep" / ".partial").mkdir(parents=True)
    found = read(tmp_path / "tiny")
    assert "begun, not finished" in found.text
    (tmp_path / "tiny" / "export").mkdir()
    (tmp_path / "tiny" / "train" / "checkpoints").mkdir(parents=True)
    assert "Training has begun, and no step is done." in read(tmp_path / "tiny").text


def test_training_that_goes_on_without_a_checkpoint_has_its_curves(tmp_path: Path) -> None:
    home = write_run(tmp_path, until="train")
    shutil.rmtree(home / "train" / "checkpoints")
    found = read(home)
    assert "not finished: step 300" in found.text
    assert "Gradient norm" in found.text


def test_a_run_that_was_prolonged_is_not_called_finished(tmp_path: Path) -> None:
    home = write_run(tmp_path, until="prep")
    write_train(home / "train", steps=300, total=150)
    shutil.rmtree(home / "train" / "checkpoints" / "step-00000300")
    text = read(home).text
    assert "train not finished: step 300 \u00b7" in text
    assert "how many in all, the next checkpoint knows" in text


def test_an_export_without_its_end_is_said(tmp_path: Path) -> None:
    home = write_run(tmp_path)
    (home / "export" / "manifest.json").unlink()
    text = read(home).text
    assert "not finished: hf, turbomind written" in text
    assert "9 of 10 answers are exactly as expected" in text  # too few, it may be, and that is why
    shutil.rmtree(home / "export")
    write_export(home / "export")
    assert "finished and verified: hf, turbomind" in read(home).text


def test_what_merging_onto_either_base_came_to_is_shown(tmp_path: Path) -> None:
    home = write_run(tmp_path)
    target = Manifest.read(home / "export" / "hf")
    assert target is not None
    of_base = {"relative": 0.0123, "worst": {"relative": 0.5, "matrix": "model.layers.0.mlp.up_proj"}, "logits": None}
    merging = {"base": "original", "type": "nf4", "original": of_base, "dequantized": {**of_base, "logits": 0.25}}
    replace(target, facts={**target.facts, "merging": merging}).write(home / "export" / "hf")
    text = read(home).text
    assert "4 bits (nf4), merged onto the original base" in text
    assert "original1.230%50.000%model.layers.0.mlp.up_projnot measured" in text
    assert "dequantized1.230%50.000%model.layers.0.mlp.up_proj0.25" in text


def test_what_was_not_verified_is_not_called_so(tmp_path: Path) -> None:
    home = write_run(tmp_path)
    target = Manifest.read(home / "export" / "hf")
    assert target is not None
    replace(target, facts={**target.facts, "verified": {}}).write(home / "export" / "hf")
    assert headline(Run.open(home))["verified"] == ["turbomind"]
    text = read(home).text
    assert "finished: hf (not verified), turbomind" in text
    assert "bfloat162 kBno" in text


def test_many_sources_share_the_colours_there_are(tmp_path: Path) -> None:
    home = write_run(tmp_path, until="prep")
    (home / "train").mkdir()
    losses = ", ".join(f'"s{number}": {number + 1}' for number in range(40))
    lines = [
        f'{{"kind": "train", "step": {s}, "loss": 1, "loss_tokens": 1, "loss_by_source": {{{losses}}}}}\n'
        for s in (1, 2)
    ]
    (home / "train" / "metrics.jsonl").write_text("".join(lines))
    found = read(home)
    assert "The 14 of 40 sources that are in most steps." in found.text
    assert ("g", {"class": "c6 dash1"}) in [
        (name, {"class": attributes.get("class")}) for name, attributes in found.elements
    ]


def test_a_place_without_a_run_is_refused_with_a_remedy(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run here, none of prep/, train/, export/; run `packtrain prep FILE` first"):
        Run.open(tmp_path)
    with pytest.raises(DataError, match="name the run's directory above it"):
        Run.open(whole / "train")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    home = write_run(tmp_path, until="prep")
    (home / "prep" / "manifest.json").write_text("{}")
    with pytest.raises(CheckError, match=r"manifest\.json: not a manifest"):
        read(home)
