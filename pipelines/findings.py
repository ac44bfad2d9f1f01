"""What `packtrain check` finds, each with a name that stays the same from version to version."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pipelines.artifacts import Json
from pipelines.errors import CheckError, ConfigError, DataError, PacktrainError


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that somebody should know."""

    kind: str
    """Its name, such as `end-untrained`: docs/check.md lists them all."""
    text: str
    """Where, what was found, what to do: one line."""
    exit_code: int = CheckError.exit_code
    """What the command ends with; 0 for a warning."""

    @classmethod
    def warning(cls, kind: str, text: str) -> "Finding":
        """What need not be wrong."""
        return cls(kind, text, 0)

    @property
    def is_error(self) -> bool:
        return self.exit_code != 0

    def __str__(self) -> str:
        return f"{'' if self.is_error else 'warning: '}{self.text} [{self.kind}]"


@dataclass
class Report:
    """What was looked at, and what was found."""

    facts: dict[str, str] = field(default_factory=dict)
    """By name, in words."""
    findings: list[Finding] = field(default_factory=list)
    input_bytes: int = 0
    """Of all files of the data order; 0 where they are not known."""

    def add(self, other: "Report") -> None:
        """What another part of the check looked at and found, its input bytes aside; nothing is told twice."""
        self.facts |= other.facts
        self.findings = list(dict.fromkeys([*self.findings, *other.findings]))

    def as_json(self, *, strict: bool = False) -> Json:
        """As --json prints it; `strict` as for `exit_code`."""
        findings = [{"kind": one.kind, "text": one.text, "error": one.is_error} for one in self.findings]
        return {"facts": self.facts, "findings": findings, "exit_code": exit_code(self.findings, strict=strict)}

    def summary(self) -> str:
        """How many of each there are."""
        errors = sum(one.is_error for one in self.findings)
        warnings = len(self.findings) - errors
        if not self.findings:
            return "nothing is wrong"
        return f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}"


def of_error(error: PacktrainError) -> list[Finding]:
    """The lines of an error of the user as findings."""
    kinds = {ConfigError: "config", DataError: "data", CheckError: "check"}
    kind = next((name for type_, name in kinds.items() if isinstance(error, type_)), "machine")
    return [Finding(kind, line, error.exit_code) for line in str(error).splitlines()]


def exit_code(findings: Iterable[Finding], *, strict: bool = False) -> int:
    """What a command ends with that found these: the least of their codes, as the configuration comes before the data.

    Args:
        strict: warnings count as well.
    """
    codes = [found.exit_code or (CheckError.exit_code if strict else 0) for found in findings]
    return min(filter(None, codes), default=0)
