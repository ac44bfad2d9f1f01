"""Which library makes the ids of a run. It decides no id: another one is used only where it gives the same."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version as version_of

from prep.fast_tokenizer import LIBRARY


@dataclass(frozen=True)
class Backend:
    """A library, and why it is not the fast one where it is not."""

    name: str
    version: str = ""
    why: str = ""

    @classmethod
    def exact(cls, library: str, why: str) -> "Backend":
        """The library whose ids are the right ones, and why not the fast one."""
        return cls(library, version_of(library), why)

    @property
    def fast(self) -> bool:
        """Whether its ids have to be held against those of another library."""
        return self.name == LIBRARY

    def facts(self) -> Mapping[str, str]:
        """As manifests tell it."""
        return {key: value for key, value in asdict(self).items() if value}
