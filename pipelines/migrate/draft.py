"""The pipeline that a config becomes, key by key, with where each came from."""

import math
import re
from collections.abc import Callable, Hashable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import tomli
from pydantic import ValidationError

from pipelines import foreign
from pipelines.complaints import complaints
from pipelines.errors import ConfigError
from pipelines.keys import find, is_known
from pipelines.migrate.config_tree import ELSEWHERE, Finding, Node, Symbol, Unread, Verdict, plain
from pipelines.schema import Pipeline
from pipelines.toml_file import Written, toml_file
from pipelines.toml_text import KeyPath, spell_key, spell_value, value_at

_ITSELF: Any = object()
_THROUGH = "through "
_HALF = re.compile(r"[\ud800-\udfff]")  # of a surrogate pair: Python and YAML can spell it, TOML cannot


class Draft:
    """A pipeline being written from the keys of a config.

    Every key of the config is given one finding: by a method here, or by `close` if none did.

    Args:
        config: the whole of it.
        trainer: whose it is, by the name that people know.
        name: of the file.
    """

    def __init__(self, config: Node, *, trainer: str, name: str) -> None:
        self.config = config
        self.trainer = trainer
        self.name = name
        self.keys: dict[KeyPath, Written] = {("schema_version",): Written(1)}
        self.notes: list[str] = []
        """What to know that is about no single key of theirs."""

    def put(self, key: str, value: Any, comment: str = "") -> None:
        """Write a key that no key of theirs says; not where it is written, or is the default here."""
        if not _is_default(_path(key), value):
            self.keys.setdefault(_path(key), Written(value, comment))

    def unsaid(self, key: str, value: Any, why: str) -> None:
        """Write what theirs comes to where it does not say it; for the user to decide where it reads other files."""
        if _path(key) in self.keys:
            return
        if any(leaf.finding and leaf.finding.note == ELSEWHERE for leaf in self.config.leaves()):
            self.ask(key, value, f"{why}, unless the files that it reads say otherwise")
        else:
            self.put(key, value, why)

    def ask(self, key: str, value: Any, why: str) -> None:
        """Write a key that the user has to set, with something that stands for it."""
        self.keys[_path(key)] = Written(value, f"decide: {why}")
        self.notes.append(f"{key}: {why}")

    def map(self, node: Node | None, key: str, value: Any = _ITSELF, *, note: str = "", keep: bool = False) -> None:
        """Write what a key of theirs says.

        Args:
            node: theirs; nothing happens where there is none.
            key: ours.
            value: in our terms, where it is not the same.
            note: for the report and behind the key.
            keep: write it even if it is the default here.
        """
        if node is None:
            return
        value = plain(node) if value is _ITSELF else value
        if value is None:
            self.same(node, "not set")
            return
        if not _is_known(value):
            self.decide(node, f"{_shown(value)} is not known; set {key} to what it comes to")
            return
        if _is_default(_path(key), value) and not keep:
            told = f"{key} = {_spelt(value)} is the default" + (f"; {note}" if note else "")
            _find(node, Finding("same", (key,), told))
            return
        earlier = self.keys.get(_path(key))
        comment = f"was: {node.key}" + (f"; {note}" if note else "")
        if earlier and earlier.value == value and earlier.comment.startswith("was: "):
            comment = earlier.comment if node.key in earlier.comment else f"{earlier.comment}, {node.key}"
        self.keys[_path(key)] = Written(value, comment)
        _find(node, Finding("mapped", (key,), note))

    def same(self, node: Node | None, note: str) -> None:
        """Keys that are so here without a key."""
        self._whole(node, Finding("same", (), note))

    def drop(self, node: Node | None, reason: str) -> None:
        """Keys that have no counterpart, or no effect."""
        self._whole(node, Finding("dropped", (), reason))

    def decide(self, node: Node | None, what: str) -> None:
        """Keys that the user has to see to."""
        self._whole(node, Finding("decide", (), what))

    def rules(self, table: Node | None, rules: "Mapping[str, Rule]") -> None:
        """Apply rules by the path of a key below a table; keys that have a finding keep it."""
        for path, rule in rules.items() if table else ():
            node = table.at(path) if table else None
            if node is not None and any(leaf.finding is None for leaf in node.leaves()):
                rule(self, node)

    def _whole(self, node: Node | None, finding: Finding) -> None:
        for leaf in node.leaves() if node else ():
            if leaf.finding is None:
                leaf.finding = finding

    def close(self, *, unused: Callable[[Node], Finding]) -> None:
        """Give every key a finding that has none yet.

        A name follows what uses it, and a key that is another's name is where that one is.

        Args:
            unused: what to say of a top-level key that no other key uses, and no rule knows.
        """
        users = _users(self.config)
        leaves = [*dict.fromkeys(self.config.leaves())]
        while ready := _ready(leaves, users):
            for leaf, found in ready:
                leaf.finding = _inherited(leaf, found)
        for leaf in leaves:
            if leaf.finding is None and leaf.chooses:
                leaf.finding = Finding("same", (), "it chooses between lines of the file")
            elif leaf.finding is None:
                leaf.finding = unused(leaf)

    def text(self) -> str:
        """The TOML.

        Raises:
            ConfigError: if it is none that the schema takes, with what is wrong.
        """
        while problems := list(_problems(self.keys)):
            if not sum(self._give_up(path, finding) for path, finding in problems):
                raise ConfigError(*(f"{self.name}: {spell_key(path)}: {finding}" for path, finding in problems))
        asked = [(leaf.key, leaf.finding) for leaf in self.config.leaves() if leaf.finding]
        decisions = [
            f"{key}: {finding.note}"
            for key, finding in asked
            if finding.verdict == "decide" and not finding.note.startswith(_THROUGH)
        ] + self.notes
        head = [f"From {self.name}, a config of {self.trainer}, by `packtrain migrate`."]
        if decisions:
            head += ["To decide:", *(f"- {one}" for one in decisions)]
        return toml_file(self.keys, head=head)

    def _give_up(self, path: KeyPath, finding: str) -> bool:
        """Leave out a key that the schema refuses; whose it was, the user has to decide."""
        if path not in self.keys:
            of_source = path[:2] == ("prep", "source") and path[-1] == "path"
            needed = (spell_key(path), "data") if of_source else _NEEDED.get(path)
            if needed is None:
                return False
            key, value = needed
            self.ask(key, value, f"{self.name} does not say it")
            return True
        value = self.keys.pop(path).value
        for leaf in self.config.leaves():
            if leaf.finding and spell_key(path) in leaf.finding.keys:
                what = f"{spell_key(path)} = {_spelt(value)} is refused: {finding}"
                leaf.finding = Finding("decide", (), what)
        return True


