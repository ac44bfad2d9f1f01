"""The files of a source that are on disk, whatever order the file system lists them in."""

import logging
import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from pipelines.errors import ConfigError, DataError
from pipelines.schema import Source
from prep.endings import format_of
from prep.saved_dataset import is_saved, listed_files

log = logging.getLogger(__name__)

IGNORED_ENDINGS = ("~", ".tmp", ".part")
"""Names of files that are being written or were replaced; they and names that begin with a dot are never input."""


def scan(source: Source, *, follow_symlinks: bool) -> list[tuple[str, str]]:
    """The input files of a source: the POSIX path of each below the source's folder, and where it is.

    Both as text, since a `Path` for each of 100,000 files takes longer than all the rest.

    Sorted by the code points of the path, which is in Unicode's NFC form, as a repository that moves between Linux and
    macOS keeps it. A source that is one file has that file's name as its path. In a folder the files are those that
    match a pattern of `files`, or without patterns those whose ending tells the source's format. Links to files are
    read; links to folders are walked with `follow_symlinks`, and otherwise counted in a warning. With format hf_disk
    the files are those that the saved dataset, or its split, lists as its own.

    Raises:
        ConfigError: if `files` is given for a single file or a saved dataset, or holds what is no pattern; or if a
            saved dataset needs another split.
        DataError: if there is no such file, none matches, a name cannot stand in data_order.txt, two names are the same
            in NFC, or a link leads nowhere or to a folder that it lies in.
    """
    place = f"[[prep.source]] {source.name!r}"
    try:
        is_file, is_folder = source.path.is_file(), source.path.is_dir()
    except OSError as error:
        raise DataError(f"{place}: {source.path}: cannot be read ({error.strerror})") from error
    if is_folder and source.format == "hf_disk":
        return _saved(source, place)
    if is_file:
        if source.format == "hf_disk":
            raise ConfigError(f"{place}: {source.path} is a file, and hf_disk is a folder of save_to_disk; name that")
        if source.files:
            raise ConfigError(f"{place}: files chooses from a folder, but {source.path} is a file; remove files")
        return [(_listed(source.path.name, str(source.path)), str(source.path))]
    if not is_folder:
        hint = "; put the pattern in files, and its folder in path" if re.search(r"[*?\[]", source.path.name) else ""
        raise DataError(f"{place}: {source.path}: no such file or folder{hint}")
    if not source.files and is_saved(source.path):
        raise ConfigError(f'{place}: {source.path} is a dataset that save_to_disk wrote; set format = "hf_disk"')
    patterns = [(text, _compiled(text, place)) for text in source.files]
    unmatched = set(source.files)
    found: dict[str, str] = {}
    for path, entry in _walk(source.path, follow_symlinks=follow_symlinks):
        if patterns:
            matching = {text for text, pattern in patterns if pattern.fullmatch(path)}
            unmatched -= matching
        else:
            told = format_of(entry.name)
            matching = {told} if told is not None and source.format in ("auto", told) else set()
        if not matching or not _is_file(entry):
            continue
        if path in found:
            raise DataError(
                f"{entry.path}: differs from {found[path]} in Unicode normalization alone; rename one of them"
            )
        found[_listed(path, entry.path)] = entry.path
    if unmatched or not found:
        what = f"matches {min(unmatched)!r}" if unmatched else "has an ending that tells its format; set files"
        raise DataError(f"{place}: no file below {source.path} {what}")
    return sorted(found.items())


def _saved(source: Source, place: str) -> list[tuple[str, str]]:
    """The files of a dataset saved to disk."""
    if source.files:
        raise ConfigError(f"{place}: files has no effect on a saved dataset, which lists its own; remove files")
    paths = listed_files(source.path, source.split, place)
    return sorted((_listed(path, str(source.path / path)), str(source.path / path)) for path in paths)


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is never input: hidden, or not finished."""
    return name.startswith(".") or name.endswith(IGNORED_ENDINGS)


def unfit(path: str) -> str:
    """What keeps a path from being a line of data_order.txt, or nothing."""
    match = _UNFIT.search(path)
    if match is None:
        return ""
    if match[0] == "\\":
        return "has a backslash"
    return "is not UTF-8" if match[0] >= "\ud800" else f"has the control character {match[0]!r}"


_UNFIT = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")


def _walk(root: Path, *, follow_symlinks: bool) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file that is not ignored, with its path below the root in NFC."""
    linked: list[str] = []
    pending: list[tuple[str, str, tuple[_Identity, ...]]] = [("", str(root), (_identity(root),))]
    while pending:
        prefix, folder, within = pending.pop()
        for entry in _entries(folder):
            if is_ignored(entry.name):
                continue
            path = prefix + (entry.name if entry.name.isascii() else unicodedata.normalize("NFC", entry.name))
            if not _is_folder(entry):
                yield path, entry
            elif entry.is_symlink() and not follow_symlinks:
                linked.append(entry.path)
            else:
                identity = _identity(Path(entry.path))
                if identity in within:
                    raise DataError(f"{entry.path}: a link to a folder that it lies in; remove it")
                pending.append((f"{path}/", entry.path, (*within, identity)))
    if linked:
        log.warning(
            "%s: %d linked folders are left out, the first is %s; prep.order.follow_symlinks = true reads them",
            root, len(linked), min(linked),
        )  # fmt: skip


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


_Identity = tuple[int, int]


def _identity(folder: Path) -> _Identity:
    state = folder.stat()
    return state.st_dev, state.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        if entry.is_file():
            return True
        dangling = entry.is_symlink() and not Path(entry.path).exists()
    except OSError:
        dangling = True
    if dangling:
        raise DataError(f"{entry.path}: a link that leads nowhere; restore what it points to, or remove it")
    raise DataError(f"{entry.path}: a device, a pipe or a socket, which is no data; remove it")


def _listed(path: str, where: str) -> str:
    """The path as data_order.txt has it."""
    if finding := unfit(path):
        raise DataError(f"{where!r}: its name {finding}, so data_order.txt cannot list it; rename it")
    return unicodedata.normalize("NFC", path)


def _compiled(pattern: str, place: str) -> re.Pattern[str]:
    """A pattern as a regular expression: ** any folders, * and ? within a name, [a-z] and [!a-z] one character."""
    *folders, name = unicodedata.normalize("NFC", pattern).split("/")
    above = "".join("(?:[^/]+/)*" if folder == "**" else f"{_name_regex(folder)}/" for folder in folders)
    try:
        return re.compile(above + _name_regex(name))
    except re.error as error:
        raise ConfigError(f"{place}: files: {pattern!r} is not a pattern ({error.msg})") from error


def _name_regex(part: str) -> str:
    written = ""
    for piece in re.findall(r"\[!?\]?[^\]]*\]|.", part, re.DOTALL):
        if piece in ("*", "?"):
            written += "[^/]*" if piece == "*" else "[^/]"
        elif len(piece) > 1:
            excluded = "^" if piece.startswith("[!") else ""
            inner = re.escape(piece[1 + len(excluded) : -1]).replace(r"\-", "-")
            written += f"(?!/)[{excluded}{inner}]"
        else:
            written += re.escape(piece)
    return written
