"""Text to token ids, as MiniLM was trained with them.

Promises: never more than LENGTH tokens, and a word whether some were cut off; what is no text, or far too much of it,
is refused with the place and the limit. Nothing is padded here: who shares a batch, and how wide it is, is the
server's question. Safe to call from several threads; called in the pool of `service`.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from examples.embed.files import tokenizer_path
from penstock.errors import InvalidArgument

LENGTH: Final = 128
"""Tokens of a text at most: what MiniLM was trained with. It would take 512, and what it says of them is a guess."""

MOST_BYTES: Final = 64 * 1024
"""Of a text: some hundred times what is read of it. Cutting it into words costs time whether they are read or not."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tokens:
    ids: Ids
    """[t], from 2 (the marks of beginning and end) to LENGTH."""

    truncated: bool
    """The text went on."""

    @property
    def mask(self) -> Ids:
        """Which tokens count; all, until a batch is padded."""
        return np.ones_like(self.ids)


def tokens(text: bytes) -> Tokens:
    """Raises InvalidArgument for bytes that are no UTF-8, and for more than MOST_BYTES."""
    if len(text) > MOST_BYTES:
        raise InvalidArgument(
            f"text: {len(text)} bytes, at most {MOST_BYTES}; the first {LENGTH} tokens are all that is read, so cut it"
        )
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"text: byte {error.start} of {len(text)} is not UTF-8 ({error.reason})") from None
    found = tokenizer().encode(decoded)
    return Tokens(np.array(found.ids, np.int64), bool(found.overflowing))


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    found = Tokenizer.from_file(str(tokenizer_path()))
    found.no_padding()
    found.enable_truncation(LENGTH)
    return found
