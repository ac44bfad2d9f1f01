"""`packtrain check`: what it tells about a pipeline, and what it finds before any work, all of it at once."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.config import load
from pipelines.findings import Finding, Report
from prep.lint import lint
from prep.run import run
from tests.prep.faults import BROKEN_TEMPLATES, DATA_FAULTS, TEMPLATE_FAULTS
from tests.prep.folders import byte_level
from tests.prep.small import MakePipeline, conversations
from tests.prep.test_rendering import CHAT, pipeline_file
from tests.prep.test_resample import source, write_ftdp
from tests.prep.test_template import CHATML


def found(report: Report) -> dict[str, Finding]:
    return {one.kind: one for one in report.findings}


def test_a_sound_pipeline_is_told_in_words_and_nothing_is_written(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(5))
    report = lint(load(file))
    assert report.findings == []
    assert [*report.facts] == ["tokenizer", "data order", "template", "source a"]
    assert report.facts["data order"] == f"1 file, {report.input_bytes:,} bytes"
    assert report.facts["template"].startswith("prompts are served as they are trained (a question, Chinese,")
    assert report.facts["source a"].startswith("5 first samples of ")
    assert sorted(path.name for path in file.parent.iterdir()) == ["data", "run.toml"]


def test_a_source_with_a_template_of_its_own_is_told_to_be_served_otherwise(tmp_path: Path) -> None:
    file = pipeline_file(tmp_path, "", 'template = "mistral"', 'map = "pretrain"\ntemplate = "none"')
    for name, record in (("a", CHAT), ("b", CHAT), ("c", {"text": "some text"})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(record) + "\n")
    facts = lint(load(file)).facts
    assert facts["template of b"].startswith("not the one that is exported; prompts are served")
    assert facts["template of c"].startswith("prompts are served as they are trained (text, Chinese)")
    assert "template of a" not in facts


def test_findings_of_template_records_and_order_come_together(tmp_path: Path) -> None:
    endless = CHATML.replace(" + '<|im_end|>' -}}{%- endgeneration -%}", " -}}{%- endgeneration -%}{{- '\\n' -}}")
    tokenizer = byte_level(tmp_path / "tokenizer", config={"chat_template": endless})
    (tmp_path / "a.jsonl").write_text('{"messages": []}\n' + json.dumps(CHAT) + "\n")
    pipeline = load(pipeline_file(tmp_path, "", tokenizer=tokenizer), ["prep.source.0.files=['*.json']"])
    together = found(lint(pipeline))
    assert "run.toml:8:2: template.name = \"tokenizer\": probe 'a question': answer 1 should end with" in (
        together["end-missing"].text
    )
    assert "remove files" in together["config"].text
    faulty = found(lint(load(pipeline_file(tmp_path, "", tokenizer=tokenizer))))
    assert "a.jsonl:1: messages: expected at least one message" in faulty["data"].text
    assert (faulty["data"].exit_code, faulty["end-missing"].exit_code) == (3, 4)
    skipped = found(lint(load(pipeline_file(tmp_path, "", tokenizer=tokenizer), ['prep.on_bad_record="skip"'])))
    assert not skipped["faulty-records"].is_error


def test_faulty_records_are_counted_by_kind_with_the_first_of_each_in_any_file(tmp_path: Path) -> None:
    broken = [b'{"messages": []}', b'{"messages": [', b'{"messages": "\xb5\xc4"}']
    lines = [json.dumps(CHAT).encode(), *broken, *broken[:1] * 6, broken[2]]
    (tmp_path / "data").mkdir()
    for number in range(9):
        (tmp_path / "data" / f"{number}.jsonl").write_bytes(b"\n".join(lines if number in (0, 8) else lines[:1] * 30))
    pipeline = load(pipeline_file(tmp_path, ""), ['prep.source.0.path="data"'])
    faults = [one.text for one in lint(pipeline).findings if one.kind == "data"]
    where = str(tmp_path / "data")
    assert len(faults) == 3
    assert faults[0].startswith(f"{where}/0.jsonl:2: messages: expected at least one message")
    assert faults[0].endswith("(14 such of 62 records looked at: also 5, 6, 7 and 10 more)")
    assert faults[1].startswith(f"{where}/0.jsonl:3:15: not valid JSON")
    assert faults[2].endswith("(4 such of 62 records looked at: also 11, 8.jsonl:4, 8.jsonl:11)")


def test_all_records_are_looked_at_when_asked_and_too_many_faulty_ones_are_an_error(tmp_path: Path) -> None:
    content = (json.dumps(CHAT) + "\n") * 300 + "".join(f'{{"messages": [{number}]}}\n' for number in range(5))
    (tmp_path / "a.jsonl").write_text(content)
    file = pipeline_file(tmp_path, "")
    assert lint(load(file)).findings == []
    [fault] = lint(load(file), all_records=True).findings
    assert f"{tmp_path / 'a.jsonl'}:301: messages[0]: expected" in fault.text
    assert "(5 such of 305 records looked at: also" in fault.text
    skipping = lint(load(file, ['prep.on_bad_record="skip"']), all_records=True).findings
    assert [one.kind for one in skipping] == ["faulty-records", "data"]
    assert skipping[1].text == "5 of 305 records are faulty, above prep.max_bad_fraction = 0.01"
    assert lint(load(file, ['prep.on_bad_record="skip"', "prep.max_bad_fraction=0.02"])).findings == []


def test_a_template_that_is_not_there_leaves_the_data_to_be_looked_at(tmp_path: Path) -> None:
    report = lint(load(pipeline_file(tmp_path, 'template = "x"')))
    assert [one.exit_code for one in report.findings] == [2, 2]
    assert "prep.source.0.path" in report.findings[0].text
    assert 'template = "x": no such template' in report.findings[1].text


def test_records_of_which_nothing_is_trained_are_found(tmp_path: Path) -> None:
    muted = {"messages": [CHAT["messages"][0], {**CHAT["messages"][1], "loss": False}]}
    file = pipeline_file(tmp_path, "", template='loss.on_empty = "drop"')
    (tmp_path / "a.jsonl").write_text(json.dumps(muted) + "\n")
    assert found(lint(load(file)))["untrained-samples"].is_error
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + "\n" + json.dumps(muted) + "\n")
    told = found(lint(load(file)))["untrained-samples"]
    assert not told.is_error
    assert f"{tmp_path / 'a.jsonl'}:2: nothing of it is trained, as of 1 of the 2 samples" in told.text


def test_tokenized_data_is_held_against_the_template_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_ftdp(tmp_path / "data" / "a", [{"text": "no conversation"}])
    file = source(tmp_path, "none")
    assert lint(load(file)).findings == []
    named = found(lint(load(file, ['template.name="tokenizer"'])))
    assert "were they tokenized with another template" in named["no-answers"].text


def test_what_does_not_go_with_the_model_is_found(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "model", config={"chat_template": CHATML})
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "vocab_size": 100}')
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 2}')
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + "\n")
    file = pipeline_file(tmp_path, "", tokenizer=tokenizer)
    file.write_text(
        file.read_text().replace('[model.scratch]\nmodel_type = "llama"', f'[model]\nname_or_path = "{tokenizer}"')
        + "[train]\nglobal_batch_size = 1\noptimizer.lr = 1e-3\n"
    )
    told = found(lint(load(file)))
    assert "and the model's vocab_size is 100; take the tokenizer that belongs to the model" in told["vocabulary"].text
    assert "does not stop at '<|im_end|>'" in told["stop-not-in-generation-config"].text
    assert [kind for kind, one in told.items() if one.is_error] == ["vocabulary"]


@pytest.mark.parametrize(
    ("overrides", "code", "kinds"),
    [
        ([], 0, []),
        (["run.nme=1", 'prep.pack.strategy="x"'], 2, ["config", "config"]),
        (['template.special_text="allow"'], 0, ["special-text"]),
        (['template.special_text="allow"', "--strict"], 4, ["special-text"]),
        (['tokenizer.name_or_path="x"', 'prep.source.a.path="y"', "prep.order.mode='locked'"], 2, ["config"] * 3),
    ],
)
def test_the_command_says_all_and_ends_with_the_code_of_the_first(
    overrides: list[str], code: int, kinds: list[str], make_pipeline: MakePipeline
) -> None:
    arguments = ["check", str(make_pipeline(conversations(3))), "--json"]
    for one in overrides:
        arguments += [one] if one == "--strict" else ["--set", one]
    answer = CliRunner().invoke(main, arguments)
    result = json.loads(answer.stdout)
    assert answer.exit_code == code, answer.output
    assert [one["kind"] for one in result["findings"]] == kinds
    assert answer.stderr.splitlines() == [
        f"{'' if one['error'] else 'warning: '}{one['text']} [{one['kind']}]" for one in result["findings"]
    ]


def test_the_page_lists_every_finding_of_a_known_fault_and_counts_them() -> None:
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    templates = len(TEMPLATE_FAULTS) + len(BROKEN_TEMPLATES)
    assert f"{templates} of templates and {len(DATA_FAULTS)} of tokenized data" in " ".join(page.split())
    assert templates + len(DATA_FAULTS) >= 40
    for kind in [*(fault.kind for fault in TEMPLATE_FAULTS), *(fault.kind for fault in DATA_FAULTS)]:
        assert f"`{kind.removeprefix('tokens-')}`" in page, kind


def test_a_data_order_that_does_not_match_is_found_beside_the_rest(make_pipeline: MakePipeline) -> None:
    file = make_pipeline(conversations(3))
    (file.parent / "data_order.txt").write_text("a.jsonl\ngone.jsonl\n")
    told = lint(load(file, ['template.special_text="allow"']))
    assert [one.kind for one in told.findings] == ["data", "data", "special-text"]
    assert 'data_order.txt:2: "gone.jsonl" is listed, but is not on disk' in told.findings[0].text
    assert {one.exit_code for one in told.findings} == {3, 0}


def test_inputs_that_are_all_empty_fail_the_check_as_they_fail_prep(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    empty = found(lint(load(pipeline_file(tmp_path, ""))))["no-samples"]
    assert (empty.is_error, empty.exit_code, "is empty" in empty.text) == (True, 3, True)


def test_shards_of_inputs_that_changed_since_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(CHAT) + "\n")
    file = pipeline_file(tmp_path, "")
    run(load(file), workers=1)
    assert lint(load(file)).findings == []
    with (tmp_path / "a.jsonl").open("a") as data:
        data.write(json.dumps(CHAT) + "\n")
    one = found(lint(load(file)))["other-inputs"]
    assert (one.is_error, "1 of another size (such as a.jsonl)" in one.text) == (False, True)
