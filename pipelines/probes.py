"""Probe conversations: what prep made of a few of them, kept in the tokenizer directory that travels with the weights.

`probes.json` lies beside the tokenizer's files in prep's output and in every checkpoint. The exporter renders the same
conversations with the tokenizer it ships and compares ids, so that what is served is prompted as it was trained.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.artifacts import write_atomic
from pipelines.errors import CheckError
from pipelines.prompt import Prompts
from pipelines.template_process import TemplateFault

PROBES = "probes.json"


@dataclass(frozen=True)
class Probe:
    """One conversation up to where the assistant answers."""

    messages: Sequence[Mapping[str, Any]]
    """As a user of the model gives them: no system message that the template adds by itself."""
    prompt_ids: Sequence[int]
    """Token ids of the prompt, generation prompt included, as prep renders it."""


@dataclass(frozen=True)
class Probes:
    """What the template and tokenizer have to give wherever the model is used."""

    stop_ids: Sequence[int] = ()
    """Tokens that end an answer, the template's own first."""
    probes: Sequence[Probe] = field(default_factory=tuple)
    """None for a tokenizer without a chat template."""

    def write(self, folder: Path) -> None:
        """Put them into a tokenizer directory."""
        content = {"stop_ids": list(self.stop_ids), "probes": [vars(probe) for probe in self.probes]}
        text = json.dumps(content, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(folder / PROBES, text.encode("utf-8") + b"\n")

    @classmethod
    def read(cls, folder: Path) -> "Probes":
        """The probes of a tokenizer directory; empty where it has none.

        Raises:
            CheckError: if the file is not what `write` writes.
        """
        path = folder / PROBES
        try:
            content = json.loads(path.read_bytes())
            return cls(content["stop_ids"], [Probe(**probe) for probe in content["probes"]])
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            raise CheckError(f"{path}: not probe conversations ({error}); run prep again") from error

    def difference(self, tokenizer: Any, folder: Path) -> str | None:
        """Where a tokenizer of Transformers renders a probe otherwise than prep did; None if it nowhere does.

        Args:
            tokenizer: as it is shipped.
            folder: where it is from.
        Raises:
            RunawayTemplate: if its chat template takes too much.
        """
        prompts = Prompts(tokenizer, f"{folder}: the chat template")
        for probe in self.probes:
            try:
                ids = prompts.ids(probe.messages)
            except TemplateFault as fault:
                return f"the chat template refuses a probe conversation that it was trained on: {fault.message}"
            if ids != list(probe.prompt_ids):
                place = next((i for i, (a, b) in enumerate(zip(ids, probe.prompt_ids, strict=False)) if a != b), None)
                at = min(len(ids), len(probe.prompt_ids)) if place is None else place
                text = tokenizer.decode(list(probe.prompt_ids))
                return (
                    f"the tokenizer gives other prompts than were trained on, first at token {at} of {text!r}; prep "
                    "and Transformers read the tokenizer differently"
                )
        return None
