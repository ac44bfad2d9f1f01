"""What `make versions` calls the oldest is what pyproject.toml promises."""

import tomli
from packaging.requirements import Requirement
from packaging.version import Version

from tests.versions.matrix import KINDS, TESTS, Outcome, table
from tests.versions.pins import ROOT, normal, pins


def oldest(python: str) -> dict[str, str]:
    """Versions by name that are the oldest tried under a Python."""
    path = KINDS["oldest"]
    assert path is not None
    lines = [Requirement(line) for line in path.read_text().splitlines() if line and not line.startswith("#")]
    here = [line for line in lines if line.marker is None or line.marker.evaluate({"python_version": python})]
    assert len({normal(line.name) for line in here}) == len(here)
    return {normal(line.name): str(line.specifier).removeprefix("==") for line in here}


def test_the_oldest_that_are_tried_are_the_lower_bounds() -> None:
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {
        normal(line.name): str(line.specifier).removeprefix(">=") for line in map(Requirement, project["dependencies"])
    }
    found = oldest("3.11")
    assert found.keys() == bounds.keys()
    assert {name: Version(one) for name, one in found.items()} == {name: Version(one) for name, one in bounds.items()}
    for python in ("3.12", "3.13"):
        later = oldest(python)
        assert later.keys() == bounds.keys()
        assert all(Version(later[name]) >= Version(bounds[name]) for name in bounds)
    assert all(Version(version) <= Version(pins()[name]) for name, version in found.items())


def test_tests_that_versions_are_tried_with_exist() -> None:
    assert all((ROOT / path).is_file() for path in TESTS)


def test_a_step_that_failed_is_in_the_table() -> None:
    lines = list(table([Outcome("3.12.1", "oldest", {"numpy": "2.0.0"}, "golden: 1 of 2 shards differ")]))
    assert lines[-1] == "| 3.12.1 | oldest | 2.0.0 |  |  |  |  | golden: 1 of 2 shards differ |"
