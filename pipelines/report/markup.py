"""HTML whose text cannot be anything but text: what is not markup already is escaped when it is put in."""

from collections.abc import Iterable
from html import escape

from pipelines.terminal import printable

_VOID = frozenset({"meta", "path", "line", "rect"})
"""Elements without content: of HTML, and the shapes of SVG, which close themselves."""
_SHAPES = frozenset({"path", "line", "rect"})


class Markup(str):
    """Text that is HTML; any other `str` is content to escape."""

    __slots__ = ()


def text(content: object) -> Markup:
    """Content as HTML. Characters that hide or turn text around are shown as escapes: a name is what it looks like."""
    return content if isinstance(content, Markup) else Markup(escape(printable(str(content), keep="\n\t")))


def element(name: str, /, *content: object, **attributes: object) -> Markup:
    """One element. An attribute that is None is left out.

    `class_` is class, and other underscores in the name of an attribute are hyphens.
    """
    given = "".join(
        f' {_attribute(key)}="{text(str(value))}"' for key, value in attributes.items() if value is not None
    )
    if name in _VOID:
        assert not content
        return Markup(f"<{name}{given}{'/' if name in _SHAPES else ''}>")
    return Markup(f"<{name}{given}>{''.join(map(text, content))}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(map(text, parts)))


def raw(content: str) -> Markup:
    """Our own HTML, style or script as it stands."""
    return Markup(content)


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
