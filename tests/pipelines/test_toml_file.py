"""Pipelines as text: the schema's order, one header a table, comments behind keys."""

import tomli

from pipelines.toml_file import Written, toml_file


def test_keys_stand_in_the_order_of_the_schema_with_their_comments() -> None:
    text = toml_file(
        {
            ("train", "optimizer", "lr"): Written(2e-5, "peak"),
            ("prep", "source", 1, "path"): Written("b"),
            ("prep", "source", 1, "name"): Written("two"),
            ("prep", "source", 0, "name"): Written("one", "of \n two lines"),
            ("model", "scratch", "vocab_size"): Written(92544),
            ("prep", "pack", "capacity"): Written(8192),
            ("prep", "min_length"): Written(3),
            ("run", "name"): Written('a "quoted" name'),
            ("schema_version",): Written(1),
        },
        head=["What it is."],
    )
    assert (
        text
        == """\
# What it is.

schema_version = 1

[run]
name = "a \\"quoted\\" name"

[model.scratch]
vocab_size = 92_544

[prep]
min_length = 3

[[prep.source]]
name = "one"  # of \\U0000000a two lines

[[prep.source]]
name = "two"
path = "b"

[prep.pack]
capacity = 8192

[train.optimizer]
lr = 2e-5  # peak
"""
    )
    assert tomli.loads(text)["prep"]["source"][1] == {"name": "two", "path": "b"}
