"""A sentencepiece BPE model as a tokenizer.json that gives the same ids.

Transformers without remote code reads tokenizer.json; its own conversion of a tokenizer.model goes by the class that
tokenizer_config.json names, and a class from remote code has none. What has to be carried over:

- sentencepiece joins any two neighbours whose text is a piece, the piece with the highest score first; tokenizers
  joins listed pairs, the first in the list first. So every split of every piece is listed, by score.
- Where scores are equal sentencepiece takes the leftmost pair. A list cannot say that, but it matters only where two
  pairs share a symbol, (x, y) left of (y, z), so those are listed in this order. One case cannot be served in both
  directions: a piece like "aaa", as (a, aa) and as (aa, a). Runs are joined from their left end, which leaves the
  single one on the right, so (aa, a) comes first. Different pieces that overlap both ways are refused.
- User-defined pieces are matched before all others: they become added tokens, which are too.
- A NUL character as a piece is passed over by sentencepiece for the byte piece <0x00>, so it loses its name here.
- Added tokens standing on spare pieces replace them, so the spare names are ordinary text.

One difference stays: of a model that puts a space before a whole text (`legacy = false`), tokenizers leaves it out
where the text begins with a space already. What a chat template renders begins with a token or a word.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.sentencepiece_model import Kind, Piece, SentencePieceModel

_SPACE = "\u2581"


def transformers_files(folder: Path, files: Mapping[str, bytes] | None = None) -> Mapping[str, bytes]:
    """The files that replace those of a sentencepiece tokenizer directory for plain Transformers, by name.

    tokenizer.json, and a tokenizer_config.json whose class reads it as it stands. The model file may stay beside
    them; Transformers prefers tokenizer.json.

    Args:
        folder: the directory.
        files: what to take for its files, by name, instead of reading them.
    Raises:
        ConfigError: if the model cannot be carried over exactly.
    """
    if files is None:
        names = ("tokenizer_config.json", "tokenizer.model")
        files = {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}
    config = json.loads(files.get("tokenizer_config.json", b"{}"))
    try:
        converted = convert(files["tokenizer.model"], config)
    except ValueError as error:
        raise ConfigError(f"{folder / 'tokenizer.model'}: {error}") from error
    kept = {key: value for key, value in config.items() if key not in ("auto_map", "tokenizer_class", "legacy")}
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    return {"tokenizer.json": converted, "tokenizer_config.json": _dump(dict(sorted(kept.items())), indent=1)}


def convert(data: bytes, config: Mapping[str, Any]) -> bytes:
    """tokenizer.json from the bytes of a tokenizer.model and a parsed tokenizer_config.json.

    Raises:
        ValueError: if the model does something that has no equal there.
    """
    model = SentencePieceModel.parse(data)
    check(model)
    added = _added_tokens(model, config)
    names = _names(model, added)
    unknown = next(piece.text for piece in model.pieces if piece.kind is Kind.UNKNOWN)
    return _dump(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": _normalizer(model, config),
            "pre_tokenizer": _pre_tokenizer(model, config),
            "post_processor": _post_processor(added, config),
            "decoder": _decoder(model),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": unknown,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": model.byte_fallback,
                "ignore_merges": False,
                "vocab": {name: id_ for id_, name in enumerate(names)},
                "merges": _merges([piece for piece in model.pieces if piece.kind is Kind.NORMAL]),
            },
        }
    )


def check(model: SentencePieceModel) -> None:
    """See that `convert` can carry the model over.

    Raises:
        ValueError: naming what it does that has no equal in tokenizer.json.
    """
    defined = [piece for piece in model.pieces if piece.kind is Kind.USER_DEFINED]
    unused = [piece for piece in model.pieces if piece.kind is Kind.UNUSED]
    if model.algorithm != "bpe":
        raise ValueError(f"its algorithm is {model.algorithm}; only bpe is carried over to tokenizer.json")
    if model.whitespace_as_suffix or not model.escape_whitespaces:
        raise ValueError("it writes spaces in a way that tokenizer.json has no word for")
    if model.charsmap:
        raise ValueError("it normalizes characters by compiled rules, which tokenizer.json applies otherwise")
    if unused:
        raise ValueError(f"piece {unused[0].text!r} is of the unused kind, which tokenizer.json does not know")
    if defined and (model.dummy_prefix or model.remove_extra_whitespaces):
        raise ValueError(
            f"it has user-defined pieces, such as {defined[0].text!r}, and changes spaces at the ends of a text; "
            "tokenizer.json would do so around each of those pieces"
        )


def _added_tokens(model: SentencePieceModel, config: Mapping[str, Any]) -> list[dict[str, Any]]:
    listed = {int(id_): entry for id_, entry in config.get("added_tokens_decoder", {}).items()}
    tokens = {
        id_: _added_token(id_, piece.text, special=piece.kind is not Kind.USER_DEFINED)
        for id_, piece in enumerate(model.pieces)
        if piece.kind in (Kind.CONTROL, Kind.UNKNOWN, Kind.USER_DEFINED)
    }
    for id_, entry in listed.items():
        tokens[id_] = _added_token(id_, entry["content"], special=entry.get("special", False))
        tokens[id_].update({key: entry.get(key, False) for key in ("single_word", "lstrip", "rstrip")})
    beyond = sorted(id_ for id_ in tokens if id_ >= len(model.pieces))
    if beyond != list(range(len(model.pieces), len(model.pieces) + len(beyond))):
        raise ValueError(f"added tokens leave ids out: {beyond} after {len(model.pieces)} pieces")
    return [tokens[id_] for id_ in sorted(tokens)]


def _added_token(id_: int, text: str, *, special: bool) -> dict[str, Any]:
    return {
        "id": id_,
        "content": text,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }


def _names(model: SentencePieceModel, added: Iterable[Mapping[str, Any]]) -> list[str]:
    """[pieces] the text that each id is listed under."""
    names = [piece.text for piece in model.pieces]
    if model.byte_fallback and "\0" in names:
        names[names.index("\0")] = "<unused NUL>"  # longer than one character and in no merge: never reached
    for token in added:
        if token["id"] < len(names):
            names[token["id"]] = token["content"]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the added token {twice!r} is also the text of another piece")
    return names


def _merges(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, in the order in which sentencepiece would."""
    texts = {piece.text for piece in pieces}
    by_score: dict[float, list[tuple[str, str]]] = defaultdict(list)
    for piece in pieces:
        # The longest left side first: see the runs above.
        for cut in range(len(piece.text) - 1, 0, -1):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in texts and right in texts:
                by_score[piece.score].append((left, right))
    return [pair for score in sorted(by_score, reverse=True) for pair in _leftmost_first(by_score[score])]


