"""Text to token ids, from a Hugging Face tokenizer directory, without Transformers.

`tokenizer.json` is read as it stands; without one, a sentencepiece `tokenizer.model` with the special tokens that
`tokenizer_config.json` lists. A tokenizer here never adds a special token, and never makes one of text: the string
`<|im_end|>` inside a text becomes the tokens of its characters. Special tokens enter by their id, see `split`.

Transformers 5 rebuilds normalizer and pre-tokenizer of some classes from its own code instead of reading them from
tokenizer.json (LlamaTokenizer, Qwen2Tokenizer, GemmaTokenizer and their kin). Where the file agrees with the class,
which is the rule, the ids are the same; the export compares them and says so where they are not.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import ConfigError
from pipelines.model_source import with_tokenizer
from pipelines.schema import Pipeline
from prep.added_tokens import files_with, refuse_known
from prep.encoded import Encoded
from prep.fast_tokenizer import CheckedTokenizer, Unsupported, open_fast
from prep.json_tokenizer import JsonTokenizer
from prep.sentencepiece_tokenizer import SentencePieceTokenizer
from prep.tokenizer_backend import Prefix, TokenizerBackend
from prep.tokenizer_config import CONFIG, NAMED, read_config, token_text

_JSON, _MODEL, _JINJA = "tokenizer.json", "tokenizer.model", "chat_template.jinja"
_FILES = (_JSON, _MODEL, CONFIG, _JINJA, "special_tokens_map.json", "added_tokens.json")

Stamp = tuple[tuple[int, int], ...]
"""Size and time of change of each file that a tokenizer is of; of one that is not there zeros."""


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
        self._config = read_config(folder, files)
        self._backend = _open(folder, files, self._config)
        self.own_size = self._backend.vocab_size
        """Every id of a token that was not added is below it."""
        if self.added:
            refuse_known(folder, self.added, self._backend.id_of)
            files = files_with(files, self.added, self.own_size)
            self._config = read_config(folder, files)
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
        texts = {part: token_text(self._config.get(part)) for part in NAMED}
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
                raise ConfigError(f"{self.folder / CONFIG}: chat_template: none of {sorted(named)} is called 'default'")
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


def stamp(folder: Path) -> Stamp:
    """What tells, without reading them, whether the files of a tokenizer directory are those of before."""
    found = []
    for name in _FILES:
        try:
            status = (folder / name).stat()
            found.append((status.st_size, status.st_mtime_ns))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def open_tokenizer(pipeline: Pipeline) -> Tokenizer:
    """The tokenizer that a pipeline's data is prepared with."""
    pipeline = with_tokenizer(pipeline)
    return Tokenizer(pipeline.tokenizer_dir, pipeline.tokenizer.add_special_tokens)


def _open(folder: Path, files: Mapping[str, bytes], config: Mapping[str, Any]) -> TokenizerBackend:
    if _JSON in files:
        return JsonTokenizer(folder / _JSON, files[_JSON], config)
    if _MODEL in files:
        return SentencePieceTokenizer(folder / _MODEL, files[_MODEL], config)
    raise ConfigError(
        f"{folder}: no tokenizer.json and no tokenizer.model; give a Hugging Face tokenizer directory "
        "(an older one becomes one by save_pretrained of Transformers)"
    )