Rule = Callable[[Draft, Node], None]
"""What to do with one key of theirs."""


Conversion = Mapping[Any, Any] | Callable[[Any], Any]


def to(key: str, convert: Conversion | None = None, note: str = "", *, keep: bool = False) -> Rule:
    """It is this key here, of the converted value. A value that the conversion does not have is for the user."""

    def rule(draft: Draft, node: Node) -> None:
        value = plain(node)
        if value is None:
            draft.same(node, "not set")
            return
        if callable(convert):
            value = convert(value) if _is_known(value) else value
        elif convert is not None:
            named = value.last if isinstance(value, Symbol) else value
            if not isinstance(named, Hashable) or named not in convert:
                draft.decide(node, f"{_shown(value)} has no counterpart; see {key}")
                return
            value = convert[named]
        draft.map(node, key, value, note=note, keep=keep)

    return rule


def drops(reason: str) -> Rule:
    return lambda draft, node: draft.drop(node, reason)


def same(note: str) -> Rule:
    return lambda draft, node: draft.same(node, note)


def asks(what: str) -> Rule:
    return lambda draft, node: draft.decide(node, what)


def only(value: Any, note: str, otherwise: str) -> Rule:
    """One value, or none at all, is how it is here; any other is for the user."""

    def rule(draft: Draft, node: Node) -> None:
        found = plain(node)
        is_so = found is None or found in (value if isinstance(value, tuple) else (value,))
        (draft.same if is_so and not isinstance(found, Unread) else draft.decide)(node, note if is_so else otherwise)

    return rule


def known_elsewhere(node: Node) -> Finding:
    """What the table of other trainers' names says of a key that no rule knows."""
    found = foreign.lookup(tuple(str(part) for part in node.path))
    if plain(node) is None and not node.children:
        return Finding("same", (), "not set")
    if found is None:
        return Finding("decide", (), "packtrain knows no such key; see what it does there")
    if not found.key:
        return Finding("dropped", (), found.note)
    text = f"{found.key} is the key here" + ("" if is_known(tuple(found.key.split("."))) else ", not supported yet")
    return Finding("decide", (), f"{text}; {found.note}" if found.note else text)


_NEEDED: Mapping[KeyPath, tuple[str, Any]] = {
    ("model",): ("model.name_or_path", "models/base"),
    ("prep", "pack"): ("prep.pack.capacity", 32_768),
    ("prep", "pack", "capacity"): ("prep.pack.capacity", 32_768),
    ("train", "global_batch_size"): ("train.global_batch_size", 64),
    ("train", "optimizer"): ("train.optimizer.lr", 2e-5),
    ("train", "optimizer", "lr"): ("train.optimizer.lr", 2e-5),
    ("tokenizer", "name_or_path"): ("tokenizer.name_or_path", "tokenizer"),
}
"""Keys that a pipeline has to have, by what is missing without them, and what stands for them."""
_STRONGEST: tuple[Verdict, ...] = ("mapped", "decide", "same", "dropped")


