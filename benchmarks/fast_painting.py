"""What `--fast` paints with rectified flow: how far from the picture of many steps, and how soon.

    python benchmarks/fast_painting.py
    python benchmarks/fast_painting.py --random
    python benchmarks/fast_painting.py --compiled

On nano: the same noises are painted by four solvers at equal numbers of evaluations of the model
(an evaluation is one context: a guided step has two), and each picture is held against the one that
Heun's method paints in many steps. Printed are the mean squared error of the pixels (0..255), the
PSNR of that, and processor seconds a picture, decoding left out. Concepts are characters that nano
has never seen, their tokens as learning starts from them.

``--random`` times an edit's three contexts on a random model of 512 x 8 layers, branch by branch
and as one batch. Its pictures mean nothing, and no error is printed. ``--compiled`` tells what
`torch.compile` costs on nano, and from how many steps on it pays.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import click
import torch
from PIL import Image
from series import draw_folder
from stopwatch import interleaved, table
from torch import Tensor

from omnipersona_cli.backend import Opening, Prompt
from omnipersona_cli.language.mentions import to_turn
from op_bagel.cache import Cache
from op_bagel.config import BagelConfig, DecoderConfig, SpecialTokens, ViTConfig
from op_bagel.model import Bagel, initialise
from op_bagel.pictures import unpatchify
from op_bagel.sampling import Guidance, extrapolated, noise_tokens, sample_latents, time_grid
from op_bagel.segments import Latent, Text
from op_bagel.vae import VAEConfig
from op_nano.backend import NanoBackend, open_backend

PROMPTS = ("<bo> at the beach", "<bo> in the snow", "a picture of <bo>")
MANY = 64
"""Steps of the picture that all are held against."""

Velocity = Callable[[Tensor, float], Tensor]


def euler(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """First order; one evaluation a step."""
    for t, after in pairwise(times):
        x = x - (t - after) * velocity(x, t)
    return x


def ab2(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """Adams and Bashforth: the velocity of the step before makes it second order."""
    earlier = None
    for t, after in pairwise(times):
        v = velocity(x, t)
        slope = v if earlier is None else extrapolated(v, t, after, earlier)
        earlier, x = (t, v), x - (t - after) * slope
    return x


def dpm(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """DPM-Solver++ 2M (arXiv 2211.01095) where x_t = (1 - t) x_0 + t noise; the first steps and the
    last are of first order, because half the log of the signal to noise has no end there."""

    def half_log(t: float) -> float:
        return math.log((1 - t) / t)

    earlier = None
    for t, after in pairwise(times):
        picture = x - t * velocity(x, t)
        better = picture
        if earlier is not None and after > 0 and earlier[0] < 1:
            ratio = (half_log(t) - half_log(earlier[0])) / (half_log(after) - half_log(t))
            better = picture + (picture - earlier[1]) / (2 * ratio)
        earlier, x = (t, picture), (after / t) * x + (1 - after / t) * better
    return x


def heun(velocity: Velocity, x: Tensor, times: Sequence[float]) -> Tensor:
    """Second order; two evaluations a step, one for the last."""
    for t, after in pairwise(times):
        v = velocity(x, t)
        ahead = x - (t - after) * v
        x = x - (t - after) * (v + velocity(ahead, after)) / 2 if after > 0 else ahead
    return x


SOLVERS = {"Euler": euler, "Adams-Bashforth 2": ab2, "DPM-Solver++ 2M": dpm, "Heun": heun}


def contexts(nano: NanoBackend, characters: int) -> list[Cache]:
    """A context for each character and prompt."""
    found = []
    for seed in range(33_000_000, 33_000_000 + characters):
        with tempfile.TemporaryDirectory() as place:
            draw_folder(Path(place) / "photos", seed)
            files = sorted(Path(place).rglob("*.png"))
            photos = [Image.open(file).convert("RGB") for file in files]
        tokens = nano.new_tokens("bo", understand=16, generate=16, photos=photos, seed=0)
        found += [
            nano._context(Prompt(turns=(to_turn(prompt),), concepts=(tokens,)), [])
            for prompt in PROMPTS
        ]
    return found


class Painter:
    """Paints every context with a solver, from the same noises, and counts evaluations."""

    def __init__(self, nano: NanoBackend, characters: int, seeds: int) -> None:
        self.nano, self.contexts = nano, contexts(nano, characters)
        self.noise = noise_tokens((4, 4), nano.bagel.config.latent_width, range(seeds))
        self.alone = nano.bagel.drawing(seeds, (4, 4))
        self.both = nano.bagel.drawing(2 * seeds, (4, 4))
        self.evaluations = 0

    def paint(self, solver: str, steps: int) -> tuple[Tensor, float]:
        """Latents [pictures, n, width], and processor seconds a picture."""
        times = time_grid(steps, self.nano.shift).tolist()
        began = time.process_time()
        found = [SOLVERS[solver](self._velocity(full), self.noise, times) for full in self.contexts]
        pictures = torch.cat(found)
        return pictures, (time.process_time() - began) / len(pictures)

    def _velocity(self, full: Cache) -> Velocity:
        model, count, guidance = self.nano.bagel, len(self.noise), self.nano.guidance
        stacked = Cache.stack([full.expand(count), model.empty_cache().expand(count)])

        def velocity(x: Tensor, t: float) -> Tensor:
            self.evaluations += 1
            if not guidance.active(t):
                return model.velocity(full, x, t, self.alone)
            v = model.velocity(stacked, x.repeat(2, 1, 1), t, self.both)
            return guidance.combine(v[:count], v[count:], None)

        return velocity

    def pixels(self, tokens: Tensor) -> Tensor:
        """[pictures, 3, 64, 64], 0..255."""
        patch = self.nano.bagel.config.latent_patch_size
        decoded = self.nano.vae.decode(unpatchify(tokens, (4, 4), patch))
        return (decoded.clamp(-1, 1) + 1) * 127.5


def opened() -> NanoBackend:
    """nano, on the processor."""
    nano = open_backend(Opening(device="cpu"))
    assert isinstance(nano, NanoBackend)
    return nano


def on_nano(characters: int, seeds: int, counts: Sequence[int]) -> None:
    """The table of solvers."""
    painter = Painter(opened(), characters, seeds)
    wanted = painter.pixels(painter.paint("Heun", MANY)[0])
    click.echo(f"nano, {len(wanted)} pictures against Heun in {MANY} steps, one thread\n")
    click.echo("| evaluations | solver | squared error | PSNR | seconds a picture |")
    click.echo("| --- | --- | --- | --- | --- |")
    for count in counts:
        for solver in SOLVERS:
            painter.evaluations = 0
            steps = (count + 1) // 2 if solver == "Heun" else count
            tokens, seconds = painter.paint(solver, steps)
            asked = painter.evaluations // len(painter.contexts)
            error = float((painter.pixels(tokens) - wanted).square().mean())
            psnr = 10 * math.log10(255**2 / error)
            click.echo(f"| {asked} x 2 | {solver} | {error:.2f} | {psnr:.1f} dB | {seconds:.4f} |")


def on_random(rounds: int, side: int) -> None:
    """Seconds of an edit with both guidances, in its usual steps and in those of `--fast`."""
    config = BagelConfig(
        llm=DecoderConfig(
            vocab_size=512, hidden_size=512, intermediate_size=1408, num_hidden_layers=8,
            num_attention_heads=8, num_key_value_heads=2, head_dim=64,
        ),
        vit=ViTConfig(
            hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2,
            image_size=64, patch_size=16,
        ),
        vae=VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), z_channels=16, num_res_blocks=1),
        special_tokens=SpecialTokens(
            bos_token_id=0, eos_token_id=1, start_of_image=2, end_of_image=3
        ),
    )  # fmt: skip
    model = Bagel(config)
    initialise(model, 0)
    model.requires_grad_(False)
    grid = (side // config.stride, side // config.stride)
    noise = noise_tokens(grid, config.latent_width, (0,))
    pictures = [Latent(noise[0], grid)]
    request = [Text(tuple(range(20)))]
    with torch.inference_mode():
        begun = model.prefill(pictures)
        full, words = model.prefill(request, cache=begun), model.prefill(request)

    def edit(steps: int, together: bool) -> Tensor:
        with torch.inference_mode():
            return sample_latents(
                model, full, no_text=full.beginning(begun), no_image=words, noise=noise, grid=grid,
                guidance=Guidance(image=2.0, interval=(0.0, 1.0), renorm="text_channel"),
                steps=steps, solver="ab2", together=together,
            )  # fmt: skip

    ways = {
        "20 steps, branch by branch": lambda number: edit(20, False),
        "20 steps, one batch": lambda number: edit(20, True),
        "49 steps, branch by branch": lambda number: edit(49, False),
    }
    click.echo(f"random, 512 x 8, an edit of {side} x {side} pixels, {rounds} rounds, one thread\n")
    click.echo(table(interleaved(ways, rounds=rounds), what="an edit"))


def compiled(nano: NanoBackend) -> None:
    """Processor seconds of compiling nano's layers, and of a step before and after."""
    model = nano.bagel
    full = model.prefill([Text(tuple(range(4, 24)))])
    stacked, layout = Cache.stack([full, model.empty_cache()]), model.drawing(2, (4, 4))
    x = noise_tokens((4, 4), model.config.latent_width, (0, 1))

    def seconds(steps: int) -> float:
        began = time.process_time()
        for index in range(steps):
            model.velocity(stacked, x, 1 - index / steps, layout)
        return (time.process_time() - began) / steps

    seconds(3)
    plain = seconds(24)
    model._run = torch.compile(model._run)  # type: ignore[method-assign]
    compiling = seconds(1)
    seconds(3)
    after = seconds(24)
    click.echo(f"compiling takes {compiling:.1f} s, a step {after * 1e3:.1f} ms after it and")
    click.echo(
        f"{plain * 1e3:.1f} ms before: it pays after {compiling / (plain - after):.0f} steps"
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--characters", type=click.IntRange(1), default=2, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=4, show_default=True)
@click.option("--evaluations", multiple=True, type=click.IntRange(3), default=(8, 10, 12, 24))
@click.option("--random", "random_model", is_flag=True, help="Time a random model instead.")
@click.option("--compiled", "compile_it", is_flag=True, help="Time torch.compile instead.")
@click.option("--rounds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--side", type=click.IntRange(32), default=512, show_default=True, help="Pixels.")
@torch.no_grad()
def main(
    characters: int,
    seeds: int,
    evaluations: tuple[int, ...],
    random_model: bool,
    compile_it: bool,
    rounds: int,
    side: int,
) -> None:
    """Compare solvers on nano, or time a random model."""
    torch.set_num_threads(1)
    if random_model:
        on_random(rounds, side)
    elif compile_it:
        compiled(opened())
    else:
        on_nano(characters, seeds, evaluations)


if __name__ == "__main__":
    main()
