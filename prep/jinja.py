"""The Jinja environment of chat templates, as Transformers has it, but without a clock and without chance."""

import json

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prep.conversation import Json

MARKS = "_generation_marks"
"""Name under which a template is given the pair of marks that `{% generation %}` blocks are put between."""


def environment() -> ImmutableSandboxedEnvironment:
    """What chat templates are compiled and rendered in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _raise
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


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
