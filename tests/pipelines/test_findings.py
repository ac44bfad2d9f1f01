"""Findings: their lines, their exit codes, and reports put together."""

from pipelines.errors import CheckError, ConfigError, DataError, MachineError
from pipelines.findings import Finding, Report, exit_code, of_error

WARNING = Finding.warning("memory", "tight")
ERROR = Finding("end-missing", "no end")


def test_the_exit_code_is_of_the_first_stage_with_an_error() -> None:
    config, data = of_error(ConfigError("one", "two")), of_error(DataError("bad"))
    assert [one.text for one in config] == ["one", "two"]
    assert exit_code([WARNING, ERROR, *data, *config]) == 2
    assert exit_code([ERROR, *data]) == 3
    assert exit_code([ERROR]) == exit_code(of_error(CheckError("x"))) == 4
    assert exit_code(of_error(MachineError("x"))) == 5
    assert exit_code([WARNING]) == exit_code([]) == 0
    assert exit_code([WARNING], strict=True) == 4


def test_a_finding_is_a_line_with_its_name() -> None:
    assert (str(ERROR), str(WARNING)) == ("no end [end-missing]", "warning: tight [memory]")


def test_reports_are_put_together_without_telling_anything_twice() -> None:
    report = Report({"a": "1"}, [ERROR], input_bytes=5)
    report.add(Report({"b": "2"}, [WARNING, ERROR]))
    assert (report.facts, report.findings, report.input_bytes) == ({"a": "1", "b": "2"}, [ERROR, WARNING], 5)
    assert report.summary() == "1 error, 1 warning"
    assert Report().summary() == "nothing is wrong"
    assert report.as_json()["exit_code"] == 4
