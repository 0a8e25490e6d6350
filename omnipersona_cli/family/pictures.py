"""What frozen encoders make of pictures, remembered for a while."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

from PIL.Image import Image
from torch import Tensor

Looked = TypeVar("Looked", bound=Image | None)
T = TypeVar("T")

MOST = 256 << 20
"""Bytes that are remembered; what was used longest ago goes first."""


class Encoded:
    """Tensors by picture: ``make`` encodes one that is not remembered.

    Tokens start from photos that are then learned from, and a held-out photo is asked about again
    and again.
    """

    def __init__(self, make: Callable[[Image], Tensor], *, most: int = MOST) -> None:
        self.make, self.most = make, most
        self._kept: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, image: Image) -> Tensor:
        """The tensor of ``image``, told apart by its pixels."""
        seal = blake2b(f"{image.mode}{image.size}".encode(), digest_size=16)
        seal.update(image.tobytes())
        key = seal.digest()
        found = self._kept.pop(key, None)
        self._kept[key] = found = self.make(image) if found is None else found
        while len(self._kept) > 1 and sum(one.nbytes for one in self._kept.values()) > self.most:
            self._kept.popitem(last=False)
        return found

    def clear(self) -> None:
        """Forget all pictures."""
        self._kept.clear()


def once(encode: Callable[[Looked], T]) -> Callable[[Looked], T]:
    """``encode``, run once for each picture: for a batch of lessons, which keeps them alive."""
    known: dict[int, T] = {}

    def encoded(image: Looked) -> T:
        if id(image) not in known:
            known[id(image)] = encode(image)
        return known[id(image)]

    return encoded
