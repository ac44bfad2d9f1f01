"""Advisories of pinned packages: found in OSV's records by range and by list; what was not looked up is not clean."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import MachineError
from tests.versions.audit import Advisory, judged, offline, online, records_of


def record(*events: dict[str, str], versions: tuple[str, ...] = (), **other: Any) -> dict[str, Any]:
    affected = {
        "package": {"ecosystem": "PyPI", "name": "Probe_Package"},
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
        "versions": list(versions),
    }
    return {"id": "PYSEC-1", "aliases": ["CVE-1"], "affected": [affected], **other}


@pytest.mark.parametrize(
    ("version", "events", "is_affected"),
    [
        ("1.9", [{"introduced": "0"}, {"fixed": "1.10"}], True),  # as numbers, not as text
        ("1.10", [{"introduced": "0"}, {"fixed": "1.10"}], False),
        ("1.10rc1", [{"introduced": "0"}, {"fixed": "1.10"}], True),
        ("2.1", [{"introduced": "0"}, {"fixed": "1.10"}, {"introduced": "2.0"}, {"fixed": "2.2"}], True),
        ("1.11", [{"introduced": "0"}, {"fixed": "1.10"}, {"introduced": "2.0"}, {"fixed": "2.2"}], False),
        ("3.0", [{"introduced": "2.0"}, {"last_affected": "3.0"}], True),
        ("3.0.1", [{"introduced": "2.0"}, {"last_affected": "3.0"}], False),
        ("9", [{"introduced": "2.0"}], True),
    ],
)
def test_a_version_is_held_against_the_ranges(version: str, events: list[dict[str, str]], is_affected: bool) -> None:
    assert bool(offline({"probe-package": version}, iter([record(*events)]))) is is_affected


def test_listed_versions_count_and_withdrawn_records_and_other_packages_do_not() -> None:
    pinned = {"probe-package": "1.0"}
    listed = record(versions=("0.9", "1.0.0"))
    assert offline(pinned, iter([listed])) == [Advisory("probe-package", "1.0", ("PYSEC-1", "CVE-1"), ())]
    assert offline({"other": "1.0"}, iter([listed])) == []
    assert offline(pinned, iter([listed | {"withdrawn": "2026-01-01"}])) == []


def test_records_come_from_a_zip_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.json").write_text(json.dumps(record()))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.json", json.dumps(record()))
        archive.writestr("readme.txt", "")
    assert [*records_of(tmp_path / "folder")] == [*records_of(tmp_path / "all.zip")] == [record()]
    (tmp_path / "empty").mkdir()
    for wrong in ("empty", "folder/a.json", "none.zip"):
        with pytest.raises(MachineError, match="expected a zip or a folder"):
            list(records_of(tmp_path / wrong))


def test_an_accepted_advisory_is_left_out_for_its_package_alone_and_named_when_it_is_gone() -> None:
    one = Advisory("probe", "1.0", ("PYSEC-1", "CVE-1"), ("1.1",))
    assert str(one) == "probe 1.0: PYSEC-1, CVE-1; pin 1.1"
    assert judged([one], {"CVE-1": {"package": "probe", "reason": "not called"}}) == ([], [])
    assert judged([one], {"CVE-1": {"package": "other", "reason": "not called"}}) == ([one], ["CVE-1"])
    assert judged([], {"CVE-9": {"package": "probe", "reason": "not called"}}) == ([], ["CVE-9"])


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        ('{"dependencies": [{"name": "probe", "skip_reason": "not found"}]}', "1 of 1 packages could not be looked up"),
        ('{"dependencies": []}', "1 of 1 packages could not be looked up"),
        ("", "pip-audit exits 0 and says: no way there"),
    ],
)
def test_what_could_not_be_looked_up_is_never_clean(answer: str, finding: str, tmp_path: Path) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!/bin/sh\necho no way there >&2\necho '{answer}'\n")
    tool.chmod(0o755)
    with pytest.raises(MachineError, match=finding):
        online({"probe": "1.0"}, tool)


def test_what_pip_audit_finds_is_told_with_its_remedy(tmp_path: Path) -> None:
    vulnerability = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"], "description": ""}
    rows = [{"name": "Probe", "version": "1.0", "vulns": [vulnerability]}]
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!/bin/sh\necho '{json.dumps({'dependencies': rows})}'\nexit 1\n")
    tool.chmod(0o755)
    assert online({"probe": "1.0"}, tool) == [Advisory("probe", "1.0", ("PYSEC-1", "CVE-1"), ("1.1",))]
