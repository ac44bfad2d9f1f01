"""The Jinja environment of chat templates, as Transformers has it, but without a clock and without chance.

A template renders `Elsewhere`, or `Here` in a process that may be lost; either way it takes no more than `Bounds`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from types import TracebackType
from typing import Any, Protocol

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipelines.bounds import USUAL, Bounds, Held, RunawayTemplate
from pipelines.template_process import Render, TemplateFault, TemplateProcess
from prep.conversation import Json

MARKS = "_generation_marks"
"""Name under which a template is given the pair of marks that `{% generation %}` blocks are put between."""


class Rendering(Protocol):
    """A compiled template."""

    def within(self, bounds: Bounds) -> AbstractContextManager[None]:
        """All renderings of a `with` block together stay within the bounds.

        Raises:
            RunawayTemplate: where they do not.
        """

    def render(self, values: Mapping[str, Any]) -> str:
        """The text that the template makes of values; within `within`.

        Raises:
            TemplateFault: if the template refuses them.
            RunawayTemplate: if it takes too much.
        """


class Elsewhere:
    """Rendered by a process that all templates of this one share.

    Args:
        source: the template's text.
        name: what an error calls it.
    Raises:
        TemplateFault: if it is no template.
        RunawayTemplate: if to find that out takes too much.
    """

    def __init__(self, source: str, name: str) -> None:
        self._source, self._name = source, name
        self._bounds, self._left = USUAL, USUAL.seconds
        _process().compile(source, name)

    @contextmanager
    def within(self, bounds: Bounds) -> Iterator[None]:
        self._bounds, self._left = bounds, bounds.seconds
        yield

    def render(self, values: Mapping[str, Any]) -> str:
        if self._left <= 0:
            raise RunawayTemplate.of_time(self._name, self._bounds)
        text, seconds = _process().render(self._source, values, self._bounds.for_rest(self._left), self._name)
        self._left -= seconds
        return text


class Here:
    """Rendered by this process, which the kernel ends when the time is up; arguments and errors are `Elsewhere`'s."""

    def __init__(self, source: str, name: str) -> None:
        self._name, self._bounds = name, USUAL
        with _held()(USUAL):
            self._render = compiled(source)

    def within(self, bounds: Bounds) -> "_Within":
        self._bounds = bounds
        return _Within(self._name, bounds)

    def render(self, values: Mapping[str, Any]) -> str:
        text = self._render(values)
        if len(text) > self._bounds.text:
            raise RunawayTemplate.of_text(self._name, self._bounds)
        return text


class _Within:
    """A `with` block of `Here`; entered once for every record, so a class and no generator."""

    __slots__ = ("_bounds", "_name")

    def __init__(self, name: str, bounds: Bounds) -> None:
        self._name, self._bounds = name, bounds

    def __enter__(self) -> None:
        _held()(self._bounds).__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _held().__exit__(kind, error, traceback)
        if isinstance(error, MemoryError):
            raise RunawayTemplate.of_memory(self._name, self._bounds) from None


def compiled(source: str) -> Render:
    """A template's text to what renders it; both raise `TemplateFault`, and neither is held to any bounds."""
    try:
        template = environment().from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise TemplateFault("syntax", str(error.message), error.lineno) from error
    except MemoryError:
        raise
    except Exception as error:  # Python's own compiler gives up on what is nested too deep
        raise TemplateFault("syntax", f"{type(error).__name__}: {error}", 1) from error

    def render(values: Mapping[str, Any]) -> str:
        try:
            return template.render(**values)
        except jinja2.UndefinedError as error:
            raise TemplateFault("undefined", str(error)) from error
        except jinja2.TemplateError as error:
            raise TemplateFault("refused", str(error)) from error
        except MemoryError:
            raise
        except Exception as error:  # a template can raise whatever its expressions raise
            raise TemplateFault("failed", f"{type(error).__name__}: {error}") from error

    return render


def environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are compiled and rendered in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    del environment.globals["lipsum"], environment.filters["random"]  # no chance in data
    return environment


def to_json(
    value: Json,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` filter: JSON as it is, where Jinja's own escapes it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}`: what the model generates, put between two marks."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        marks = jinja2.nodes.ContextReference()
        return jinja2.nodes.CallBlock(self.call_method("_mark", [marks]), [], [], body).set_lineno(line)

    def _mark(self, context: jinja2.runtime.Context, caller: jinja2.runtime.Macro) -> str:
        before, after = context[MARKS]
        return f"{before}{caller()}{after}"


class _Dict:
    """`dict` without the attributes of a class."""

    def __call__(self, *args: Any, **values: Any) -> dict[str, Any]:
        return dict(*args, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` without names that begin with an underscore, as Transformers has it."""

    def __init__(*args: Any, **values: Any) -> None:  # a template may call a value self
        self, rest = args[0], args[1:]
        given = dict(*rest, **values)
        for name in given:
            _plain_name(name)
        jinja2.utils.Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        _plain_name(name)
        super().__setitem__(name, value)


def _plain_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace takes no name with an underscore before it: {name!r}")


@cache
def _process() -> TemplateProcess:
    """The one that renders for this process."""
    return TemplateProcess("prep.jinja:compiled")


@cache
def _held() -> Held:
    return Held()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
