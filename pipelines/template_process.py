"""A process of its own that compiles and renders chat templates, and may be lost when one takes too much.

It gets the values of a rendering and gives back text or a reason, so what asks has neither the template's code nor its
memory.
"""

import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from threading import Lock
from time import process_time
from typing import IO, Any

from pipelines.bounds import USUAL, Bounds, Held, RunawayTemplate

Render = Callable[[Mapping[str, Any]], str]
Compile = Callable[[str], Render]
"""A template's text to what renders it. Both raise `TemplateFault`."""

_REPLY = struct.Struct(">BdQ")
"""Kind, seconds spent, bytes that follow."""
_TEXT, _FAULT, _MEMORY, _LONG = range(4)
_CHILD = """
import sys
compiler, *sys.path = sys.argv[1:]
from pipelines.template_process import main
main(compiler)
"""


class TemplateFault(Exception):  # noqa: N818 (the word that records have for it)
    """What a template refuses or cannot do.

    Args:
        kind: "syntax", "undefined" (a name it uses), "refused" (by the template itself) or "failed".
        message: in Jinja's words.
        line: of the template, where it is known, or 0.
    """

    def __init__(self, kind: str, message: str, line: int = 0) -> None:
        super().__init__(kind, message, line)
        self.kind, self.message, self.line = kind, message, line


class TemplateProcess:
    """Renders templates elsewhere. The process starts with the first use, and again after it was lost.

    Args:
        compiler: MODULE:FUNCTION, a `Compile`.
    """

    def __init__(self, compiler: str) -> None:
        self._compiler = compiler
        self._child: subprocess.Popen[bytes] | None = None
        self._parent = 0
        """Who started it: a copy of that process, made by fork, has no claim to it."""
        self._known: dict[str, int] = {}
        """Templates that the process has compiled, with their numbers."""
        self._lock = Lock()
        self._end: Callable[[], object] | None = None

    def compile(self, source: str, name: str) -> None:
        """Find out whether a template is one.

        Args:
            source: its text.
            name: what an error calls it.
        Raises:
            TemplateFault: if it is not.
            RunawayTemplate: if that takes too much.
        """
        with self._lock:
            self._number(source, name)

    def render(self, source: str, values: Mapping[str, Any], bounds: Bounds, name: str) -> tuple[str, float]:
        """The text that a template makes of values, and the processor seconds it took.

        Raises:
            TemplateFault: if the template refuses them.
            RunawayTemplate: if it takes more than the bounds.
        """
        try:
            request = pickle.dumps(values)
        except (pickle.PicklingError, TypeError, AttributeError) as error:  # a map of the user's own gives anything
            raise TemplateFault("failed", f"{type(error).__name__}: {error}") from error
        with self._lock:
            return self._ask((self._number(source, name), request, bounds), bounds, name)

    def _number(self, source: str, name: str) -> int:
        if self._child is None or self._parent != os.getpid():
            self._start()
        if source not in self._known:
            self._ask(source, USUAL, name)
            self._known[source] = len(self._known)
        return self._known[source]

    def _ask(self, request: Any, bounds: Bounds, name: str) -> tuple[str, float]:
        assert self._child is not None
        try:
            kind, seconds, content = self._exchange(self._child, pickle.dumps(request))
        except (OSError, EOFError):
            raise self._lost(bounds, name) from None
        except BaseException:  # Ctrl-C in the middle of an answer, which nobody will read
            self._stop()
            raise
        if kind == _MEMORY:
            self._stop()  # what it still holds would count against the next
            raise RunawayTemplate.of_memory(name, bounds)
        if kind == _LONG:
            raise RunawayTemplate.of_text(name, bounds)
        text = content.decode("utf-8", "surrogatepass")
        if kind == _FAULT:
            what, line, message = text.split("\n", 2)
            raise TemplateFault(what, message, int(line))
        return text, seconds

    def _exchange(self, child: "subprocess.Popen[bytes]", request: bytes) -> tuple[int, float, bytes]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(struct.pack(">Q", len(request)))
        child.stdin.write(request)
        child.stdin.flush()
        kind, seconds, length = _REPLY.unpack(_read(child.stdout, _REPLY.size))
        return kind, seconds, _read(child.stdout, length)

    def _lost(self, bounds: Bounds, name: str) -> RunawayTemplate:
        assert self._child is not None
        with suppress(OSError):  # what was not sent is lost with it
            self._child.stdin.close()  # type: ignore[union-attr]  # a pipe, as it was started
        code = self._child.wait()
        self._stop()
        if code == -signal.SIGPROF:
            return RunawayTemplate.of_time(name, bounds)
        why = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return RunawayTemplate(name, f"ends the process that renders it ({why})")

    def _start(self) -> None:
        # Ctrl-C is for the process that asks; this one ends when nobody asks any more.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            command = [sys.executable, "-c", _CHILD, self._compiler, *sys.path]
            child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603 (this Python)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._child, self._known, self._parent = child, {}, os.getpid()
        self._end = weakref.finalize(self, _finish, child, self._parent)

    def _stop(self) -> None:
        assert self._end is not None
        self._end()
        self._child = None


def main(compiler: str) -> None:
    """Answer requests until nobody asks any more."""
    module, _, function = compiler.partition(":")
    compiled: Compile = getattr(import_module(module), function)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    held, renders = Held(), list[Render]()
    while size := requests.read(8):
        request = pickle.loads(_read(requests, *struct.unpack(">Q", size)))  # noqa: S301 (of who started this process)
        began = process_time()
        kind, text = _answer(request, compiled, renders, held)
        content = text.encode("utf-8", "surrogatepass")
        replies.write(_REPLY.pack(kind, process_time() - began, len(content)))
        replies.write(content)
        replies.flush()


def _answer(request: Any, compiled: Compile, renders: list[Render], held: Held) -> tuple[int, str]:
    try:
        if isinstance(request, str):
            with held(USUAL):
                renders.append(compiled(request))
            return _TEXT, ""
        number, values, bounds = request
        values = pickle.loads(values)  # noqa: S301 (the same)
        with held(bounds):
            text = renders[number](values)
        return (_TEXT, text) if len(text) <= bounds.text else (_LONG, "")
    except TemplateFault as fault:
        return _FAULT, f"{fault.kind}\n{fault.line}\n{fault.message}"
    except MemoryError:
        return _MEMORY, ""


def _read(stream: IO[bytes], size: int) -> bytes:
    found = stream.read(size)
    if len(found) < size:
        raise EOFError
    return found


def _finish(child: "subprocess.Popen[bytes]", parent: int) -> None:
    if os.getpid() != parent:
        return
    child.kill()
    with child:  # closes the pipes
        child.wait()
