"""docs/python-api.md: what programs of others may import, from signatures and docstrings.

`python -m pipelines.api_reference` writes it anew. Files are read as syntax, so nothing is imported for it.
"""

import ast
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = ROOT / "docs" / "python-api.md"

_Definition = ast.FunctionDef | ast.ClassDef
_SECTIONS = ("Args:", "Returns:", "Raises:")


@dataclass(frozen=True)
class Part:
    """Names that belong together, and the module that they are imported from."""

    title: str
    about: str
    module: str
    names: tuple[str, ...]
    defined: tuple[str, ...] = ()
    """Files that define them, where it is not the module's own."""


PARTS = (
    Part(
        "Pipelines",
        "A TOML file, read and checked as every command does.",
        "pipelines.config",
        ("load",),
    ),
    Part(
        "Packs",
        "What `packtrain prep` wrote, memory-mapped. Needs no torch.",
        "pipelines.shards",
        ("ShardReader", "Pack", "Attention"),
    ),
    Part(
        "Checkpoints",
        "What `packtrain train` wrote, whatever number of ranks wrote it. Needs no torch.",
        "pipelines.checkpoints",
        ("Checkpoint", "finished"),
    ),
    Part(
        "Artefacts",
        "Manifests of every stage, and what is checked by them.",
        "pipelines.artifacts",
        ("Manifest", "FileRecord"),
    ),
    Part("Verification", "Digests down to the inputs.", "pipelines.provenance", ("verify", "Verified")),
    Part("Comparison", "Where two runs first differ.", "pipelines.divergence", ("compare", "Comparison", "Divergence")),
    Part(
        "Sequence parallelism",
        "For a training loop of your own; [an example](sequence_parallel.md). Needs `packtrain[train]`.",
        "train.sequence_parallel",
        (
            "init_sequence_parallel",
            "SequenceParallel",
            "SequenceParallelSampler",
            "pad_for_sequence_parallel",
            "split_for_sequence_parallel",
            "gather_for_sequence_parallel",
            "SequenceParallelAttention",
            "Segments",
            "reduce_sequence_parallel_loss",
        ),
        (
            "train/attention.py",
            *(f"train/sequence_parallel/{name}.py" for name in ("groups", "sampler", "split", "attention", "loss")),
        ),
    ),
    Part(
        "Errors",
        "What a user can cause; each has the `exit_code` of the command.",
        "pipelines.errors",
        ("PacktrainError", "ConfigError", "DataError", "CheckError", "MachineError", "BusyError", "InterruptedRun"),
    ),
)


def page() -> str:
    """The page as Markdown."""
    lines = [
        "# Python API",
        "",
        "Written by `python -m pipelines.api_reference` from signatures and docstrings. These names stay as long as",
        "the version before the first dot is the same; what is not here may change.",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "from pipelines.shards import ShardReader",
        "",
        'for pack in ShardReader(Path("work/my-sft/prep")):',
        "    pack.tokens, pack.labels, pack.positions, pack.cu_seqlens",
        "```",
    ]
    for part in PARTS:
        lines += ["", f"## {part.title}", "", part.about]
        found = _definitions(part)
        for name in part.names:
            lines += ["", f"### {name}", "", *_described(found[name], part.module)]
    return "\n".join(lines) + "\n"


def _definitions(part: Part) -> dict[str, _Definition]:
    files = part.defined or (f"{part.module.replace('.', '/')}.py",)
    trees = (ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in files)
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, _Definition)}


def _described(node: _Definition, module: str) -> Iterator[str]:
    yield "```python"
    yield f"from {module} import {node.name}"
    if isinstance(node, ast.FunctionDef):
        yield from ["", *_signature(node)]
    yield "```"
    yield from ["", *_text(node)]
    if isinstance(node, ast.ClassDef):
        yield from _members(node)


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Fields with the text below them, and public methods; of a class that is made by hand its __init__ as well."""
    bullets: list[str] = []
    for member, below in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name) and member.target.id[0] != "_":
            text = " ".join(_string(below).split())
            bullets.append(f"- `{member.target.id}: {ast.unparse(member.annotation)}`{': ' if text else ''}{text}")
        elif isinstance(member, ast.FunctionDef) and _is_public(member):
            text = " ".join((ast.get_docstring(member) or "").split("\n\n")[0].split())
            called = " ".join(line.strip() for line in _signature(member))
            if member.name == "__init__":
                called = called.replace("__init__", node.name, 1).removesuffix(" -> None")
            is_field = any(ast.unparse(one).endswith("property") for one in member.decorator_list)
            if is_field:
                called = f"{member.name}: {ast.unparse(member.returns) if member.returns else 'Any'}"
            bullets.append(f"- `{called}`{': ' if text else ''}{text}")
    if bullets:
        yield from ["", *bullets]


def _is_public(member: ast.FunctionDef) -> bool:
    return member.name in ("__init__", "__len__", "__getitem__", "__iter__") or not member.name.startswith("_")


def _signature(node: ast.FunctionDef) -> list[str]:
    arguments = ast.unparse(node.args).removeprefix("self, ").removeprefix("cls, ")
    arguments = "" if arguments in ("self", "cls") else arguments
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"{node.name}({arguments}){returns}"
    return [line] if len(line) <= 110 else textwrap.wrap(line, 110, subsequent_indent="    ", break_long_words=False)


def _text(node: _Definition) -> Iterator[str]:
    """The docstring, its sections as lists."""
    for line in (ast.get_docstring(node) or "").splitlines():
        stripped = line.strip()
        if stripped in _SECTIONS:
            yield from [f"**{stripped.removesuffix(':')}**", ""]
        elif line.startswith("    ") and not line.startswith("     ") and ": " in stripped:
            name, _, about = stripped.partition(": ")
            yield f"- `{name}`: {about}" if " " not in name else f"- {stripped}"
        else:
            yield f"  {stripped}" if line.startswith("     ") else stripped


def _string(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return node.value.value
    return ""


if __name__ == "__main__":
    MARKDOWN.write_text(page(), encoding="utf-8")
