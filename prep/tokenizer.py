"""Text to token ids, from a Hugging Face tokenizer directory, without Transformers.

`tokenizer.json` is read as it stands; without one, a sentencepiece `tokenizer.model` with the special tokens that
`tokenizer_config.json` lists. A tokenizer here never adds a special token, and never makes one of text: the string
`<|im_end|>` inside a text becomes the tokens of its characters. Special tokens enter by their id, see `split`.

Transformers 5 rebuilds normalizer and pre-tokenizer of some classes from its own code instead of reading them from
tokenizer.json (LlamaTokenizer, Qwen2Tokenizer, GemmaTokenizer and their kin). Where the file agrees with the class,
which is the rule, the ids are the same; the export compares them and says so where they are not.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import orjson
import sentencepiece
import tokenizers

from pipelines import sentencepiece_json
from pipelines.errors import ConfigError
from pipelines.model_source import with_tokenizer
from pipelines.schema import Pipeline
from pipelines.sentencepiece_model import Kind, SentencePieceModel, changed
from prep.added_tokens import files_with, refuse_known
from prep.encoded import Encoded
from prep.fast_tokenizer import CheckedTokenizer, Unsupported, open_fast

Prefix = Literal["none", "first", "always"]
"""Where a tokenizer puts a space of its own: nowhere, before a text, or also after each special token within it."""

_JSON, _MODEL, _CONFIG, _JINJA = "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"
_FILES = (_JSON, _MODEL, _CONFIG, _JINJA, "special_tokens_map.json", "added_tokens.json")
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class AddedToken:
    """A token outside the model's own vocabulary, or singled out within it."""

    text: str
    id: int
    special: bool
    lstrip: bool = False
    """Swallows the whitespace before it."""
    rstrip: bool = False
    """Swallows the whitespace behind it."""