def _leftmost_first(pairs: Sequence[tuple[str, str]]) -> Iterable[tuple[str, str]]:
    """Pairs of equal score, (x, y) before (y, z); where the same piece in two ways forms a circle, as given.

    Raises:
        ValueError: if different pieces form a circle.
    """
    by_left: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for left, right in pairs:
        by_left[left].append((left, right))
    before: dict[tuple[str, str], set[tuple[str, str]]] = {pair: set() for pair in pairs}
    for left, right in pairs:
        for other in by_left[right]:
            before[other] |= {(left, right)} - {other}
    while before:
        chosen = (pair for pair, others in before.items() if all("".join(pair) == "".join(o) for o in others))
        if (pair := next(chosen, None)) is None:
            first, *rest = dict.fromkeys("".join(pair) for pair in before)
            raise ValueError(f"pieces {first!r} and {rest[0]!r} have the same score and overlap both ways")
        del before[pair]
        for other in by_left[pair[1]]:
            before.get(other, set()).discard(pair)
        yield pair


def _normalizer(model: SentencePieceModel, config: Mapping[str, Any]) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if model.remove_extra_whitespaces:
        steps.append({"type": "Replace", "pattern": {"Regex": rf"\A +|[ {_SPACE}]+\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.dummy_prefix and config.get("legacy", True):
        steps.append({"type": "Prepend", "prepend": _SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": steps}


def _pre_tokenizer(model: SentencePieceModel, config: Mapping[str, Any]) -> dict[str, Any] | None:
    if not model.dummy_prefix or config.get("legacy", True):
        return None
    return {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first", "split": False}


def _decoder(model: SentencePieceModel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}] if model.byte_fallback else []
    steps.append({"type": "Fuse"})
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.dummy_prefix else []
    return {"type": "Sequence", "decoders": steps}


def _post_processor(added: Iterable[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any] | None:
    """BOS and EOS around a text that is tokenized with special tokens."""
    ids = {token["content"]: token["id"] for token in added}
    ends: list[str | None] = []
    for part, default in (("bos", True), ("eos", False)):
        token = config.get(f"{part}_token")
        text = token.get("content") if isinstance(token, dict) else token
        ends.append(text if text in ids and config.get(f"add_{part}_token", default) else None)
    if not any(ends):
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        before, after = ({"SpecialToken": {"id": text, "type_id": type_id}} if text else None for text in ends)
        return [step for step in (before, {"Sequence": {"id": sequence, "type_id": type_id}}, after) if step]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in ends if text},
    }


def _dump(table: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(table, ensure_ascii=False, indent=indent) + "\n").encode()
