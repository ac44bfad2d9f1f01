"""A pipeline to prepare, for every test of the stage as a whole."""

from pathlib import Path

import pytest

from tests.prep.small import TOKENIZER, MakePipeline


@pytest.fixture
def make_pipeline(tmp_path: Path) -> MakePipeline:
    """Writes a pipeline of one jsonl source with the given lines; more TOML may follow [prep]."""

    def make(content: str | bytes, prep: str = "", template: str = "") -> Path:
        (tmp_path / "data").mkdir(exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / "data" / "a.jsonl").write_bytes(data)
        file = tmp_path / "run.toml"
        file.write_text(
            f'schema_version = 1\n[run]\nname = "r"\n[model.scratch]\nmodel_type = "llama"\n'
            f'[tokenizer]\nname_or_path = "{TOKENIZER}"\n{template}\n[prep]\n{prep}\n'
            f'[[prep.source]]\nname = "a"\npath = "data"\n[prep.pack]\ncapacity = 256\n[prep.order]\nmode = "write"\n'
        )
        return file

    return make
