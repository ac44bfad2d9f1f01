"""What a server is taken to tokenize is what Transformers tokenizes with the exported files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import schema
from prep.served import Served
from prep.stand_ins import as_dict
from prep.template_check import PROBES
from prep.tokenizer import load_tokenizer
from prep.tokenizer_files import write_tokenizer_files
from tests.prep.faults import RIGHT
from tests.prep.folders import byte_level, spm

os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.mark.parametrize("make", [byte_level, spm], ids=["byte-level", "sentencepiece"])
def test_it_is_what_transformers_makes_of_the_exported_directory(make: Callable[..., Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = load_tokenizer(make(tmp_path / "own", config={"chat_template": RIGHT}))
    write_tokenizer_files(tokenizer, schema.Template(), tmp_path / "exported", chat=True)
    served, theirs = Served(tmp_path / "exported"), AutoTokenizer.from_pretrained(tmp_path / "exported")
    for conversation in PROBES.values():
        for prompt in (True, False):
            expected = theirs.apply_chat_template(
                [as_dict(message) for message in conversation.messages],
                tools=list(conversation.tools) or None,
                add_generation_prompt=prompt,
                return_dict=False,
            )
            assert served.ids(conversation, prompt=prompt) == expected
