"""The ready pipelines: TOML files that ship with the package, and what they need beside them."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import tomli

from pipelines.artifacts import make_directory, write_atomic
from pipelines.errors import ConfigError

HERE = Path(__file__).parent


def recipes() -> dict[str, str]:
    """What each ready pipeline does, by name: the first comment of its file."""
    found = {}
    for path in sorted(HERE.glob("*.toml")):
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        found[path.stem] = first.removeprefix("#").strip()
    return found


def copy(name: str, folder: Path) -> list[Path]:
    """Copy a recipe and the folder of its name into `folder`; returns the files that were written.

    Raises:
        ConfigError: if there is no such recipe, or a file of another content is in the way. Nothing is copied then.
    """
    if name not in recipes():
        raise ConfigError(f"{name}: no such recipe; there are {', '.join(recipes())}")
    sources = [HERE / f"{name}.toml", *_shipped(HERE / name)]
    contents = {path.relative_to(HERE): path.read_bytes() for path in sources}
    tomli.loads(contents[Path(f"{name}.toml")].decode())
    missing = {}
    for relative, content in contents.items():
        target = folder / relative
        if not target.exists():
            missing[target] = content
        elif target.read_bytes() != content:
            raise ConfigError(f"{target}: exists with another content; move it away or choose another directory")
    for target, content in missing.items():
        make_directory(target.parent)
        write_atomic(target, content)
    return list(missing)


def generate(data: Path, write: Callable[[Path], object]) -> list[Path]:
    """Let `write` make the directory `data` (it is given the parent of one), unless it is there; returns its files."""
    if data.exists():
        return []
    with TemporaryDirectory(dir=make_directory(data.parent), prefix=".") as temporary:
        write(Path(temporary))
        (Path(temporary) / data.name).rename(data)
    return sorted(data.iterdir())


def _shipped(folder: Path) -> list[Path]:
    # data/ is generated and __pycache__ is Python's; neither ships.
    inside = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in inside if not {"data", "__pycache__"} & set(path.relative_to(folder).parts))
