"""Text without the secrets in it, for whatever is shown or written: errors, the log, the command in run.json.

Libraries put addresses into their errors, and people put tokens where no token belongs. What is known as a secret by
where it stands is taken out: a password in an address, a credential's header or key, the value of a variable for one.
"""

import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from types import TracebackType

HIDDEN = "***"
_LEAST = 8
"""Characters from which on a variable's value is looked for; a shorter one is part of ordinary words."""
_REPEATED = 200
"""Secrets of one text that are looked for beside their places. No honest text has so many, and each takes a search."""

_WORD = r"secret|passw(?:or)?d|(?:api|access|private)[_-]?key|cookie|authorization|credential"
_OF = r"hf|hub|huggingface|auth|access|api|bearer|session|private|wandb|swanlab|github"
_NAME = rf"(?<![\w-])(?:\w{{0,60}}(?:{_WORD})s?|(?:\w{{1,60}}_)?auth|(?:(?:{_OF})[_-]?)+tokens?|token)"
_QUOTED = r"\"(?:[^\"\\]|\\.)*\"|'[^']*'"
_BARE = r"[^\s\"'&,;\])}]*[^\s\"'&,;\])}:]"  # what is behind a colon is said of the value
_VALUE = rf"(?P<secret>{_QUOTED}|{_BARE})"
_ITEM = rf"(?P<secret>{_QUOTED}|(?=\S*\d){_BARE})"  # in `token_env = "HF_TOKEN": not set` words follow, no value
# Names and addresses are bounded, so that a long text takes time in proportion to its length.
_PLACES: Sequence[tuple[str, str]] = (
    (
        r"(\b[a-z][a-z0-9+.-]{0,30}://?)(?P<secret>[^/\s@\"'<>]{1,500})@",
        rf"\1{HIDDEN}@",
    ),  # one / as in a path
    (r"(\b(?:Bearer|Basic))\s+(?P<secret>(?=\S*[\d=])[\w.~+/=-]{8,})", rf"\1 {HIDDEN}"),
    (r"([?&][\w-]{0,60}(?:token|key|secret|password|signature|sig)=)(?P<secret>[^&\s\"'<>]+)", rf"\1{HIDDEN}"),
    (rf"({_NAME}[\"']?\s*=\s*){_VALUE}", rf'\1"{HIDDEN}"'),
    (rf"({_NAME}[\"']\s*:\s*)(?!.(?:Bearer|Basic) ){_ITEM}", rf'\1"{HIDDEN}"'),
    (r"((?:authorization|cookie):\s*)(?!Bearer|Basic)(?P<secret>\S+)", rf"\1{HIDDEN}"),
    (r"(\b(?:hf|ghp|gho|ghs|glpat|github_pat|sk|wandb_v1)[_-])(?P<secret>[a-z0-9_-]{20,})", rf"\1{HIDDEN}"),
)
_PATTERNS = [(re.compile(pattern, re.IGNORECASE), shown) for pattern, shown in _PLACES]
_HOLDS_SECRET = re.compile(
    r"(?:^|_)(?:TOKEN|KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASS|CREDENTIALS?|COOKIE|AUTHORIZATION)S?$", re.IGNORECASE
)


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The text, with `***` for every secret that its place tells, wherever else it stands, and for those of variables.

    What comes out is no secret, so a second call changes nothing.
    """
    for value in sorted(_values(environment), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    found = set()
    for pattern, shown in _PATTERNS:
        for match in pattern.finditer(text):
            value = match["secret"].strip("\"':,;.")
            found |= {value, value.rpartition(":")[2]}  # a name and a password as well
        text = pattern.sub(shown, text)
    repeated = sorted((value for value in found if len(value) >= _LEAST), key=len, reverse=True)
    for value in repeated[:_REPEATED]:  # a message may repeat what stands in its place
        text = text.replace(value, HIDDEN)
    return text


def show_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python shows of an error that nothing caught, without the secrets in its message. For `sys.excepthook`."""
    sys.stderr.write(without_secrets("".join(traceback.format_exception(kind, error, trace))))


def _values(environment: Mapping[str, str]) -> set[str]:
    """Values of the variables that are named for a secret, and the passwords in addresses that others hold."""
    found = {value for name, value in environment.items() if _HOLDS_SECRET.search(name)}
    for value in environment.values():
        if match := re.match(r"\w[\w+.-]*://[^/\s@:]*:([^/\s@]+)@", value):
            found.add(match[1])
    return {value for value in found if len(value.strip()) >= _LEAST and not _is_file(value)}


def _is_file(value: str) -> bool:
    """Whether a variable for a secret names the file that has it, which errors have to name as well."""
    return value.startswith("/") and os.path.exists(value)  # noqa: PTH110 (false as well where it may not be looked at)
