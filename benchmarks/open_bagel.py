"""What opening BAGEL takes at its released size: seconds, and memory above the mapped file.

    python benchmarks/open_bagel.py --folder /tmp/bagel-7b

Writes a checkpoint of random bfloat16 weights in the released layout (29.5 GB; the folder is kept
where it is there already), opens it as `op ask -b bagel` does, reads every tensor that painting
needs, and prints one JSON line for each. Anonymous memory is what stays; pages of the mapped file
are given back by the system when others need them.
"""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import click
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor

from omnipersona_cli.backend import Opening
from op_bagel.config import BagelConfig
from op_bagel.loading import open_backend
from op_bagel.model import Bagel
from op_bagel.vae import AutoEncoder

T = TypeVar("T")

PIECE = 1 << 26
"""Bytes that are written at a time."""
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


@click.command()
@click.option("--folder", type=click.Path(path_type=Path), required=True)
def main(folder: Path) -> None:
    """Write the checkpoint where it is missing, open it, print what that took."""
    if not folder.exists():
        write(folder)
    print(json.dumps({"before": "opening", "anonymous_gb": anonymous_gb()}))
    backend = measured("understanding", lambda: open_backend(Opening(model=str(folder))))
    measured("painting too", backend._need_rest)
    weights = sum(
        value.nbytes for value in (*backend.bagel.parameters(), *backend.vae.parameters())
    )
    print(json.dumps({"weights_gb": round(weights / 1e9, 2), "dtype": str(backend.bagel.dtype)}))


def measured(what: str, work: Callable[[], T]) -> T:
    """The result of ``work``; its seconds, and the memory held afterwards, are printed."""
    began = time.monotonic()
    result = work()
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"opened": what, "seconds": seconds, "anonymous_gb": anonymous_gb()}))
    return result


def anonymous_gb() -> float:
    """GB of this process that are no mapped file (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
    return round(int(kilobytes) * 1024 / 1e9, 2)


def write(folder: Path) -> None:
    """Random weights of the released shapes, the two configurations, and a tokenizer of bytes."""
    config = BagelConfig()
    with torch.device("meta"):
        bagel, vae = Bagel(config), AutoEncoder(config.vae)
    folder.mkdir(parents=True)
    write_random(folder / "ema.safetensors", bagel.state_dict(), torch.bfloat16)
    write_random(folder / "ae.safetensors", vae.state_dict(), torch.float32)
    heads = {"num_attention_heads": 28, "num_key_value_heads": 4}
    (folder / "llm_config.json").write_text(json.dumps({**heads, "rope_theta": 1e6}))
    (folder / "vit_config.json").write_text(
        json.dumps({"num_attention_heads": 16, "patch_size": 14})
    )
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {word: number for number, word in enumerate([*words, *SPECIALS])}
    tokenizer = Tokenizer(models.BPE(vocab=known, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in SPECIALS])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_random(path: Path, shapes: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """A safetensors file of small random numbers, a piece at a time: it is larger than memory."""
    width = dtype.itemsize
    header, end = {}, 0
    for name, value in shapes.items():
        size = value.numel() * width
        kind = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
        offsets = [end, end + size]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": offsets}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    numbers = (torch.randn(PIECE // width) * 0.02).to(dtype).view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for start in range(0, end, PIECE):
            file.write(numbers[: min(PIECE, end - start)])
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
