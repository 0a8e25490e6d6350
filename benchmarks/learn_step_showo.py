"""Show-o: a learning step that prepares once, against the step of its published personalisation.

    python benchmarks/learn_step_showo.py --rounds 3
    python benchmarks/learn_step_showo.py --rounds 3 --task understand

One lesson of painting and one of understanding a step, as in UniCTokens' second stage, on a random
Show-o of 512 x 8 layers with 58,523 rows and 256 codes a picture. *Ours*: codes are there, the
picture of the understanding row is read once and for all, heads run where something is labelled,
the optimiser holds the new rows alone. *Plain*: both pictures are encoded, both rows are read
whole, logits are taken at every position for every row of the table, AdamW runs over the whole
embedding and head, and every old row is restored. Both see the same hidden codes and reach the same
losses and gradients, which is checked in every round. Rounds are interleaved and the order
alternates. With ``--task`` the step holds that lesson alone. The image tokenizer has half the
released width, which favours the plain step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import click
import torch
from PIL import Image as images
from torch import Tensor
from torch.nn import functional

from omnipersona_cli.backend import ConceptTokens, Lesson
from omnipersona_cli.engine.optimise import adamw
from omnipersona_cli.engine.tokens import copy_of, named_tensors
from omnipersona_cli.language.mentions import to_turn
from omnipersona_cli.testing import drawing
from op_showo import INFO, placing, prompts
from op_showo.backend import PreparedLesson, ShowoBackend
from op_showo.config import CoderConfig, DecoderConfig, ShowoConfig, TokenizerConfig
from op_showo.magvit import Magvit
from op_showo.model import Showo
from op_showo.sampling import training_mask

SIDE = 256
MID = ShowoConfig(
    llm=DecoderConfig(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=2048
    ),
    vq=TokenizerConfig(
        encoder=CoderConfig(ch=64),
        decoder=CoderConfig(ch=64, ch_mult=(1, 1, 2, 2, 4), num_res_blocks=(4, 4, 3, 4, 3)),
    ),
    resolution=SIDE,
)
NEVER = -1e9
"""The head's bias of rows that the model may not say."""
RATE = 1e-3
WEIGHTS = {"generate": 0.8, "understand": 0.2}


class Bytes:
    """Texts as bytes: sizes matter here, meanings do not."""

    def encode(self, text: str) -> list[int]:
        """One id a byte."""
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of bytes."""
        return bytes(ids).decode(errors="replace")


def mid_backend() -> ShowoBackend:
    """A random Show-o between the tests' and the released one."""
    torch.manual_seed(0)
    return ShowoBackend(
        info=INFO,
        model="random",
        fingerprint="mid@random",
        net=Showo(MID),
        magvit=Magvit(MID.vq),
        tokenizer=Bytes(),
    )


def lessons() -> list[Lesson]:
    """One of painting, one of understanding."""
    photos = [
        drawing("red", seed).resize((SIDE, SIDE), images.Resampling.BICUBIC) for seed in (1, 2)
    ]
    ask, paint = to_turn("Is <bo> in this image?"), to_turn("A photo of <bo>.")
    return [
        Lesson(task="generate", kind="depict", request=paint, target=photos[0]),
        Lesson(task="understand", kind="recognise", request=ask, image=photos[1], answer="Yes."),
    ]


@dataclass(kw_only=True)
class Tables:
    """The plain way's parameters: the whole embedding and the whole head, new rows last."""

    embedding: Tensor
    head: Tensor
    bias: Tensor
    new: int

    def all(self) -> list[Tensor]:
        """What its optimiser holds."""
        return [self.embedding, self.head, self.bias]


def tables_of(backend: ShowoBackend, tokens: ConceptTokens) -> Tables:
    """Grown tables; only the identifier may be said, as in ours."""
    soft = placing.concept_rows((tokens,), MID.vocab.size).soft
    assert soft is not None  # for the type checker: there is a concept
    rows, head = soft.rows.detach(), backend.net.showo.lm_head
    unsaid = len(rows) - len(soft.head)
    weight = torch.cat((head.weight, soft.head.detach(), rows.new_zeros(unsaid, rows.shape[1])))
    bias = torch.cat((head.bias, soft.bias.detach(), rows.new_full((unsaid,), NEVER)))
    embedding = torch.cat((backend.net.table, rows))
    grown = [tensor.detach().clone().requires_grad_() for tensor in (embedding, weight, bias)]
    return Tables(embedding=grown[0], head=grown[1], bias=grown[2], new=len(rows))


def plain_loss(
    backend: ShowoBackend,
    taught: Sequence[Lesson],
    tokens: ConceptTokens,
    tables: Tables,
    seed: int,
) -> Tensor:
    """Encode, read every row whole, logits everywhere."""
    backend.pictures.encoded.clear()
    concepts = placing.concept_rows((tokens,), MID.vocab.size)
    total = torch.zeros(())
    for lesson in taught:
        row = painted_row if lesson.task == "generate" else read_row
        ids, wanted, attend = row(backend, lesson, concepts, seed)
        states, _ = backend.net(functional.embedding(ids, tables.embedding), attend)
        logits = functional.linear(states, tables.head, tables.bias)
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
        total = total + WEIGHTS[lesson.task] * loss
    return total


