"""Every reader of a file, by name."""

from collections.abc import Mapping

from tests.fuzz import artefacts, records, texts, weights
from tests.fuzz.target import Target

TARGETS: Mapping[str, Target] = {
    target.name: target for group in (texts, records, artefacts, weights) for target in group.TARGETS
}
