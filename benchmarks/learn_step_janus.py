"""Janus: a learning step that prepares once, against one that runs everything every time.

    python benchmarks/learn_step_janus.py --rounds 3
    python benchmarks/learn_step_janus.py --rounds 3 --released-encoders

One lesson of painting and one of understanding a step, on a random Janus of 512 x 8 layers with
102,400 words and 16,384 codes. *Ours*: SigLIP and the image tokenizer have run before, a head runs
where something is labelled. *Plain*: both pictures are encoded, the model is called as transformers
offers it, which takes text logits at every position, and the image head runs on every row. Both
reach the same losses and gradients, which is checked in every round. The encoders are small like
the language model; ``--released-encoders`` takes them at the sizes that all released models have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import click
import torch
from mid_janus import mid_janus
from PIL import Image as images
from stopwatch import interleaved, table
from torch import Tensor
from torch.nn import functional

from omnipersona_cli.backend import ConceptTokens, Lesson
from omnipersona_cli.engine.tokens import copy_of, named_tensors
from omnipersona_cli.family.language import PreparedLesson
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing
from op_janus import pictures, prompts
from op_janus.backend import JanusBackend

LossAndGradients = tuple[float, dict[str, Tensor]]
"""The loss, and the gradient of each part of the tokens."""


def lessons(side: int) -> list[Lesson]:
    """One of painting, one of understanding."""
    photos = [
        drawing("red", seed).resize((side, side), images.Resampling.BICUBIC) for seed in (1, 2)
    ]
    ask, paint = to_turn("Is <bo> in this image?"), to_turn("A photo of <bo>.")
    return [
        Lesson(task="generate", kind="depict", request=paint, target=photos[0]),
        Lesson(task="understand", kind="recognise", request=ask, image=photos[1], answer="Yes."),
    ]


def plain_loss(backend: JanusBackend, taught: Sequence[Lesson], tokens: ConceptTokens) -> Tensor:
    """Encode, call the model, heads everywhere."""
    janus, (paint, ask) = backend.janus, backend.prepare(taught)
    codes = cast(Tensor, paint.codes)
    prompt = prompts.request(backend.llm, paint.request, (tokens,), "generate")
    rows = torch.cat([prompt, pictures.code_rows(backend.janus, codes[:-1])])[None]
    found = janus(inputs_embeds=rows, use_cache=False, output_hidden_states=True)
    logits = janus.model.generation_head(found.hidden_states[-1])[0, len(prompt) - 1 :]
    painted = functional.cross_entropy(logits.float(), codes)
    asked = torch.cat(prompts.question(backend.llm, (ask.request,), (tokens,), ask.picture))
    answer = backend.llm.answer(ask.answer)
    rows = torch.cat([asked, backend.llm.table(answer)])[None]
    labels = functional.pad(answer, (len(asked), 0), value=-100)[None]
    understood: Tensor = janus(inputs_embeds=rows, labels=labels, use_cache=False).loss
    return painted + understood


def our_loss(
    backend: JanusBackend, ready: Sequence[PreparedLesson], tokens: ConceptTokens
) -> Tensor:
    """The backend's own."""
    return torch.stack(list(backend.loss(ready, tokens, seed=0).values())).sum()


def stepped(loss: Tensor, tokens: ConceptTokens) -> LossAndGradients:
    """Loss and gradients after the backward pass."""
    loss.backward()
    named = named_tensors(tokens)
    gradients = {key: tensor.grad for key, tensor in named.items() if tensor.grad is not None}
    for value in named.values():
        value.grad = None
    return float(loss.detach()), gradients


def check(results: Mapping[str, LossAndGradients]) -> None:
    """ClickException unless all ways teach the same."""
    (one, ours), (other, plain) = results["ours"], results["plain"]
    gaps = [float((ours[key] - plain[key]).norm() / ours[key].norm()) for key in ours]
    widest = max(abs(one - other) / one, *gaps)
    if widest > 2e-3:
        raise click.ClickException(f"the two ways do not teach the same: {widest:.1e}")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--side", type=click.IntRange(32), default=384, show_default=True, help="Pixels.")
@click.option("--released-encoders", is_flag=True, help="SigLIP and image tokenizer as released.")
def main(rounds: int, threads: int, side: int, released_encoders: bool) -> None:
    """Time a learning step both ways and print the ratio."""
    torch.set_num_threads(threads)
    backend = mid_janus(side=side, device="cpu", released_encoders=released_encoders)
    taught = lessons(side)
    photos = [lesson.target or lesson.image for lesson in taught]
    start = backend.new_tokens(
        "bo", understand=16, generate=16, photos=[photo for photo in photos if photo], seed=0
    )
    ready, tokens = backend.prepare(taught), copy_of(start, trainable=True)
    ways = {
        "ours": lambda number: stepped(our_loss(backend, ready, tokens), tokens),
        "plain": lambda number: stepped(plain_loss(backend, taught, tokens), tokens),
    }
    timings = interleaved(ways, rounds=rounds, check=check)
    click.echo(f"janus, 512 x 8, {backend.count} codes, {rounds} rounds, {threads} threads\n")
    click.echo(table(timings, what="a step"))


if __name__ == "__main__":
    main()
