"""What is computed once for every picture: its codes, and the keys and values of reading it.

The part of an understanding row that holds the picture has no concept token in it and never sees
the text, so its keys and values serve every question about that picture (Show-o, section 3.2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b

import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.family.pieces import give_back
from op_showo import prompts
from op_showo.magvit import Magvit, fit, to_tensor
from op_showo.model import Prefix, Showo
from op_showo.placing import TextTokenizer

REMEMBERED = 2 << 30
"""Bytes of keys and values that are kept of pictures; the oldest go first."""

BLACK = (0, 0, 0)
"""What is looked at where there is no picture (UniCTokens, section 4)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """A picture as understanding reads it: codes [1, N], or CLIP's features [1, n, width]."""

    key: bytes
    values: Tensor


class Pictures:
    """The frozen encoders and their memory. ``clip`` gives features [1, n, width] of a picture and
    ``system`` is the text before them, for the variants that understand through CLIP; ``remember``
    is in bytes."""

    def __init__(
        self,
        net: Showo,
        magvit: Magvit,
        tokenizer: TextTokenizer,
        *,
        clip: Callable[[Image], Tensor] | None,
        system: str,
        remember: int,
    ) -> None:
        self.net, self.magvit, self.tokenizer = net, magvit, tokenizer
        self.clip, self.system, self.remember = clip, system, remember
        self.read: OrderedDict[bytes, Prefix] = OrderedDict()
        self.encoded: OrderedDict[bytes, Tensor] = OrderedDict()

    @torch.no_grad()
    def encode(self, image: Image) -> Tensor:
        """Codes [1, N] of the middle square, remembered for a while."""
        square = fit(image.convert("RGB"), self.net.config.resolution)
        key = blake2b(square.tobytes(), digest_size=16).digest()
        if key not in self.encoded:
            give_back()  # what a pass of the language model left, before the tokenizer's maps
            codes = self.magvit.encode(to_tensor(square)[None].to(self.net.device)).cpu()
            self.encoded[key] = codes
            if len(self.encoded) > 4096:
                self.encoded.popitem(last=False)
        return self.encoded[key]

    @torch.no_grad()
    def see(self, image: Image | None) -> Observed:
        """A picture for understanding; a black one where there is none."""
        if image is None:
            side = self.net.config.resolution
            image = images.new("RGB", (side, side), BLACK)
        values = self.encode(image) if self.clip is None else self.clip(image)
        key = blake2b(values.float().cpu().numpy().tobytes(), digest_size=16).digest()
        return Observed(key=key, values=values)

    @torch.no_grad()
    def features(self, image: Image) -> Tensor:
        """The mean [d] of what the language model sees: embeddings of the codes, or CLIP's features
        after the projection."""
        values = self.see(image).values
        if self.net.mm_projector is None:
            ids = values.to(self.net.device) + self.net.config.vocab.image_offset
            rows = self.net.embed(ids)[0]
        else:
            rows = self.net.mm_projector(values.to(self.net.device, self.net.table.dtype))[0]
        return rows.float().mean(0).cpu()

    @property
    def full(self) -> bool:
        """Whether another picture would drive one out."""
        return sum(prefix.bytes for prefix in self.read.values()) >= self.remember

    @torch.no_grad()
    def prefix(self, observed: Observed) -> Prefix:
        """The keys and values of a picture that was read, from memory or anew."""
        if observed.key in self.read:
            self.read.move_to_end(observed.key)
            return self.read[observed.key]
        rows, columns = self._rows(observed)
        attend = prompts.reading_attend(rows.shape[1], columns)
        _, found = self.net.read(rows, attend)
        self.read[observed.key] = found
        while self.read and sum(prefix.bytes for prefix in self.read.values()) > self.remember:
            self.read.popitem(last=False)
        return found

    def _rows(self, observed: Observed) -> tuple[Tensor, slice]:
        """Rows [1, P, d] and the columns that all of them see."""
        if self.net.mm_projector is None:
            ids = prompts.understanding_ids(observed.values, self.net.config)
            return self.net.embed(ids), slice(0, ids.shape[1])
        vocab = self.net.config.vocab
        before = [
            vocab.special("<|mmu|>"),
            *self.tokenizer.encode(self.system),
            vocab.special("<|soi|>"),
        ]
        features = observed.values.to(self.net.device, self.net.table.dtype)
        rows = [
            self.net.embed(torch.tensor([before])),
            self.net.mm_projector(features),
            self.net.embed(torch.tensor([[vocab.special("<|eoi|>")]])),
        ]
        return torch.cat(rows, dim=1), slice(len(before), len(before) + features.shape[1])
