"""How texts, pictures and concept tokens become one row of ids, and who may look at whom.

Source: Show-o, sections 3.2 (omni-attention, unified prompting) and 3.3. Ids from `Vocabulary.size`
on stand for soft rows: concept tokens that are in no table (``size + k`` is soft row k).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from op_showo.config import ShowoConfig

IGNORE = -100
"""The label of a position that is not trained."""


def text_block(text: Sequence[int], config: ShowoConfig) -> list[int]:
    """``[PAD]... <|t2i|> bos text eos``, T + 1 ids; what is too long loses its end, not its eos."""
    vocab, length = config.vocab, config.text_length
    body = list(text)
    if not body or body[0] != vocab.bos:
        body.insert(0, vocab.bos)
    ids = [vocab.special("<|t2i|>"), *body, vocab.eos]
    if len(ids) > length + 1:
        ids = [*ids[:length], vocab.eos]
    return [vocab.special("[PAD]")] * (length + 1 - len(ids)) + ids


def picture_ids(codes: Tensor, hidden: Tensor | None, config: ShowoConfig) -> Tensor:
    """Codes [B, N] -> ``<|soi|> codes <|eoi|>`` [B, N + 2], the mask id where ``hidden``."""
    vocab = config.vocab
    ids = codes + vocab.image_offset
    if hidden is not None:
        ids = torch.where(hidden, vocab.mask, ids)
    ends = [torch.full_like(ids[:, :1], vocab.special(name)) for name in ("<|soi|>", "<|eoi|>")]
    return torch.cat((ends[0], ids, ends[1]), dim=1)


def painting_attend(ids: Tensor, config: ShowoConfig) -> Tensor:
    """For rows that paint, [B, L] -> [B, 1, L, L], true where the query may look at the key.

    The picture sees all but padding, the text is causal. Padding sees earlier padding, so that no
    row is empty.
    """
    length = ids.shape[1]
    pad = ids == config.vocab.special("[PAD]")
    attend = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    attend = attend | (torch.arange(length, device=ids.device) > config.text_length)[:, None]
    return (attend & (pad[:, :, None] | ~pad[:, None, :]))[:, None]


def understanding_ids(codes: Tensor, config: ShowoConfig) -> Tensor:
    """``<|mmu|> <|soi|> codes <|eoi|>`` [B, N + 3]: what understanding starts from."""
    ids = picture_ids(codes, None, config)
    return torch.cat((torch.full_like(ids[:, :1], config.vocab.special("<|mmu|>")), ids), dim=1)


def reading_attend(length: int, picture: slice) -> Tensor:
    """Causal, and every row attends to the columns ``picture``; [1, 1, L, L]."""
    attend = torch.ones(length, length, dtype=torch.bool).tril()
    attend[:, picture] = True
    return attend[None, None]


def padded(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Rows of different lengths, filled up on the right; [B, L] int64."""
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])