def _find(node: Node, finding: Finding) -> None:
    for leaf in node.leaves():
        leaf.finding = finding


_Readers = list[tuple[Node, Finding]]
"""Keys that read a name, and what became of them."""


def _ready(leaves: list[Node], users: Mapping[int, list[Node]]) -> list[tuple[Node, _Readers]]:
    """Keys without a finding whose users have one, all of them where there are such keys."""
    whole, part = [], []
    for leaf in leaves:
        if leaf.finding is None:
            reading = users.get(id(leaf), [])
            found = [(user, user.finding) for user in reading if user.finding]
            named = leaf.alias is not None and any(one.finding for one in leaf.resolved().leaves())
            if named or (found and len(found) == len(reading)):
                whole.append((leaf, found))
            elif found:
                part.append((leaf, found))
    return whole or part


def _inherited(leaf: Node, readers: _Readers) -> Finding:
    """What becomes of a name, by what becomes of those that read it."""
    if leaf.alias is not None and any(one.finding for one in leaf.resolved().leaves()):
        return Finding("same", (), f"it is {leaf.alias.key}, which stands by itself")
    reader, finding = min(readers, key=lambda one: _STRONGEST.index(one[1].verdict))
    if finding.note.startswith(_THROUGH):
        return finding
    note = finding.note if finding.verdict in ("dropped", "decide") else ""
    return Finding(finding.verdict, finding.keys, f"{_THROUGH}{reader.key}" + (f": {note}" if note else ""))


def _users(config: Node) -> Mapping[int, list[Node]]:
    """Which keys read each name: directly, or through a name that was bound again since."""
    users: dict[int, list[Node]] = {}
    leaves = [*dict.fromkeys(config.leaves())]
    present = {id(leaf) for leaf in leaves}

    for user in leaves:
        seen: set[int] = set()
        following = [user]
        while following:
            node = following.pop()
            for name in (*node.uses, *((node.alias,) if node.alias else ())):
                if id(name) in seen:
                    continue
                seen.add(id(name))
                for leaf in name.leaves():
                    users.setdefault(id(leaf), []).append(user)
                if id(name) not in present:
                    following.append(name)
    return users


def _path(key: str) -> KeyPath:
    return tuple(int(part) if part.isdecimal() else part for part in key.split("."))


def _is_default(path: KeyPath, value: Any) -> bool:
    key = find(path)
    if key is None or key.required or key.table:
        return False
    default = key.field.default
    if isinstance(default, Path):
        default = str(default)
    if isinstance(default, tuple):
        default = list(default)
    return (type(value) is type(default) and bool(value == default)) or _is_number(value, default)


def _is_number(value: Any, default: Any) -> bool:
    numbers = all(isinstance(one, int | float | Decimal) and not isinstance(one, bool) for one in (value, default))
    try:
        return numbers and float(value) == float(default)
    except OverflowError:  # of hundreds of digits
        return False


def _is_known(value: Any) -> bool:
    """Whether TOML can say it."""
    match value:
        case dict():
            return all(map(_is_known, (*value, *value.values())))
        case list():
            return all(map(_is_known, value))
        case float():
            return math.isfinite(value)
        case str():
            return not _HALF.search(value)
    return value is not None and not isinstance(value, Symbol | Unread)


def _shown(value: Any) -> str:
    match value:
        case Symbol(name=text) | Unread(text=text):
            return text
    return _spelt(value)


def _spelt(value: Any) -> str:
    return spell_value(value)


def _problems(keys: Mapping[KeyPath, Written]) -> Iterator[tuple[KeyPath, str]]:
    """What the schema refuses: by the key that is written, where there is one."""
    document = tomli.loads(toml_file(keys), parse_float=Decimal)
    try:
        Pipeline.model_validate(document, context={"base": Path(), "places": {}})
    except ValidationError as error:
        for path, finding in complaints(error, document):
            yield _written(keys, path, document), finding


def _written(keys: Mapping[KeyPath, Written], path: KeyPath, document: Any) -> KeyPath:
    """The key that a complaint is about, or else the first of its table; what is missing is itself."""
    for end in range(len(path), 0, -1):
        if path[:end] in keys:
            return path[:end]
    if path in _NEEDED and tuple(_NEEDED[path][0].split(".")) not in keys:
        return path
    try:
        value_at(document, path)
    except KeyError:
        return path
    return next((key for key in keys if key[: len(path)] == path), path)
