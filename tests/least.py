"""The least that every pipeline says, for tests of one part to put their own tables behind."""


def least(capacity: int, *, run: str = "") -> str:
    """[run], one source and [prep.pack].

    Args:
        capacity: of a pack, in tokens.
        run: further lines of [run].
    """
    return f"""schema_version = 1
[run]
name = "tiny"
{run}
[[prep.source]]
name = "s"
path = "s.jsonl"
[prep.pack]
capacity = {capacity}
"""
