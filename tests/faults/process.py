"""A command of packtrain as a process of its own: forked from one that has imported everything, or started afresh.

Starting afresh is what a user does and costs some seconds of imports. A forked process is as real: it has its own
memory, files, signals and end, and is killed like any other.
"""

import atexit
import ctypes
import importlib
import os
import resource
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import NoReturn

PATIENCE = 900.0
"""Seconds that a command may take before it counts as hanging."""
HUNG = 124
_IMPORTED = ("pipelines.cli", "pipelines.schema", "prep.run", "prep.plan", "train.run", "train.loop", "deepspeed",
             "train.shortage", "export.run", "export.checks", "export.turbomind.verify",
             "transformers.models.llama.modeling_llama")  # fmt: skip


def import_stages() -> None:
    """Import what stages import, so that processes which are forked from this one need not."""
    for name in _IMPORTED:
        importlib.import_module(name)


class Process:
    """A process at the head of a process group, or in that of another one.

    Args:
        arguments: of `packtrain`.
        environment: its whole environment.
        afresh: start Python anew instead of forking this process.
        group: a process whose group it joins.
        largest: bytes that no file may outgrow.
        first: what a forked process does before the command.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        afresh: bool = False,
        group: int = 0,
        largest: int | None = None,
        first: Callable[[], None] | None = None,
    ) -> None:
        sys.stdout.flush()
        self._pipe, ours = os.pipe()
        self._said = bytearray()
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                with suppress(OSError):  # whose group it was may have ended
                    os.setpgid(0, group)
                _become(ours, folder, environment, largest)
                if afresh:
                    os.execve(sys.executable, [sys.executable, "-m", "pipelines", *arguments], dict(environment))
                _run(arguments, first)
            finally:
                os._exit(1)  # whatever happens, it is not the harness
        os.close(ours)
        with suppress(OSError):  # also here, so that it can be killed as a group from now on
            os.setpgid(self.pid, group)

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it alone, if it is still there."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def send_group(self, number: signal.Signals) -> None:
        """Send a signal to its group."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, timeout: float = PATIENCE) -> tuple[int, str]:
        """Its exit code and what it said; `HUNG` where it was killed because time was up."""
        deadline, told = time.monotonic() + timeout, ""
        while self.poll() is None:
            self._read(0.02)
            if time.monotonic() > deadline:
                self.send_group(signal.SIGKILL)
                self.send(signal.SIGKILL)
                told = f"\nhung for {timeout:g} s"
                deadline = float("inf")
        while self._read(0):
            pass
        os.close(self._pipe)
        assert self._code is not None
        return (HUNG if told else self._code), self._said.decode("utf-8", "replace") + told

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._pipe], [], [], wait_s)[0]:
            return False
        said = os.read(self._pipe, 65536)
        self._said += said
        if not said:
            time.sleep(wait_s)
        return bool(said)


def _become(output: int, folder: Path, environment: Mapping[str, str], largest: int | None) -> None:
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))


def _run(arguments: Sequence[str], first: Callable[[], None] | None) -> NoReturn:
    """The command, and what Python does at its end."""
    code: object = 0
    try:
        sys.argv = ["packtrain", *arguments]
        sys.modules["__main__"] = ModuleType("__main__")  # or its workers would import the harness
        if "FAULT" in os.environ:
            ctypes.CDLL(None).strike_arm()
        if first:
            first()
        from pipelines.cli import main

        main(arguments, prog_name="packtrain")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    with suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
