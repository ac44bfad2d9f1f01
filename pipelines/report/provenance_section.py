"""Where it came from, by digest: export, checkpoint, shards and inputs, with the settings and versions of each."""

from collections import defaultdict
from collections.abc import Iterator

from pipelines.artifacts import Json
from pipelines.report.markup import Markup, element
from pipelines.report.numerals import count, size
from pipelines.report.run import Artefact, Run
from pipelines.report.table import Column, folded, pairs, section, table

FILES = 200
"""Input files that are listed one by one."""

_NUMBER = "n"


def provenance_section(run: Run) -> Markup:
    """The chain of artefacts, newest first, each with its digest and what it was made from."""
    chain = run.artefacts
    if not chain:
        return section("Provenance", element("p", "No stage has finished, so there is nothing to trace."))
    columns = [
        Column("what", "name"), Column("identity", "wide"), Column("made from", "wide"), Column("files", _NUMBER),
        Column("size", _NUMBER),
    ]  # fmt: skip
    rows = [
        [
            one.path, _digest(one.manifest.identity), _parents(one, chain), count(len(one.manifest.files)),
            size(sum(record.size for record in one.manifest.files)),
        ]
        for one in chain
    ]  # fmt: skip
    note = (
        "Identities and digests are SHA-256, as the manifests have them. The page compares names and sizes of files; "
        "packtrain verify reads them all."
    )
    return section("Provenance", element("p", note, class_="note"), table(columns, rows), *_inputs(run), *_made(run))


def _parents(one: Artefact, chain: list[Artefact]) -> Markup:
    if one.manifest.kind == "prep":
        return element("span", "the inputs below")
    parts = []
    for kind, identity in sorted(one.manifest.parents.items()):
        found = next((other.path for other in chain if other.manifest.identity == identity), None)
        parts.append(element("div", found or f"a {kind} that is not here: ", "" if found else _digest(identity)))
    return element("div", *parts)


def _inputs(run: Run) -> Iterator[Markup]:
    if run.prep is None:
        return
    files: defaultdict[str, list[Json]] = defaultdict(list)
    for one in run.prep.facts.get("files", ()):
        files[one["source"]].append(one)
    rows = [
        [
            source["name"], count(len(files[source["name"]])),
            size(sum(one.get("size", 0) for one in files[source["name"]])), _digest(source["sha256"]),
        ]
        for source in run.prep.facts.get("sources", ())
        if "sha256" in source
    ]  # fmt: skip
    if not rows:
        return
    yield element("h3", "Inputs")
    columns = [Column("source", "name"), Column("files", _NUMBER), Column("size", _NUMBER), Column("SHA-256", "wide")]
    yield table(columns, rows)
    listed = run.prep.facts["files"]
    shown = [[f"{one['source']}/{one['path']}", size(one["size"]), _digest(one["sha256"])] for one in listed[:FILES]]
    title = f"Every file, {len(shown)} of {len(listed):,}" if len(listed) > FILES else "Every file"
    yield folded(title, table([Column("file", "name"), Column("size", _NUMBER), Column("SHA-256", "wide")], shown))


def _made(run: Run) -> Iterator[Markup]:
    newest = run.checkpoints[-1] if run.checkpoints else None
    for title, one in (("prep", run.prep), ("train", newest), ("export", run.export)):
        if one is None:
            continue
        if settings := one.facts.get("settings"):
            yield folded(f"Settings of {title}", pairs(_leaves("", settings)))
        if versions := one.facts.get("versions"):
            yield folded(f"Versions that {title} computed with", pairs(sorted(versions.items())))


def _leaves(path: str, value: Json) -> Iterator[tuple[str, str]]:
    """Every setting that has a value, by its key; sources by their name."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(f"{path}.{key}" if path else key, one)
    elif isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        for index, one in enumerate(value):
            yield from _leaves(f"{path}.{one.get('name', index)}", one)
    elif value not in (None, [], ""):
        yield path, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _digest(value: str) -> Markup:
    return element("code", value)
