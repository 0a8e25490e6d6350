"""Image tokens per second: our loop against transformers' `generate`, on the same random Janus.

    python benchmarks/image_tokens.py --rounds 3
    python benchmarks/image_tokens.py --device cuda --side 384

Both paint one picture with guidance, two rows a step, drawing from the whole codebook; rounds are
interleaved. On an accelerator the bytes of weights and of cached keys and values that a step must
read are set beside what copying reaches there.
"""

from __future__ import annotations

import statistics
from typing import Any

import click
import torch
from mid_janus import mid_janus
from stopwatch import copied_bytes_per_second, interleaved, table
from torch import Tensor

from op_janus.backend import JanusBackend
from op_janus.sampling import guided, sample

PROMPT = 32


def ours(backend: JanusBackend, ids: Tensor, *, static: bool | None, seed: int) -> Tensor:
    """Codes [N] of one picture."""
    rows = backend.table(ids[0])
    return sample(
        backend.janus,
        lambda **inputs: backend._run("generate", (), **inputs),
        torch.stack([rows, backend._without(rows)]),
        weights=guided(5.0),
        generator=torch.Generator().manual_seed(seed),
        static=static,
    )


def theirs(backend: JanusBackend, ids: Tensor, *, seed: int) -> Tensor:
    """The same by `generate`."""
    torch.manual_seed(seed)
    janus: Any = backend.janus
    janus.generation_config.generation_kwargs = {"boi_token_id": int(ids[0, -1])}
    found: Tensor = janus.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        do_sample=True,
        top_k=0,
        guidance_scale=5,
        pad_token_id=2,
        bos_token_id=int(ids[0, 0]),
        eos_token_id=1,
    )
    return found.flatten()


def bytes_of_a_step(backend: JanusBackend) -> float:
    """Weights of the language model and the image head, and half the cache of two rows."""
    model: Any = backend.janus.model
    read = [*model.language_model.layers.parameters(), *model.generation_head.parameters()]
    text, size = backend.janus.config.get_text_config(), backend.table.weight.element_size()
    cached = 2 * text.num_hidden_layers * text.hidden_size * size  # keys and values of a position
    positions = 2 * (PROMPT + backend.count / 2)
    return sum(tensor.numel() * tensor.element_size() for tensor in read) + positions * cached


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--side", type=click.IntRange(32), default=192, show_default=True, help="Pixels.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
def main(rounds: int, threads: int, side: int, device: str) -> None:
    """Time the painting of one picture each way and print tokens per second and the ratio."""
    torch.set_num_threads(threads)
    backend = mid_janus(side=side, device=device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 256, (1, PROMPT), generator=generator).to(device)
    ways = {
        "ours": lambda number: ours(backend, ids, static=None, seed=number),
        "ours, other cache": lambda number: ours(backend, ids, static=device == "cpu", seed=number),
        "generate": lambda number: theirs(backend, ids, seed=number),
    }
    timings = interleaved(ways, rounds=rounds)
    click.echo(f"janus, 512 x 8, {backend.count} codes, {rounds} rounds, {threads} threads\n")
    click.echo(table(timings, what="a picture"))
    for name, seconds in (timings.clock if device == "cuda" else timings.work).items():
        rate = backend.count / statistics.median(seconds)
        click.echo(f"\n{name}: {rate:.1f} tokens a second of {device} time")
        if device == "cuda":
            reached = rate * bytes_of_a_step(backend)
            click.echo(f"{reached / 1e9:.0f} GB/s of {copied_bytes_per_second(device) / 1e9:.0f}")


if __name__ == "__main__":
    main()
