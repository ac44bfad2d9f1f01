"""A stand-in for the fast library: the ids of tokenizers, but wrong where it is told to be."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
from tokenizers import Tokenizer

from prep.encoded import Encoded
from prep.fast_tokenizer import LIBRARY


class Fake:
    """Gives the ids of tokenizers.

    Args:
        table: of a tokenizer.json.
        wrong: for which texts an id is added that does not belong there.
        error: is raised instead of an answer.
    """

    name = LIBRARY
    version = "9.9"

    def __init__(
        self,
        table: Mapping[str, Any],
        *,
        wrong: Callable[[str], bool] = lambda _: False,
        error: BaseException | None = None,
    ) -> None:
        self._exact = exact(table)
        self._wrong = wrong
        self._error = error

    def encode(self, texts: Sequence[str]) -> Encoded:
        """As asked for."""
        if self._error is not None:
            raise self._error
        for text in texts:
            text.encode()  # as the library does, which raises for half a surrogate pair
        found = self._exact(texts).lists()
        return Encoded.of_lists(
            [[*ids, 1] if self._wrong(text) else ids for text, ids in zip(texts, found, strict=True)]
        )


def exact(table: Mapping[str, Any]) -> Callable[[Sequence[str]], Encoded]:
    """Ids by tokenizers."""
    tokenizer = Tokenizer.from_str(orjson.dumps(table).decode())
    tokenizer.encode_special_tokens = True
    return lambda texts: Encoded.of_lists(
        [found.ids for found in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    )
