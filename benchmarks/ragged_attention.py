"""A learning step over samples of unequal length: attention over padded samples against sample by
sample.

    python benchmarks/ragged_attention.py --rounds 3

A random BAGEL of 512 x 8 layers reads samples of the given numbers of rows behind a concept's turn,
and gradients go back to that turn's rows, as in learning. Everything but attention always runs on
the real rows alone. Losses and gradients of both ways are compared in every round.

Nested tensors take no mask of their own in torch's attention; its flex attention has no way back
on a processor, so that neither is among the ways.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import click
import torch
from stopwatch import interleaved, table
from torch import Tensor

from op_bagel.config import BagelConfig, DecoderConfig, SpecialTokens, ViTConfig
from op_bagel.model import Bagel, initialise
from op_bagel.packing import Packed, pack
from op_bagel.segments import Noise, Text, concept_turn
from op_bagel.vae import VAEConfig

CONFIG = BagelConfig(
    llm=DecoderConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
        num_attention_heads=8, num_key_value_heads=2, head_dim=64,
    ),
    vit=ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
        image_size=64, patch_size=16,
    ),
    vae=VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), z_channels=16, num_res_blocks=1),
    special_tokens=SpecialTokens(bos_token_id=0, eos_token_id=1, start_of_image=2, end_of_image=3),
)  # fmt: skip


def batch(rows: Sequence[int]) -> Packed:
    """A sample of each length: words, then a picture 16 cells wide that is to be painted."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for length in rows:
        high = max(1, (length - 14) // 16)
        tokens = torch.randn(2, high * 16, CONFIG.latent_width, generator=generator)
        picture = Noise(tokens[0], (high, 16), 0.5, tokens[1])
        samples.append([Text(tuple(range(4, 14))), picture])
    return pack(samples, CONFIG, multiple=16)


def stepped(model: Bagel, packed: Packed, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in a concept's rows [33, D]."""
    rows = rows.clone().requires_grad_()
    turn = concept_turn(rows[:1], rows[1:17], rows[17:], says=[20], ends=[21])
    loss = model(packed, model.prefill([turn])).mse.mean()
    torch.autograd.backward(loss)
    assert rows.grad is not None
    return loss.detach(), rows.grad


def same(results: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Fails where the ways disagree."""
    for one, other in zip(*results.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--rows", multiple=True, type=click.IntRange(32), default=(768, 384, 256, 128))
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(rounds: int, rows: tuple[int, ...], threads: int) -> None:
    """Time a step each way and print the ratio."""
    torch.set_num_threads(threads)
    model = Bagel(CONFIG)
    initialise(model, 0)
    torch.nn.init.normal_(model.llm2vae.weight, std=0.02)  # a fresh one gives no gradient
    model.requires_grad_(False)
    packed = batch(rows)
    concept = torch.randn(33, CONFIG.llm.hidden_size, generator=torch.Generator().manual_seed(1))
    apart = replace(packed, apart=tuple(packed.lengths.tolist()))
    ways = {
        "sample by sample": lambda number: stepped(model, apart, concept),
        "padded": lambda number: stepped(model, replace(packed, apart=None), concept),
    }
    timings = interleaved(ways, rounds=rounds, check=same)
    lengths = ", ".join(map(str, packed.lengths.tolist()))
    chosen = "sample by sample" if packed.apart else "padded"
    click.echo(f"512 x 8, samples of {lengths} rows, {rounds} rounds, {threads} threads\n")
    click.echo(table(timings, what="a step"))
    click.echo(f"\nchosen for such a batch: {chosen}")


if __name__ == "__main__":
    main()
