"""docs/json.md: what each command prints with --json on a small pipeline. Run as a module, it is written anew."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from pipelines.cli import main
from tests.prep.small import TOKENIZER, conversations

PAGE = Path(__file__).parents[2] / "docs" / "json.md"

_HEAD = """\
# --json

Written by `python -m tests.pipelines.json_page` from what the commands print; a test compares.

Every command takes `--json` and then prints one object on standard output: keys sorted, two spaces, UTF-8, no NaN. What
is said meanwhile goes to standard error, and so do errors, as lines with an exit code: then there may be no object.
`check`, `verify A B` and `env FILE` print theirs and end with another exit code than 0 where they found something.

`"name"` stands for any key, `...` for more of the same, `|` between what else can be there. Keys may be added; those
that are here stay as long as the version before the first dot is the same.
"""

_ABOUT = {
    "prep": "The facts of `manifest.json`, and where the artefact is. `dropped` counts samples by reason.",
    "prep --plan": "What packing would give, by strategy; nothing is written.",
    "prep verify": "",
    "prep convert": "",
    "order write": "",
    "order check": "`golden` only with `--golden`: how many shards were compared.",
    "check": "`kind` is the finding's name in [check.md](check.md); `exit_code` is the command's.",
    "preview": "Of packs, or with `--samples` of samples, as `pipelines/pack_facts.py` says.",
    "plan": "Sizes are bytes, times seconds; `train/forecast.py` opens with the keys.",
    "plan --from-internevo": "",
    "train": "The newest checkpoint. Rank 0 alone prints it.",
    "export": "",
    "export verify": "",
    "export to-internevo": "",
    "export import-internevo": "",
    "verify": "`parents` says where each parent was found.",
    "verify A B": "The first difference of each kind, in the order of the work: `what` is `kind`, `setting`, `input`, "
    "`record`, `pack`, `step`, `tensor` or `file`.",
    "report": "",
    "chat": "Only with `--prompt`.",
    "recipes": "Names and what they do.",
    "init": "",
    "migrate": "`verdict` is `mapped`, `same`, `dropped` or `decide`.",
    "fetch": "Empty where model and tokenizer are local.",
    "env": "`needs` only with a FILE.",
    "completion": "",
}

_MAPS = {"dropped", "facts", "parents", "recipes", "train", "verified", "versions"}
"""Keys of objects whose keys are names that are not ours."""
_FIXED = {
    "settings": "{...}",
    "packages": '{"name": {"name": text | null, ...}, ...}',
    "gpus": "[text, ...]",
    "have": "text | null",
    "least": "text | null",
    "fits": "true or false | null",
    "gpu_memory": "whole number | null",
    "mfu": "number | null",
    "fetched": "[...]",
}
"""Shapes that depend on the machine, and settings, which keys.md has."""
_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}


def page() -> str:
    """The page, from running every command."""
    with tempfile.TemporaryDirectory() as folder:
        shapes = {name: (command, outline(found)) for name, command, found in _run(Path(folder))}
    parts = [_HEAD]
    for name, about in _ABOUT.items():
        if name in shapes:
            command, shape = shapes[name]
            parts.append(
                f"\n## {name}\n\n" + (f"{about}\n\n" if about else "") + f"`{command}`\n\n```text\n{shape}\n```\n"
            )
    return "".join(parts)


def outline(value: Any) -> str:
    """The shape of a value: keys and kinds."""
    return _outline([value], "", "")


def _outline(values: Sequence[Any], indent: str, key: str) -> str:
    """What values of one key have in common and apart."""
    if key in _FIXED and type(values[0]) is not int:  # a number of GPUs is no list of theirs
        return _FIXED[key]
    kinds = []
    inner = indent + "  "
    if objects := [value for value in values if isinstance(value, dict)]:
        names = sorted({name for one in objects for name in one})
        inside = {name: _outline([one[name] for one in objects if name in one], inner, name) for name in names}
        if key in _MAPS and len(set(inside.values())) == 1:
            kinds.append(f'{{"name": {inside[names[0]]}, ...}}')
        else:
            lines = [f'{inner}"{name}": {shape}' for name, shape in inside.items()]
            kinds.append("{\n" + ",\n".join(lines) + f"\n{indent}}}" if lines else "{}")
    if lists := [value for value in values if isinstance(value, list)]:
        items = [item for one in lists for item in one]
        kinds.append(f"[{_outline(items, indent, '')}, ...]" if items else "[]")
    kinds += sorted({_KINDS[type(value)] for value in values if not isinstance(value, dict | list)})
    return " | ".join(kinds)


def _run(folder: Path) -> Iterator[tuple[str, str, Any]]:
    file = write_pipeline(folder)
    home = folder / "work" / "tiny"
    other = folder / "internevo.py"
    other.write_text('JOB_NAME = "x"\nSEQ_LEN = 64\ndata = dict(seq_len=SEQ_LEN, micro_num=2, micro_bsz=1)\n')
    commands: list[tuple[str, list[str | Path]]] = [
        ("env", ["env", file]),
        ("completion", ["completion", "bash"]),
        ("recipes", ["recipes", "qwen3", "lora"]),
        ("init", ["init", "qwen3-8b-lora-2k", folder / "copied"]),
        ("migrate", ["migrate", "internevo", other]),
        ("fetch", ["fetch", file]),
        ("order write", ["order", "write", file]),
        ("order check", ["order", "check", file]),
        ("check", ["check", file, "--set", "prep.max_length=64"]),
        ("prep --plan", ["prep", file, "--plan"]),
        ("prep", ["prep", file, "--workers", "1"]),
        ("prep verify", ["prep", "verify", file, "--resample", "4"]),
        ("prep convert", ["prep", "convert", home / "prep", "--to", "ftdp", "--out", folder / "ftdp"]),
        ("preview", ["preview", file, "--pack", "0"]),
        ("plan", ["plan", file]),
        ("plan --from-internevo", ["plan", "--from-internevo", "micro_num=4,micro_bsz=1,seq_len=4096", "--ranks", "8"]),
        ("train", ["train", file]),
        ("export", ["export", file]),
        ("export verify", ["export", "verify", file]),
        ("export to-internevo", ["export", "to-internevo", home / "export" / "hf", folder / "internevo"]),
        ("export import-internevo", ["export", "import-internevo", folder / "internevo", folder / "imported"]),
        ("verify", ["verify", home]),
        ("verify A B", ["verify", *(home / "train" / "checkpoints" / f"step-0000000{step}" for step in (1, 2))]),
        ("report", ["report", file]),
        ("chat", ["chat", home / "export" / "hf", "--prompt", "one", "--max-new-tokens", "2"]),
    ]
    for name, words in commands:
        yield name, _spelled(words, folder), _json(words)


def _json(words: Sequence[str | Path]) -> Any:
    answer = CliRunner().invoke(main, [*map(str, words), "--json"])
    assert answer.exit_code in (0, 3, 4, 5), (words, answer.output, answer.exception)
    return json.loads(answer.stdout)


def _spelled(words: Sequence[str | Path], folder: Path) -> str:
    short = [word.relative_to(folder).as_posix() if isinstance(word, Path) else word for word in words]
    return " ".join(["packtrain", *(f'"{word}"' if " " in word else word for word in short), "--json"])


def write_pipeline(folder: Path) -> Path:
    """A small pipeline with its data; returns its file, my.toml."""
    (folder / "data").mkdir()
    (folder / "data" / "a.jsonl").write_text(conversations(40))
    file = folder / "my.toml"
    file.write_text(
        f"""schema_version = 1
[run]
name = "tiny"
[model.scratch]
model_type = "llama"
hidden_size = 32
intermediate_size = 256
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_position_embeddings = 128
tie_word_embeddings = false
[tokenizer]
name_or_path = "{TOKENIZER}"
[[prep.source]]
name = "a"
path = "data"
[prep.pack]
capacity = 128
[train]
global_batch_size = 2
max_steps = 2
optimizer.lr = 0.01
checkpoint.save_steps = 1
[export]
targets = ["hf"]
"""
    )
    return file


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
