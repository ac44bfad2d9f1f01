"""The errors a user can meet, each with its exit code.

A message is one line: where, what was found, what to do. The command line prints it without a traceback.
Anything else that escapes a command is our fault and exits 1.
"""

from collections.abc import Sequence

from pipelines.secret_text import without_secrets
from pipelines.terminal import printable

_LONGEST = 2_000
"""Characters of a line. Paths and findings are shorter; what libraries say may repeat the whole of a damaged file."""


class PacktrainError(Exception):
    """Base of the errors that are shown to the user as one line a problem.

    Without the secrets that it may hold, and without characters that would command a terminal.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(message))

    def __str__(self) -> str:
        return "\n".join(_cut(printable(line, keep="\t")) for line in super().__str__().split("\n"))


class ConfigError(PacktrainError):
    """The TOML or the command line is wrong. Holds every problem found, one line each."""

    exit_code = 2

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: Sequence[str] = [without_secrets(problem) for problem in problems]


class DataError(PacktrainError):
    """The input data is wrong: `file:line: finding; remedy`."""

    exit_code = 3


class CheckError(PacktrainError):
    """A check the user asked for found a difference."""

    exit_code = 4


class MachineError(PacktrainError):
    """This machine lacks something: a package, memory, a writable directory, a device."""

    exit_code = 5


class BusyError(PacktrainError):
    """Another process works in the same directory."""

    exit_code = 6


class InterruptedRun(PacktrainError):  # noqa: N818 (an interruption is not an error)
    """Stopped by a signal after saving; the same command continues."""

    exit_code = 75


def _cut(line: str) -> str:
    """The beginning, which says where, and the end, which says what to do."""
    if len(line) <= _LONGEST:
        return line
    half = _LONGEST // 2
    return f"{line[:half]} [... {len(line) - 2 * half:,} characters ...] {line[-half:]}"