class Tokenizer:
    """Text to token ids and back. Equal files and added tokens give equal ids; pickles as its folder and these.

    Args:
        added: texts of new special tokens, whose ids follow the others'.
    Raises:
        ConfigError: if there is no tokenizer in `folder`, one that cannot be served exactly, or it has an added token.
    """

    def __init__(self, folder: Path, added: Sequence[str] = ()) -> None:
        self.folder = folder
        self.added = tuple(added)
        files: Mapping[str, bytes] = {
            name: (folder / name).read_bytes() for name in _FILES if (folder / name).is_file()
        }
        self._config = _read_config(folder, files)
        self._backend = _open(folder, files, self._config)
        self.own_size = self._backend.vocab_size
        """Every id of a token that was not added is below it."""
        if self.added:
            refuse_known(folder, self.added, self._backend.id_of)
            files = files_with(files, self.added, self.own_size)
            self._config = _read_config(folder, files)
            self._backend = _open(folder, files, self._config)
            if [self._backend.id_of(text) for text in self.added] != list(self.added_ids):
                raise ConfigError(
                    f"tokenizer.add_special_tokens: the ids of {folder} leave some out, and new tokens would not be "
                    "the last; remove the key"
                )
        self.files = files
        """What has to travel with a model for others to get the same ids, by name."""
        self.special_tokens: Mapping[str, int] = {
            token.text: token.id for token in self._backend.added if token.special
        }
        """Text and id of every special token."""
        self.vocab_size = self._backend.vocab_size
        """Every id is below it."""
        self.prefix: Prefix = self._backend.prefix
        self._special_ids = frozenset(self.special_tokens.values()) - {self._backend.unknown_id}
        self._fast: CheckedTokenizer | None = None

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[Path, tuple[str, ...]]]:
        return Tokenizer, (self.folder, self.added)

    @property
    def added_ids(self) -> range:
        """Ids of the added tokens, in their order."""
        return range(self.own_size, self.own_size + len(self.added))

    @property
    def library(self) -> str:
        """Library whose ids are the right ones."""
        return self._backend.library

    @property
    def added_texts(self) -> list[str]:
        """Text of every token outside the model's own vocabulary, special or not."""
        return [token.text for token in self._backend.added]

    def fast(self) -> CheckedTokenizer:
        """The fast library with this tokenizer, held against the exact one.

        Raises:
            Unsupported: if it cannot serve this tokenizer.
        """
        table = self._backend.table()
        if table is None or self.prefix != "none":
            raise Unsupported(f"served by {self.library}" if table is None else "a space of its own before a text")
        backend = self._backend
        return CheckedTokenizer(open_fast(table), lambda texts: backend.encode(texts, prefixed=True))

    def served_by(self, fast: CheckedTokenizer) -> "Tokenizer":
        """The same tokenizer with `fast` at work."""
        other = object.__new__(Tokenizer)
        other.__dict__.update(self.__dict__)
        other._fast = fast
        return other

    @cached_property
    def named_tokens(self) -> Mapping[str, str]:
        """Text of the tokens that have a part to play, by part: `bos_token`, `eos_token`, `pad_token` ..."""
        texts = {part: _text(self._config.get(part)) for part in _NAMED}
        return {part: text for part, text in texts.items() if text is not None}

    @property
    def bos_id(self) -> int | None:
        """Token at the beginning of a text."""
        return self._named_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """Token at the end of a text."""
        return self._named_id("eos_token")

    @property
    def pad_id(self) -> int | None:
        """Token that fills batches up."""
        return self._named_id("pad_token")

    @property
    def unknown_id(self) -> int | None:
        """What text without a token of its own becomes; None where there is always one."""
        return self._backend.unknown_id

    @property
    def adds_bos(self) -> bool:
        """Whether the model expects a text to begin with `bos_id`."""
        return self.bos_id is not None and self._backend.adds_bos

    @property
    def kind(self) -> str:
        """Name of the Transformers class, without `Fast`; empty where the directory names none."""
        return str(self._config.get("tokenizer_class") or "").removesuffix("Fast")

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja text that renders conversations."""
        if _JINJA in self.files:
            return self.files[_JINJA].decode("utf-8")
        template = self._config.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            if "default" not in named:
                raise ConfigError(
                    f"{self.folder / _CONFIG}: chat_template: none of {sorted(named)} is called 'default'"
                )
            template = named["default"]
        return template if isinstance(template, str) else None

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the names and bytes of `files`."""
        total = hashlib.sha256()
        for name, content in self.files.items():
            total.update(name.encode() + hashlib.sha256(content).digest())
        return total.hexdigest()

    def encode(self, text: str, *, opens: bool = True) -> list[int]:
        """Token ids of plain text.

        Args:
            text: any text.
            opens: the tokenizer's own leading space, if it has one, belongs before this text.
        """
        return self.encode_batch([text], [opens])[0]

    def offsets(self, text: str, *, opens: bool = True) -> list[tuple[int, int]]:
        """[tokens] begin and end of the characters that each token of `encode` stands for.

        Tokens share a character that they are the bytes of. Where the library does not tell, as with special-token
        text that it was kept from, each has all of the text.
        """
        ids = self.encode(text, opens=opens)
        found, places = self._backend.offsets(text, prefixed=opens or self.prefix == "none")
        return places if found == ids else [(0, len(text))] * len(ids)

    def encode_batch(self, texts: Sequence[str], opens: Sequence[bool] | None = None) -> list[list[int]]:
        """`encode` of many texts."""
        return self.encode_all(texts, opens).lists()

    def encode_all(self, texts: Sequence[str], opens: Sequence[bool] | None = None) -> Encoded:
        """`encode` of many texts, in one array.

        Raises:
            Differs: if the fast library is at work and found to give other ids.
        """
        encoded = self._encode(texts, opens)
        if not self._is_special[encoded.ids].any():
            return encoded
        ids = encoded.lists()
        for index, tokens in enumerate(ids):
            if not self._special_ids.isdisjoint(tokens):
                ids[index] = self._encode_apart(texts[index], opens is None or opens[index])
        return Encoded.of_lists(ids)

    def _encode(self, texts: Sequence[str], opens: Sequence[bool] | None) -> Encoded:
        if self._fast is not None:
            return self._fast.encode(texts)
        if self.prefix == "none" or opens is None or all(opens):
            return self._backend.encode(texts, prefixed=True)
        ids: list[list[int]] = [[]] * len(texts)
        for prefixed in (True, False):
            chosen = [index for index, opening in enumerate(opens) if opening is prefixed]
            found = self._backend.encode([texts[index] for index in chosen], prefixed=prefixed).lists()
            for index, tokens in zip(chosen, found, strict=True):
                ids[index] = tokens
        return Encoded.of_lists(ids)

    @cached_property
    def _is_special(self) -> npt.NDArray[np.bool_]:
        """[vocab_size] whether no plain text may have the id."""
        special = np.zeros(self.vocab_size, np.bool_)
        special[list(self._special_ids)] = True
        return special

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens included."""
        return self._backend.decode(list(ids))

    def split(self, text: str) -> list[tuple[str, int | None]]:
        """Cut text at the special tokens it spells: each part with its id, or None where it is plain text."""
        parts: list[tuple[str, int | None]] = []
        end = 0
        for match in self._special_pattern.finditer(text):
            if match.start() > end:
                parts.append((text[end : match.start()], None))
            name = match.group() if match.group() in self.special_tokens else match.group().strip()
            parts.append((name, self.special_tokens[name]))
            end = match.end()
        if end < len(text):
            parts.append((text[end:], None))
        return parts

    @cached_property
    def _special_names(self) -> list[str]:
        # The longest first, so that no token hides a longer one that begins with it.
        return sorted(filter(None, self.special_tokens), key=len, reverse=True)

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        # No groups: an alternation that begins with plain characters is searched for by these, many times faster.
        added = {token.text: token for token in self._backend.added}
        patterns = (
            r"\s*" * added[name].lstrip + re.escape(name) + r"\s*" * added[name].rstrip for name in self._special_names
        )
        return re.compile("|".join(patterns) or r"(?!)")

    def _named_id(self, part: str) -> int | None:
        text = self.named_tokens.get(part)
        return None if text is None else self._backend.id_of(text)

    def _encode_apart(self, text: str, opens: bool) -> list[int]:
        # A model that lists its special tokens among its ordinary pieces (tokenizers' Unigram does) finds them in
        # text. Parting each one after its first character leaves it nothing to find.
        spelled = "|".join(map(re.escape, self._special_names))
        cuts = [match.start() + 1 for match in re.finditer(f"(?={spelled})", text)]
        pieces = [text[begin:end] for begin, end in pairwise([0, *cuts, len(text)])]
        ids = [
            token
            for index, piece in enumerate(pieces)
            for token in self._backend.encode([piece], prefixed=opens and index == 0).ids.tolist()
        ]
        if not self._special_ids.isdisjoint(ids):
            raise SpecialTokenError(next(token for token in ids if token in self._special_ids))
        return ids


class SpecialTokenError(ValueError):
    """The tokenizer makes a special token of plain text and cannot be kept from it."""

    def __init__(self, token: int) -> None:
        super().__init__(f"the tokenizer makes special token {token} of plain text; remove that text from the record")


def load_tokenizer(folder: Path, added: Sequence[str] = ()) -> Tokenizer:
    """Read the tokenizer directory `folder`, and give the tokens `added` the ids behind its own.

    Raises:
        ConfigError: if there is no tokenizer in it, one that cannot be served exactly, or it has an added token.
    """
    return Tokenizer(folder, added)


def open_tokenizer(pipeline: Pipeline) -> Tokenizer:
    """The tokenizer that a pipeline's data is prepared with."""
    pipeline = with_tokenizer(pipeline)
    return Tokenizer(pipeline.tokenizer_dir, pipeline.tokenizer.add_special_tokens)


