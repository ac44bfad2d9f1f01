"""A faster library for byte-level BPE, used only where it is seen to give the very ids that `tokenizers` gives.

The ids of `tokenizers` are the right ones. Before a run uses the fast library, both tokenize texts made to be awkward
and a sample of the run's own texts (`prep.backend`); while it runs, both tokenize a text of every batch in 256 and at
least one. The first difference ends the use of it, and the run goes on as if it had never been used.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any, Protocol
from zlib import crc32

import numpy as np
import orjson

from prep.encoded import Encoded

LIBRARY = "fastokens"
"""Name of the library, which the extra `fast` installs."""

_EVERY = 256
"""One text in so many is tokenized a second time, by `tokenizers`."""
_WINDOW = 4096
"""Characters of a text that are tokenized a second time at most: a document takes `tokenizers` milliseconds."""
_FOLDED = "\u017f\u212a"
"""Long s and the Kelvin sign, all that case-insensitive patterns take for ASCII letters; libraries do not agree when.
Texts with them are left to `tokenizers`."""


class Fast(Protocol):
    """What a fast library has to offer."""

    name: str
    version: str

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids of plain texts; text of special tokens is plain as well."""
        ...


class Unsupported(ValueError):  # noqa: N818 (a finding, not a failure)
    """The fast library cannot serve this tokenizer; the message says why."""


class Differs(Exception):  # noqa: N818
    """The fast library gave other ids than `tokenizers`, or failed; the message says for what."""


