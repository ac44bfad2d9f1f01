"""Probe conversations in a tokenizer directory."""

from pathlib import Path

import pytest

from pipelines.errors import CheckError
from pipelines.probes import PROBES, Probe, Probes


def test_what_is_written_is_read(tmp_path: Path) -> None:
    probes = Probes([7, 2], [Probe([{"role": "user", "content": "你好"}], [1, 5, 9])])
    probes.write(tmp_path)
    assert Probes.read(tmp_path) == probes


def test_a_tokenizer_without_probes_has_none(tmp_path: Path) -> None:
    assert Probes.read(tmp_path) == Probes()


@pytest.mark.parametrize("content", ["[]", "{", '{"stop_ids": [], "probes": [{"ids": []}]}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / PROBES).write_text(content)
    with pytest.raises(CheckError, match=r"probes\.json: not probe conversations .*; run prep again"):
        Probes.read(tmp_path)
