"""The kept inputs: what fuzzing found once stays mended, and what is right is taken."""

import pytest

from tests.fuzz.seeds import CORPUS
from tests.fuzz.target import attempt
from tests.fuzz.targets import TARGETS

MOST = 1_000_000
"""Bytes of all inputs, as they are in git."""


@pytest.mark.parametrize("name", TARGETS)
def test_no_kept_input_does_what_none_may_do(name: str) -> None:
    paths = sorted((CORPUS / name).iterdir())
    assert paths, f"{name} has no input; write one with python -m tests.fuzz.seeds"
    for path in paths:
        try:
            attempt(TARGETS[name], path.read_bytes())
        except BaseException as error:
            error.add_note(f"with {path}")
            raise


def test_every_input_is_of_a_target_and_all_of_them_are_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MOST
