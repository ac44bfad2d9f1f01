"""A config that is a Python file, read as syntax: nothing in it ever runs.

Literals are understood, names bound at the file's top level, `dict(...)`, lists, arithmetic, text put together, and
`if` where its condition is known. Everything else stays as the text that it is.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.migrate.config_tree import ELSEWHERE, MOST_KEYS, Finding, Node, Symbol, Unread, plain

_MOST_BITS = 256  # of a number that arithmetic gives
_MOST_LETTERS = 1 << 16  # of a text that is put together
_LONGEST = 60  # characters of an expression that is shown


def read(path: Path, *, cited: str = "") -> Node:
    """The names that a Python file binds at its top level, and what else it does, as one table.

    Args:
        path: of the file.
        cited: what to begin an error with; by default the path.
    Raises:
        ConfigError: if it cannot be read or is no Python.
    """
    cited = cited or str(path)
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        reader = _Reader()
        for statement in tree.body:
            reader.take(statement)
    except OSError as error:
        raise ConfigError(f"{cited}: {error.strerror}; give a config file") from error
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{cited}: is no Python file ({error})") from error
    except (RecursionError, MemoryError) as error:
        raise ConfigError(f"{cited}: its expressions are nested too deep to be read") from error
    if not reader.names and not reader.others:
        raise ConfigError(f"{cited}: sets nothing; give a config file")
    return Node((), 1, children={**reader.names, **reader.others})


class _NotReadError(Exception):
    """An expression has no value that can be told."""


class _Reader:
    """Follows the statements of a file."""

    def __init__(self) -> None:
        self.names: dict[str | int, Node] = {}
        self.others: dict[str | int, Node] = {}

    def take(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._bind(target, value, statement)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._bind(target, value, statement)
            case ast.AugAssign(target=ast.Name(id=name), op=op, value=value):
                before = ast.copy_location(ast.Name(name, ast.Load()), statement)
                self.names[name] = self._value(ast.copy_location(ast.BinOp(before, op, value), statement), (name,))
            case ast.If(test=test, body=body, orelse=orelse):
                self._branch(test, body, orelse)
            case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.AnnAssign():
                pass
            case ast.Import():
                pass  # its names are symbols
            case ast.ImportFrom(names=names, level=0) if all(one.name != "*" for one in names):
                pass
            case ast.ImportFrom():
                self._other(statement, "decide", ELSEWHERE)
            case ast.With(body=body) if all(isinstance(one, ast.ImportFrom) for one in body):
                for one in body:
                    self._other(one, "decide", ELSEWHERE)
            case _:
                self._forget(statement)
                self._other(statement, "decide", "is code, which is not run; see what it changes")

    def _bind(self, target: ast.expr, value: ast.expr, statement: ast.stmt) -> None:
        match target, value:
            case ast.Name(id=name), _:
                self.names[name] = self._value(value, (name,))
            case ast.Tuple(elts=targets), ast.Tuple(elts=values) if len(targets) == len(values):
                for one, its in zip(targets, values, strict=True):
                    self._bind(one, its, statement)
            case ast.Subscript(value=holder, slice=ast.Constant(value=str() | int() as key)), _:
                try:
                    table = self._value(holder, ()).resolved()
                except _NotReadError:
                    table = Node((), 0)
                if table.children is None:
                    self._other(statement, "decide", "is set by code, which is not run")
                else:
                    table.children[key] = self._value(value, (*table.path, key))
            case _:
                self._forget(statement)
                self._other(statement, "decide", "is set by code, which is not run")

    def _branch(self, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt]) -> None:
        holds = self._condition(test)
        if holds is None:
            for statement in (*body, *orelse):
                self._forget(statement)
                note = f"depends on `{_text(test)}`, which is not known; set what it comes to"
                self._other(statement, "decide", note)
            return
        for statement in body if holds else orelse:
            self.take(statement)
        for statement in orelse if holds else body:
            self._other(statement, "dropped", "stands in a branch that the file does not take")

    def _condition(self, test: ast.expr) -> bool | None:
        """Whether a condition holds; None where that cannot be told."""
        for one in ast.walk(test):
            if isinstance(one, ast.Name) and one.id in self.names:
                self.names[one.id].chooses = True
        try:
            return bool(self._known(test))
        except _NotReadError:
            return None

    def _other(self, statement: ast.stmt, verdict: Any, note: str) -> None:
        name = f"line {statement.lineno}: {_text(statement)}"
        finding = Finding(verdict, (), note)
        self.others[name] = Node((name,), statement.lineno, Unread(_text(statement)), finding=finding)

    def _forget(self, statement: ast.stmt) -> None:
        """What a statement that is not followed may bind has no known value any more."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
                finding = Finding("decide", (), "is bound by code, which is not run; set what it comes to")
                self.names[node.id] = Node((node.id,), statement.lineno, Unread(_text(statement)), finding=finding)

    def _value(self, expression: ast.expr, path: tuple[str | int, ...]) -> Node:
        node = Node(path, getattr(expression, "lineno", 1))
        match expression:
            case ast.Name(id=name) if name in self.names:
                node.alias = self.names[name]
            case ast.Subscript(value=holder, slice=ast.Constant(value=key)) if found := self._element(holder, key):
                node.alias = found
            case ast.Name() | ast.Attribute() if name := _dotted(expression):
                node.value = Symbol(name)
            case ast.List(elts=items) | ast.Tuple(elts=items):
                node.is_list = True
                node.children = {index: self._value(item, (*path, index)) for index, item in enumerate(items)}
            case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
                node.children = dict(self._entries([(word.arg, word.value) for word in words], path))
            case ast.Dict(keys=keys, values=values) if all(key is None or _is_name(key) for key in keys):
                named = [getattr(key, "value", None) for key in keys]
                node.children = dict(self._entries(list(zip(named, values, strict=True)), path))
            case ast.IfExp(test=test, body=body, orelse=orelse) if (holds := self._condition(test)) is not None:
                return self._value(body if holds else orelse, path)
            case ast.BinOp(left=left, op=ast.Add(), right=right) if joined := self._joined(left, right, path):
                node.is_list, node.children = True, joined
            case _:
                self._compute(expression, node)
        return node

    def _entries(
        self, pairs: Sequence[tuple[str | int | None, ast.expr]], path: tuple[str | int, ...]
    ) -> Iterator[tuple[str | int, Node]]:
        for name, value in pairs:
            if name is not None:
                yield name, self._value(value, (*path, name))
                continue
            below = self._value(value, path)
            if below.items() and not below.resolved().is_list:
                yield from below.items().items()
            else:
                text = f"**{_text(value)}"
                yield text, Node((*path, text), value.lineno, Unread(text))

    def _joined(self, left: ast.expr, right: ast.expr, path: tuple[str | int, ...]) -> dict[str | int, Node] | None:
        first = self._value(left, path)
        if not first.resolved().is_list:
            return None
        count = len(first.items())
        if isinstance(right, ast.List | ast.Tuple):
            behind = [self._value(item, (*path, count + index)) for index, item in enumerate(right.elts)]
        elif (second := self._value(right, path)).resolved().is_list:
            behind = [*second.items().values()]
        else:
            return None
        return dict(enumerate([*first.items().values(), *behind])) if count + len(behind) <= MOST_KEYS else None

    def _element(self, holder: ast.expr, key: object) -> Node | None:
        if not isinstance(key, str | int) or not isinstance(holder, ast.Name | ast.Subscript):
            return None
        return self._value(holder, ()).items().get(key)

    def _compute(self, expression: ast.expr, node: Node) -> None:
        named = {one.id: None for one in ast.walk(expression) if isinstance(one, ast.Name) and one.id in self.names}
        node.uses = tuple(self.names[name] for name in named)
        try:
            node.value = self._known(expression)
        except _NotReadError:
            node.value = Unread(_text(expression))

    def _known(self, expression: ast.expr) -> Any:
        """The value of an expression of numbers and text.

        Raises:
            _NotReadError: if it has none that can be told without running code.
        """
        match expression:
            case ast.Constant(value=None | bool() | int() | float() | str() as value):
                return value
            case ast.Name() | ast.Subscript():
                return self._scalar(expression)
            case ast.UnaryOp(op=op, operand=operand):
                return _unary(op, self._known(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return _binary(op, self._known(left), self._known(right))
            case ast.BoolOp(op=op, values=values):
                parts = [self._known(value) for value in values]
                return all(parts) if isinstance(op, ast.And) else any(parts)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _compared(op, self._known(left), self._known(right))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self._known(body if self._known(test) else orelse)
            case ast.JoinedStr(values=values):
                return _together([self._piece(value) for value in values])
            case ast.Call(func=function, args=arguments, keywords=words):
                return self._called(function, [self._known(one) for one in arguments], words)
        raise _NotReadError

    def _scalar(self, expression: ast.Name | ast.Subscript) -> Any:
        found: Node | None = None
        if isinstance(expression, ast.Name):
            found = self.names.get(expression.id)
        elif isinstance(expression.slice, ast.Constant):
            found = self._element(expression.value, expression.slice.value)
        if found is None or found.resolved().children is not None or isinstance(plain(found), Symbol | Unread):
            raise _NotReadError
        return plain(found)

    def _piece(self, value: ast.expr) -> str:
        if isinstance(value, ast.FormattedValue) and value.format_spec is None and value.conversion == -1:
            return str(self._known(value.value))
        return str(self._known(value))

    def _called(self, function: ast.expr, arguments: list[Any], words: list[ast.keyword]) -> Any:
        if isinstance(function, ast.Name) and function.id in _FUNCTIONS and not words:
            try:
                return _FUNCTIONS[function.id](*arguments)
            except (TypeError, ValueError, OverflowError) as error:
                raise _NotReadError from error
        if isinstance(function, ast.Attribute) and function.attr == "format":
            text = self._known(function.value)
            if isinstance(text, str):
                return _formatted(text, arguments, {word.arg or "": self._known(word.value) for word in words})
        if _dotted(function) in ("os.path.join", "osp.join") and all(isinstance(one, str) for one in arguments):
            return str(Path(*arguments))
        raise _NotReadError


def _is_name(key: ast.expr | None) -> bool:
    return isinstance(key, ast.Constant) and isinstance(key.value, str | int)


def _dotted(expression: ast.expr) -> str:
    match expression:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attr) if holder := _dotted(value):
            return f"{holder}.{attr}"
    return ""


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _unary(op: ast.unaryop, value: Any) -> Any:
    if isinstance(op, ast.Not):
        return not value
    if isinstance(value, int | float):
        return -value if isinstance(op, ast.USub) else +value if isinstance(op, ast.UAdd) else _refuse()
    return _refuse()


def _binary(op: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(op, ast.Add) and isinstance(left, str) and isinstance(right, str):
        return _together([left, right])
    work = _OPERATIONS.get(type(op))
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    if work is None or not numbers or _bits(op, left, right) > _MOST_BITS:
        return _refuse()
    try:
        return work(left, right)
    except ArithmeticError:
        return _refuse()


def _bits(op: ast.operator, left: Any, right: Any) -> float:
    """An upper bound of the size of a result, known before there is one."""
    sizes = [one.bit_length() if isinstance(one, int) else 64 for one in (left, right)]
    return sizes[0] * max(1, abs(right)) if isinstance(op, ast.Pow) else sum(sizes)


def _compared(op: ast.cmpop, left: Any, right: Any) -> bool:
    work = _COMPARISONS.get(type(op))
    if work is None:
        return bool(_refuse())
    try:
        return bool(work(left, right))
    except TypeError:
        return bool(_refuse())


def _formatted(text: str, arguments: list[Any], words: Mapping[str, Any]) -> str:
    fields = re.findall(r"\{([^{}]*)\}", text)
    if len(fields) * max((len(str(one)) for one in (*arguments, *words.values())), default=0) > _MOST_LETTERS:
        return str(_refuse())
    if "{{" in text or "}}" in text or any(not re.fullmatch(r"\w*", one) for one in fields):
        return str(_refuse())
    try:
        return text.format(*arguments, **words)
    except (IndexError, KeyError, ValueError):
        return str(_refuse())


def _together(texts: list[str]) -> str:
    return "".join(texts) if sum(map(len, texts)) <= _MOST_LETTERS else str(_refuse())


def _refuse() -> Any:
    raise _NotReadError


_OPERATIONS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "round": round,
    "abs": abs,
    "max": max,
    "min": min,
}
