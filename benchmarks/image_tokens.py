"""Image tokens per second: our loop against transformers' `generate`, on the same random Janus.

    python benchmarks/image_tokens.py --rounds 3
    python benchmarks/image_tokens.py --device cuda --side 384

Both paint one picture with guidance, two rows a step, drawing from the whole codebook; rounds are
interleaved. On an accelerator the bytes of weights and of cached keys and values that a step must
read are set beside what copying reaches there.

What `--fast` gains is not shown here: how many codes one forward makes certain depends on how sure
the model is, and random weights are sure of nothing. Printed is what a forward over a window of
codes takes beside one over a single code, from which follows how many codes it must make certain
to pay, and how many it does on these random weights, which says nothing of trained ones.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import click
import torch
from mid_janus import mid_janus
from stopwatch import copied_bytes_per_second, interleaved, table
from torch import Tensor

from omnipersona_cli.family.speculative import WINDOW
from op_janus import prompts
from op_janus.backend import JanusBackend
from op_janus.sampling import guided, sample

PROMPT = 32


def ours(
    backend: JanusBackend, ids: Tensor, *, static: bool | None = None, window: int = 0, seed: int
) -> Tensor:
    """Codes [N] of one picture."""
    rows = backend.llm.table(ids[0])
    return sample(
        backend.janus,
        partial(backend.llm.run, "generate", ()),
        torch.stack([rows, prompts.without(backend.llm, rows)]),
        weights=guided(5.0),
        generator=torch.Generator().manual_seed(seed),
        static=static,
        window=window,
    )


def forwards(backend: JanusBackend, ids: Tensor, *, window: int) -> int:
    """How often the language model runs for one picture that is drawn ahead."""
    runs: list[None] = []
    handle = backend.llm.decoder.register_forward_hook(lambda *_: runs.append(None))
    try:
        ours(backend, ids, window=window, seed=0)
    finally:
        handle.remove()
    return len(runs)


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
    text, size = backend.janus.config.get_text_config(), backend.llm.table.weight.element_size()
    cached = 2 * text.num_hidden_layers * text.hidden_size * size  # keys and values of a position
    positions = 2 * (PROMPT + backend.count / 2)
    return sum(tensor.numel() * tensor.element_size() for tensor in read) + positions * cached


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--side", type=click.IntRange(32), default=192, show_default=True, help="Pixels.")
@click.option("--device", type=click.Choice(("cpu", "cuda")), default="cpu", show_default=True)
@click.option("--window", type=click.IntRange(2), default=WINDOW, show_default=True)
def main(rounds: int, threads: int, side: int, device: str, window: int) -> None:
    """Time the painting of one picture each way and print tokens per second and the ratio."""
    torch.set_num_threads(threads)
    backend = mid_janus(side=side, device=device)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 256, (1, PROMPT), generator=generator).to(device)
    ways = {
        "ours": lambda number: ours(backend, ids, static=None, seed=number),
        "ours, drawn ahead": lambda number: ours(backend, ids, window=window, seed=number),
        "ours, other cache": lambda number: ours(backend, ids, static=device == "cpu", seed=number),
        "generate": lambda number: theirs(backend, ids, seed=number),
    }
    timings = interleaved(ways, rounds=rounds)
    click.echo(f"janus, 512 x 8, {backend.count} codes, {rounds} rounds, {threads} threads\n")
    click.echo(table(timings, what="a picture"))
    spent = timings.clock if device == "cuda" else timings.work
    for name, seconds in spent.items():
        rate = backend.count / statistics.median(seconds)
        click.echo(f"\n{name}: {rate:.1f} tokens a second of {device} time")
        if device == "cuda":
            reached = rate * bytes_of_a_step(backend)
            click.echo(f"{reached / 1e9:.0f} GB/s of {copied_bytes_per_second(device) / 1e9:.0f}")
    took = forwards(backend, ids, window=window)
    one = statistics.median(spent["ours"]) / backend.count
    many = statistics.median(spent["ours, drawn ahead"]) / took
    click.echo(
        f"\na forward over a window of {window} codes takes {many / one:.2f} of one over a code: "
        f"it pays from so many codes on (on random weights: {backend.count / took:.1f})"
    )


if __name__ == "__main__":
    main()