class _Backend(Protocol):
    library: str
    added: Sequence[AddedToken]
    vocab_size: int
    prefix: Prefix
    adds_bos: bool
    unknown_id: int | None
    """What text without a token of its own becomes."""

    def encode(self, texts: Sequence[str], *, prefixed: bool) -> Encoded: ...
    def table(self) -> Mapping[str, Any] | None:
        """What a tokenizer.json of it holds, or None where there is none."""
        ...

    def offsets(self, text: str, *, prefixed: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids, and begin and end of the characters that each stands for; all of the text where that is not known."""
        ...

    def decode(self, ids: list[int]) -> str: ...
    def id_of(self, text: str) -> int | None: ...


def _open(folder: Path, files: Mapping[str, bytes], config: Mapping[str, Any]) -> _Backend:
    if _JSON in files:
        return _Json(folder / _JSON, files[_JSON], config)
    if _MODEL in files:
        return _SentencePiece(folder / _MODEL, files[_MODEL], config)
    raise ConfigError(
        f"{folder}: no tokenizer.json and no tokenizer.model; give a Hugging Face tokenizer directory "
        "(an older one becomes one by save_pretrained of Transformers)"
    )


class _Json:
    """A tokenizer.json, served by the tokenizers library."""

    library = "tokenizers"

    def __init__(self, path: Path, content: bytes, config: Mapping[str, Any]) -> None:
        try:
            text = content.decode("utf-8")
            table = orjson.loads(text)
            self._prefixed = _load_json(text, config)
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"{path}: not a tokenizer.json that this tokenizers library reads: {error}") from error
        if table["model"].get("dropout"):
            raise ConfigError(f"{path}: model.dropout is set, so ids would be random; set it to null")
        added = self._prefixed.get_added_tokens_decoder()
        if alone := [token.content for token in added.values() if token.special and token.single_word]:
            raise ConfigError(f"{path}: special token {alone[0]!r} is single_word, which is not supported")
        self.added: Sequence[AddedToken] = [
            AddedToken(token.content, id_, token.special, token.lstrip, token.rstrip) for id_, token in added.items()
        ]
        self.vocab_size = max(self._prefixed.get_vocab(with_added_tokens=True).values()) + 1
        self.prefix: Prefix = _json_prefix(table)
        unknown = table["model"].get("unk_token")
        self.unknown_id: int | None = table["model"].get("unk_id") if unknown is None else self.id_of(unknown)
        self.adds_bos = self._begins_with_bos(config)
        self._bare = self._prefixed
        if self.prefix != "none":
            self._bare = _load_json(json.dumps(_without_prefix(table)), config)

    def encode(self, texts: Sequence[str], *, prefixed: bool) -> Encoded:
        tokenizer = self._prefixed if prefixed else self._bare
        return Encoded.of_lists([found.ids for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)])

    def offsets(self, text: str, *, prefixed: bool) -> tuple[list[int], list[tuple[int, int]]]:
        found = (self._prefixed if prefixed else self._bare).encode(text, add_special_tokens=False)
        places: list[tuple[int, int]] = []
        end = 0
        offsets = found.offsets
        if not prefixed and offsets[:1] == [(0, 0)]:  # a normalizer that puts nothing before a text loses a character
            offsets = [(0, offsets[1][0] if len(offsets) > 1 else len(text)), *offsets[1:]]
        for first, last in offsets:  # whitespace that a post-processor trimmed off is of the token behind it
            places.append((min(first, end), last))
            end = max(end, last)
        return found.ids, places

    def table(self) -> Mapping[str, Any]:
        # With the tokens that tokenizer_config.json adds.
        table: Mapping[str, Any] = orjson.loads(self._prefixed.to_str())
        return table

    def decode(self, ids: list[int]) -> str:
        return str(self._prefixed.decode(ids, skip_special_tokens=False))

    def id_of(self, text: str) -> int | None:
        id_ = self._prefixed.token_to_id(text)
        return None if id_ is None else int(id_)

    def _begins_with_bos(self, config: Mapping[str, Any]) -> bool:
        bos = _text(config.get("bos_token"))
        ids = self._prefixed.encode("", add_special_tokens=True).ids
        return bos is not None and ids[:1] == [self.id_of(bos)]


def _load_json(text: str, config: Mapping[str, Any]) -> Any:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for id_, entry in sorted(_decoder(config).items()):
        if entry["content"] not in known:
            tokenizer.add_tokens([tokenizers.AddedToken(**entry)])
            if (given := tokenizer.token_to_id(entry["content"])) != id_:
                raise ValueError(f"tokenizer_config.json gives {entry['content']!r} the id {id_}, the file {given}")
    # The tokens with a part to play are special even where the file forgot to say so.
    named = [name for part in _NAMED if (name := _text(config.get(part))) is not None]
    listed = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    named += [name for entry in (listed if isinstance(listed, list) else listed.values()) if (name := _text(entry))]
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    tokenizer.add_special_tokens([name for name in dict.fromkeys(named) if name not in special])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _json_prefix(table: Mapping[str, Any]) -> Prefix:
    schemes: set[Prefix] = {_scheme(step) for step in _steps(table)}
    return "always" if "always" in schemes else "first" if "first" in schemes else "none"


def _scheme(step: Mapping[str, Any]) -> Prefix:
    match step["type"]:
        case "Prepend":
            return "always"
        case "ByteLevel":
            return "always" if step.get("add_prefix_space", True) else "none"
        case "Metaspace":
            old = "always" if step.get("add_prefix_space", True) else "never"
            scheme = step.get("prepend_scheme", old)
            return "always" if scheme == "always" else "first" if scheme == "first" else "none"
    return "none"


def _without_prefix(table: Mapping[str, Any]) -> Any:
    bare = json.loads(json.dumps(table))
    for step in _steps(bare):
        if step["type"] == "Prepend":
            step["prepend"] = ""
        elif step["type"] == "ByteLevel":
            step["add_prefix_space"] = False
        elif step["type"] == "Metaspace":
            step.pop("add_prefix_space", None)
            step["prepend_scheme"] = "never"
    return bare


def _steps(table: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """Normalizers and pre-tokenizers, sequences opened."""
    left = [step for step in (table.get("normalizer"), table.get("pre_tokenizer")) if step]
    while left:
        step = left.pop(0)
        inner = step.get("normalizers", step.get("pretokenizers"))
        if inner is None:
            yield step
        else:
            left += inner


class _SentencePiece:
    """A sentencepiece tokenizer.model, served by the sentencepiece library."""

    library = "sentencepiece"

    def __init__(self, path: Path, data: bytes, config: Mapping[str, Any]) -> None:
        try:
            model = SentencePieceModel.parse(data)
            sentencepiece_json.check(model)
        except ValueError as error:
            raise ConfigError(
                f"{path}: {error}; let save_pretrained of Transformers make a tokenizer.json of it, and use that"
            ) from error
        listed = [
            AddedToken(entry["content"], id_, entry.get("special", False), entry["lstrip"], entry["rstrip"])
            for id_, entry in sorted(_decoder(config).items())
        ]
        taken = {token.id for token in listed}
        own = [
            AddedToken(piece.text, id_, special=True)
            for id_, piece in enumerate(model.pieces)
            if piece.kind in (Kind.CONTROL, Kind.UNKNOWN) and id_ not in taken
        ]
        self.added: Sequence[AddedToken] = sorted([*listed, *own], key=lambda token: token.id)
        self.vocab_size = max(len(model.pieces), *(token.id + 1 for token in self.added))
        self.prefix: Prefix = "none" if not model.dummy_prefix else "always" if config.get("legacy", True) else "first"
        self.adds_bos = bool(config.get("add_bos_token", True))
        kinds = [piece.kind for piece in model.pieces]
        self.unknown_id: int | None = kinds.index(Kind.UNKNOWN) if Kind.UNKNOWN in kinds else None
        # Added tokens often stand on spare pieces such as [UNUSED_TOKEN_145]; as control pieces these are out of
        # reach of text, which would otherwise spell a special token under its old name.
        spare = {token.id for token in self.added if token.id < len(model.pieces)}
        data = changed(data, control={id_ for id_ in spare if model.pieces[id_].kind is not Kind.UNKNOWN})
        sentencepiece.set_min_log_level(2)  # or it reports pieces it ignores on every load
        self._prefixed = sentencepiece.SentencePieceProcessor(model_proto=data)
        self._bare = self._prefixed
        if model.dummy_prefix:
            self._bare = sentencepiece.SentencePieceProcessor(model_proto=changed(data, dummy_prefix=False))
        self._plain_added = {token.text: token.id for token in self.added if not token.special}
        names = sorted(self._plain_added, key=len, reverse=True)
        self._plain_pattern = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self._text_of = {token.id: token.text for token in self.added}

    def encode(self, texts: Sequence[str], *, prefixed: bool) -> Encoded:
        pattern = self._plain_pattern
        if pattern is None or not any(map(pattern.search, texts)):
            processor = self._prefixed if prefixed else self._bare
            return Encoded.of_lists(processor.encode(list(texts), num_threads=1))
        return Encoded.of_lists([self._encode_with_added(text, prefixed) for text in texts])

    def offsets(self, text: str, *, prefixed: bool) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        at = 0
        for part in filter(None, self._plain_pattern.split(text) if self._plain_pattern else [text]):
            if part in self._plain_added:
                ids.append(self._plain_added[part])
                places.append((at, at + len(part)))
                prefixed = self.prefix == "always"
            else:
                processor = self._prefixed if prefixed else self._bare
                own = processor.encode(part)
                ids += own
                places += [
                    (at + first, at + last) for first, last in _characters(part, processor.encode(part, out_type=str))
                ]
            at += len(part)
        return ids, places

    def table(self) -> None:
        return None

    def _encode_with_added(self, text: str, prefixed: bool) -> list[int]:
        assert self._plain_pattern is not None
        ids: list[int] = []
        for part in filter(None, self._plain_pattern.split(text)):
            if part in self._plain_added:
                ids.append(self._plain_added[part])
                prefixed = self.prefix == "always"
            else:
                ids += (self._prefixed if prefixed else self._bare).encode(part)
        return ids

    def decode(self, ids: list[int]) -> str:
        texts: list[str] = []
        run: list[int] = []
        for id_ in [*ids, -1]:
            if id_ >= 0 and id_ not in self._text_of:
                run.append(id_)
                continue
            if run:
                texts.append((self._bare if texts and self.prefix == "first" else self._prefixed).decode(run))
                run = []
            texts += [self._text_of[id_]] if id_ >= 0 else []
        return "".join(texts)

    def id_of(self, text: str) -> int | None:
        return next((token.id for token in self.added if token.text == text), None)


def _characters(text: str, pieces: Sequence[str]) -> list[tuple[int, int]]:
    """Begin and end of the characters of each piece of sentencepiece; of all where it changed the text."""
    parts = [
        bytes.fromhex(piece[3:5]) if _BYTE.fullmatch(piece) else piece.replace("\u2581", " ").encode()
        for piece in pieces
    ]
    encoded = text.encode()
    whole = b"".join(parts)
    shift = len(whole) - len(encoded)
    if shift not in (0, 1) or whole[shift:] != encoded or (shift and whole[:1] != b" "):
        return [(0, len(text))] * len(pieces)
    ends = np.cumsum([0, *map(len, parts)]) - shift
    starts = np.frombuffer(encoded, np.uint8) & 0xC0 != 0x80  # a character begins with each of these bytes
    count = np.concatenate([[0], np.cumsum(starts)])  # characters that begin before a byte
    return [
        (int(count[first + 1]) - 1 if first < last else int(count[first]), int(count[last]))
        for first, last in pairwise(ends.clip(0).tolist())
    ]


_BYTE = re.compile("<0x[0-9A-F]{2}>")


def _read_config(folder: Path, files: Mapping[str, bytes]) -> Mapping[str, Any]:
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", _CONFIG):
        if name not in files:
            continue
        try:
            table = json.loads(files[name].decode("utf-8"))
        except ValueError as error:
            raise ConfigError(f"{folder / name}: not valid JSON: {error}") from error
        config.update({key: value for key, value in table.items() if value is not None})
    return config


def _decoder(config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """tokenizer_config.json's added tokens by id, with all their properties."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {
        int(id_): {key: entry.get(key, plain.get(key)) for key in ("content", *plain)}
        for id_, entry in config.get("added_tokens_decoder", {}).items()
    }


def _text(token: object) -> str | None:
    """A token's text, written as a string or as a table."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None
