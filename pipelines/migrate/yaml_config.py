"""A config that is a YAML file, with the line of every key."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import ConfigError, MachineError
from pipelines.migrate.config_tree import MOST_KEYS, Finding, Node, Unread

if TYPE_CHECKING:
    import yaml

_NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read(path: Path) -> Node:
    """The keys of a YAML file. Numbers that YAML 1.1 takes for text, such as 2e-5, are numbers all the same.

    Raises:
        ConfigError: if it cannot be read, is no YAML, or no table.
    """
    try:
        import yaml
    except ImportError as error:
        raise MachineError("reading YAML needs a package; pip install pyyaml") from error
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        document = loader.get_single_node()
        if not isinstance(document, yaml.MappingNode):
            raise ConfigError(f"{path}: expected keys with values; give a config file")
        return _node(document, (), loader, [MOST_KEYS])
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a config file") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: is no YAML file ({' '.join(str(error).split())})") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deep, or in itself, to be read") from error


def _node(found: Any, path: tuple[str | int, ...], loader: "yaml.SafeLoader", left: list[int]) -> Node:
    import yaml

    left[0] -= 1  # anchors let a small file mean more keys than fit anywhere
    if left[0] < 0:
        raise ValueError(f"means more than {MOST_KEYS:,} keys")

    node = Node(path, found.start_mark.line + 1)
    if isinstance(found, yaml.MappingNode):
        node.children = {}
        for written, value in found.value:
            key = written.value if isinstance(written, yaml.ScalarNode) else str(written.start_mark.line + 1)
            child = _node(value, (*path, key), loader, left)
            child.line = written.start_mark.line + 1
            if key in node.children:
                earlier = node.children.pop(key)
                for leaf in earlier.leaves():
                    leaf.finding = Finding("dropped", (), f"stands again in line {child.line}, which counts")
                node.children[f"{key} (line {earlier.line})"] = earlier
            node.children[key] = child
    elif isinstance(found, yaml.SequenceNode):
        node.is_list = True
        node.children = {index: _node(value, (*path, index), loader, left) for index, value in enumerate(found.value)}
    else:
        node.value = _scalar(found, loader)
    return node


def _scalar(found: Any, loader: "yaml.SafeLoader") -> Any:
    try:
        value = loader.construct_object(found)
    except Exception:  # a tag of somebody's own
        return Unread(f"{found.tag} {found.value}")
    if isinstance(value, str) and found.style is None and _NUMBER.fullmatch(value):
        return float(value.replace("_", ""))
    return value if isinstance(value, bool | int | float | str | None) else str(found.value)