def painted_row(
    backend: ShowoBackend, lesson: Lesson, concepts: placing.ConceptRows, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, labels and mask of a lesson of painting, whose picture is encoded here."""
    assert lesson.target is not None  # for the type checker
    codes = backend.pictures.encode(lesson.target)
    draw = torch.Generator().manual_seed(seed)
    u, order = torch.rand(1, generator=draw), torch.rand(1, MID.image_tokens, generator=draw)
    hidden = training_mask(u, order)[0]
    block = prompts.text_block(
        placing.request_ids(lesson.request, concepts, backend.tokenizer), MID
    )
    ids = torch.cat((torch.tensor([block]), prompts.picture_ids(codes, hidden, MID)), dim=1)
    labels = torch.full_like(ids, prompts.IGNORE)
    labels[:, MID.text_length + 2 : -1][hidden] = codes[hidden] + MID.vocab.image_offset
    return ids, labels, prompts.painting_attend(ids, MID)


def read_row(
    backend: ShowoBackend, lesson: Lesson, concepts: placing.ConceptRows, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of a lesson of understanding."""
    assert lesson.image is not None  # for the type checker
    codes = backend.pictures.encode(lesson.image)
    asked = backend._question((lesson.request,), concepts)
    answer = [*placing.answer_ids(lesson.answer, concepts, backend.tokenizer), MID.vocab.eos]
    ids = torch.cat(
        (prompts.understanding_ids(codes, MID), torch.tensor([asked + answer[:-1]])), dim=1
    )
    labels = torch.full_like(ids, prompts.IGNORE)
    labels[0, -len(answer) :] = torch.tensor(answer)
    return ids, labels, prompts.reading_attend(ids.shape[1], slice(0, MID.image_tokens + 3))


def restore(tables: Tables, kept: Sequence[Tensor]) -> None:
    """Every row but the new ones as it was."""
    with torch.no_grad():
        for table, old in zip(tables.all(), kept, strict=True):
            table[: -tables.new] = old[: -tables.new]


def our_loss(
    backend: ShowoBackend, ready: Sequence[PreparedLesson], tokens: ConceptTokens, seed: int
) -> Tensor:
    """The backend's own."""
    losses = backend.loss(ready, tokens, seed=seed)
    return torch.stack([WEIGHTS[task] * loss for task, loss in losses.items()]).sum()


def gap(tables: Tables, tokens: ConceptTokens) -> float:
    """The largest relative difference of the new rows' gradients."""
    ours = [
        tensor.grad for tensor in (tokens.id, tokens.und, tokens.gen, tokens.extra[placing.HEAD])
    ]
    assert tables.embedding.grad is not None and tables.head.grad is not None
    new = tables.embedding.grad[-tables.new :]
    parts = [*new.split([1, len(tokens.und), len(tokens.gen)]), tables.head.grad[-tables.new :][:1]]
    found = [
        float((mine - plain).norm() / plain.norm())
        for mine, plain in zip(ours, parts, strict=True)
        if mine is not None
    ]
    return max(found)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--task", type=click.Choice(("both", "generate", "understand")), default="both")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(rounds: int, task: str, threads: int) -> None:
    """Time a learning step both ways and print the ratio."""
    torch.set_num_threads(threads)
    backend = mid_backend()
    photos = [lesson.target or lesson.image for lesson in lessons()]
    taught = [lesson for lesson in lessons() if task in ("both", lesson.task)]
    start = backend.new_tokens(
        "bo", understand=16, generate=8, photos=[photo for photo in photos if photo], seed=0
    )
    backend.pictures.encoded.clear()
    began = time.perf_counter()
    ready = backend.prepare(taught)
    preparing = time.perf_counter() - began
    seconds: dict[str, list[float]] = {"ours": [], "plain": []}
    work: dict[str, list[float]] = {"ours": [], "plain": []}
    widest = 0.0
    for number in range(rounds + 1):
        tokens = copy_of(start, trainable=True)
        tables = tables_of(backend, tokens)
        optimiser = torch.optim.AdamW(tables.all(), lr=RATE)
        losses: dict[str, Tensor] = {}
        for name in ("ours", "plain")[:: 1 if number % 2 else -1]:
            began, worked = time.perf_counter(), time.process_time()
            if name == "ours":
                losses[name] = our_loss(backend, ready, tokens, number)
            else:
                losses[name] = plain_loss(backend, taught, tokens, tables, number)
            losses[name].backward()
            seconds[name].append(time.perf_counter() - began)
            work[name].append(time.process_time() - worked)
        loss_gap = abs(float(losses["ours"].detach() - losses["plain"].detach()))
        widest = max(widest, loss_gap, gap(tables, tokens))
        for name in seconds:
            began, worked = time.perf_counter(), time.process_time()
            if name == "ours":
                adamw(named_tensors(tokens), {}, rate=RATE)
            else:
                kept = [tensor.detach().clone() for tensor in tables.all()]
                optimiser.step()
                restore(tables, kept)
            seconds[name][-1] += time.perf_counter() - began
            work[name][-1] += time.process_time() - worked
    if widest > 1e-3:
        raise click.ClickException(f"the two ways differ by {widest:.1e}")
    for series in (*seconds.values(), *work.values()):
        del series[0]  # the first round warms up
    click.echo(f"512 x 8, {MID.vocab.size + 25:,} rows, 256 codes, {threads} threads\n")
    click.echo("| a step | median | processor time |\n| --- | --- | --- |")
    for name in seconds:
        middle, busy = statistics.median(seconds[name]), statistics.median(work[name])
        click.echo(f"| {name} | {middle * 1e3:.0f} ms | {busy * 1e3:.0f} ms |")
    for what, series in (("by the clock", seconds), ("in processor time", work)):
        ratios = sorted(p / o for p, o in zip(series["plain"], series["ours"], strict=True))
        click.echo(
            f"\nplain / ours {what}: {statistics.median(ratios):.2f} (rounds from {ratios[0]:.2f} "
            f"to {ratios[-1]:.2f})"
        )
    click.echo(f"\n`prepare`, once: {preparing:.2f} s. Largest difference: {widest:.1e}.")


if __name__ == "__main__":
    main()
