"""Another trainer's config as a tree: every key with its line, its value, and what became of it here."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pipelines.toml_text import spell_key

ELSEWHERE = "what it brings does not stand in this file; migrate that file as well, and join the two"
"""What is said of a line that reads another file."""
Verdict = Literal["mapped", "same", "dropped", "decide"]
"""mapped: a key here says it; same: it is so here without a key; dropped: for a reason; decide: for the user to do."""


@dataclass(frozen=True)
class Symbol:
    """A name that a library gives a meaning to, such as `torch.float16`."""

    name: str

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Unread:
    """An expression that is not understood, as it is written."""

    text: str


class Finding(NamedTuple):
    """What became of a key."""

    verdict: Verdict
    keys: tuple[str, ...] = ()
    """Those here that it turned into."""
    note: str = ""


@dataclass(eq=False)
class Node:
    """One key of a config: a value, or a table or list of nodes."""

    path: tuple[str | int, ...]
    line: int
    value: Any = None
    """None, true or false, a number, text, a Symbol or an Unread; None for a table and a list."""
    children: dict[str | int, "Node"] | None = None
    is_list: bool = False
    alias: "Node | None" = None
    """What a key stands for that is only another key's name."""
    uses: tuple["Node", ...] = ()
    """The names that its expression reads."""
    chooses: bool = False
    """It decides which branch of the file is taken."""
    finding: Finding | None = None

    @property
    def key(self) -> str:
        return spell_key(self.path)

    def resolved(self) -> "Node":
        """The node that holds the value."""
        node = self
        while node.alias is not None:
            node = node.alias
        return node

    def at(self, path: str) -> "Node | None":
        """What stands at `a.b.0` below; None where nothing does."""
        node: Node | None = self
        for part in path.split(".") if path else ():
            held = node.resolved().children if node else None
            node = held.get(int(part) if part.isdecimal() else part) if held else None
        return node

    def get(self, path: str) -> Any:
        """The value at a path, lists and tables as Python's; None where there is none."""
        node = self.at(path)
        return plain(node) if node else None

    def items(self) -> Mapping[str | int, "Node"]:
        return self.resolved().children or {}

    @property
    def is_leaf(self) -> bool:
        return not self.children

    def leaves(self) -> Iterator["Node"]:
        """Every key below that holds a value, as the file has it: names of other keys are not followed."""
        if self.is_leaf:
            yield self
        for child in (self.children or {}).values():
            yield from child.leaves()


def listed(node: Node | None) -> list[Node]:
    """The entries of a list; none where there is no list."""
    return [*node.items().values()] if node is not None and node.resolved().is_list else []


def plain(node: Node) -> Any:
    """What a node holds, lists and tables as Python's; an Unread where tables that hold each other would never end."""
    try:
        return _plain(node, [MOST_KEYS], _DEEPEST)
    except OverflowError:
        return Unread(f"{node.key}, which is too large to be spelt out")


MOST_KEYS = 20_000
"""Of a config; names and anchors let a small file mean more than fits anywhere."""
_DEEPEST = 100


def _plain(node: Node, left: list[int], depth: int) -> Any:
    node = node.resolved()
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        raise OverflowError
    if node.children is None:
        return node.value
    if node.is_list:
        return [_plain(child, left, depth - 1) for child in node.children.values()]
    return {key: _plain(child, left, depth - 1) for key, child in node.children.items()}
