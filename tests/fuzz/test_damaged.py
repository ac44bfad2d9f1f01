"""Inputs that are right but for one thing: each is taken, or refused in words."""

import os

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.damage import DAMAGES
from tests.fuzz.target import attempt
from tests.fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_file_with_something_wrong_in_it_is_taken_or_refused(name: str) -> None:
    damage = DAMAGES[name]

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(damage.inputs())
    def holds(data: bytes) -> None:
        attempt(TARGETS[damage.target], data)

    holds()