class CheckedTokenizer:
    """A fast tokenizer that is held against the exact one as it works.

    Args:
        fast: the fast one.
        exact: ids of texts, by `tokenizers`.
    """

    def __init__(self, fast: Fast, exact: Callable[[Sequence[str]], Encoded]) -> None:
        self._fast = fast
        self._exact = exact
        self.name = fast.name
        self.version = fast.version

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids of plain texts.

        Raises:
            Differs: if a text of the sample has other ids.
        """
        if not texts:
            return Encoded.of_lists([])
        if any(map(_is_folded, texts)):
            return self._around_folded(texts)
        phase = crc32(texts[-1][:_WINDOW].encode("utf-8", "replace")) % min(len(texts), _EVERY)
        self.compare([text if len(text) <= _WINDOW else _window(text) for text in texts[phase::_EVERY]])
        return self._encode(texts)

    def compare(self, texts: Sequence[str]) -> None:
        """Tokenize texts by both.

        Raises:
            Differs: if one of them has other ids.
        """
        texts = [text for text in texts if not _is_folded(text)]
        found = self._encode(texts)
        index = self._exact(texts).first_difference(found)
        if index is not None:
            raise Differs(f"{self._fast.name} {self._fast.version} gives other ids for {_short(texts[index])}")

    def _encode(self, texts: Sequence[str]) -> Encoded:
        try:
            found = self._fast.encode(texts)
        except (KeyboardInterrupt, SystemExit):
            raise
        except UnicodeEncodeError:  # half a surrogate pair: the other one knows what to say about it
            return self._exact(texts)
        except BaseException as error:  # a panic in Rust is no Exception
            raise Differs(f"{self._fast.name} {self._fast.version} failed: {error}") from error
        if len(found) != len(texts) or found.bounds[-1] != found.ids.size:
            raise Differs(f"{self._fast.name} {self._fast.version} answered {len(found)} of {len(texts)} texts")
        return found

    def _around_folded(self, texts: Sequence[str]) -> Encoded:
        folded = [index for index, text in enumerate(texts) if _is_folded(text)]
        plain = [index for index, text in enumerate(texts) if not _is_folded(text)]
        found = dict(zip(folded, self._exact([texts[index] for index in folded]).parts(), strict=True))
        found |= zip(plain, self.encode([texts[index] for index in plain]).parts(), strict=True)
        return Encoded.of_parts(found[index] for index in range(len(texts)))


def open_fast(table: Mapping[str, Any]) -> Fast:
    """The fast library with the tokenizer that the table of a tokenizer.json describes.

    Raises:
        Unsupported: if the library is not installed, or cannot serve such a tokenizer.
    """
    if reason := unsupported(table):
        raise Unsupported(reason)
    try:
        return _Fastokens(table)
    except (ImportError, PackageNotFoundError) as error:
        raise Unsupported(f'{LIBRARY} is not installed; pip install "packtrain[fast]" brings it') from error
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        raise Unsupported(f"{LIBRARY} does not read this tokenizer: {error}") from error


def unsupported(table: Mapping[str, Any]) -> str | None:
    """What about the table of a tokenizer.json keeps the fast library from serving it, or None."""
    model, normalizer = table["model"], table.get("normalizer")
    if model.get("type", "BPE") != "BPE":
        return f"model {model.get('type')}, not BPE"
    odd = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")
    if set_ := [key for key in odd if model.get(key)]:
        return f"model.{set_[0]} is set"
    if any(step["type"] != "NFC" for step in _opened(normalizer, "normalizers")):
        return "a normalizer other than NFC"
    *splits, last = _opened(table.get("pre_tokenizer"), "pretokenizers") or [{"type": "none"}]
    if last["type"] != "ByteLevel" or last.get("add_prefix_space", True):
        return "not byte-level, or with a space before each text"
    if other := [step["type"] for step in splits if step["type"] not in ("Split", "Digits")]:
        return f"pre-tokenizer {other[0]}"
    plain = [token for token in table.get("added_tokens", []) if not token["special"]]
    if any(token["single_word"] or token["lstrip"] or token["rstrip"] for token in plain):
        return "an added token that takes its surroundings into account"
    return None


def awkward_texts(added: Sequence[str]) -> list[str]:
    """Texts on which libraries have been seen to differ, or might.

    Args:
        added: text of the tokenizer's added and special tokens.
    """
    return [*_every_character(), *_runs(), *_WORDS, *_around(added)]


class _Fastokens:
    """The library fastokens, on the calling thread alone."""

    name = LIBRARY

    def __init__(self, table: Mapping[str, Any]) -> None:
        # Read by the library when it is first used. The processes are the parallelism.
        os.environ["FASTOKENS_BPE_THREADS"] = "1"
        library: Any = import_module("fastokens._native")
        self.version = version(LIBRARY)
        kept = {key: table.get(key) for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")}
        self._tokenizer = library.Tokenizer.from_json_str(orjson.dumps({"version": "1.0", **kept}).decode())

    def encode(self, texts: Sequence[str]) -> Encoded:
        ids, bounds = self._tokenizer.encode_batch_flat(texts, add_special_tokens=False, split_special_tokens=True)
        return Encoded(np.frombuffer(ids, np.uint32), np.frombuffer(bounds, np.uint64).astype(np.int64))


def _is_folded(text: str) -> bool:
    return _FOLDED[0] in text or _FOLDED[1] in text


def _window(text: str) -> str:
    begin = crc32(text[:_WINDOW].encode("utf-8", "replace")) % (len(text) - _WINDOW)
    return text[begin : begin + _WINDOW]


def _short(text: str) -> str:
    return ascii(text if len(text) <= 120 else f"{text[:120]} ...")


def _opened(step: Mapping[str, Any] | None, inner: str) -> list[Mapping[str, Any]]:
    """A step, or the steps of a sequence."""
    if step is None:
        return []
    return [one for part in step[inner] for one in _opened(part, inner)] if step["type"] == "Sequence" else [step]


_UNIFORM = ((0x3400, 0xA4C0), (0xAC00, 0xD7A4), (0xE000, 0xF900), (0x12000, 0x13430), (0x17000, 0x18D00))
"""Blocks of thousands of characters alike: Chinese, Korean, private use, cuneiform and hieroglyphs, Tangut."""
_WORDS = (
    "I'm you're he'll WE'VE they'D it'S can't DON'T 'tis 's 'S ''ve'll'd",
    "don\u2019t \u2018quoted\u2019 \u201cquoted\u201d \u2013 \u2014 \u2026",
    "CamelCase snake_case kebab-case UPPER lower Title x1y2z3 1a2b v1.2.3-rc4",
    "3.14159 1,234,567.89 -1e-10 0xDEADBEEF 12345678901234567890 1\u00bd \u0663\u0664\u0665 \u2167 \uff11\uff12",
    "def f(x: int) -> str:\n    return f'{x!r}'\n\n\n\tif x:\r\n\t\tpass\r\n\r\n# end",
    'https://example.org/a/b?c=d&e=%20#f mail@example.org C:\\dir\\file.txt "k": [1, 2], </p><br/>',
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u6211\u6709123\u4e2aapple\uff01\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8 "
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f44d\U0001f3fd \U0001f1e8\U0001f1f3 1\ufe0f\u20e3 \u2764\ufe0f",
    "e\u0301 \u00e9 o\u0308\u0323 o\u0323\u0308 \u212b \ufb01 \u1e9b\u0323 a\u0300\u0301\u0302\u0316\u0317 \u0301x",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 "
    "\u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0130\u0131",
    "\ufeffmark a\u200bb a\u00adb \u202eabc\u202c \x00\x01\x1b[0m\x7f\x80\x9f \ufffd\ufffe\uffff \U0010ffff",
    "",
)


def _every_character() -> list[str]:
    """Every character below U+20000 beside letters, digits and spaces, one in 61 of those that are alike."""
    skipped = ((0xD800, 0xE000), *((begin + 1, end) for begin, end in _UNIFORM))
    edges = [0, *(edge for pair in sorted(skipped) for edge in pair), 0x20000]
    points = [point for begin, end in zip(edges[::2], edges[1::2], strict=True) for point in range(begin, end)]
    points += [point for begin, end in _UNIFORM for point in range(begin + 61, end, 61)]
    points += range(0x20000, 0x110000, 997)
    texts = [f"a{chr(point)}b {chr(point)}1" for point in points if not _is_folded(chr(point))]
    rows = ["\n".join(texts[begin : begin + 64]) for begin in range(0, len(texts), 64)]
    return rows + [f"{chr(one)}{chr(two)}." for one, two in pairwise(points[::101])]


def _runs() -> list[str]:
    """One character, or two in turn, many times."""
    pieces = [" ", "\n", "\r\n", "\t", "\u00a0", "\u3000", " \n", "\n ", "a", "aB", "1", ".", "'", "\u4e2d", "\u00e9"]
    pieces += ["\u0301", "\U0001f600", "-=", "a ", " .", "1 ", "\x00"]
    return [before + piece * count + after for piece in pieces for count in (1, 2, 3, 4, 7, 33, 1000)
            for before, after in (("", ""), ("a", "b"), (" ", ". x"))]  # fmt: skip


def _around(added: Sequence[str]) -> list[str]:
    """Text of added tokens alone, within text, cut short and doubled."""
    return [
        text
        for name in added[:256]
        for text in (
            name,
            f"a{name}b",
            f"a {name} b\n{name}\n",
            name[:-1],
            name[1:],
            name + name,
            f"<{name}>",
            name * 3,
        )
    ]
