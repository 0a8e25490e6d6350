"""BAGEL as a backend: concept tokens in both experts, at any size.

A concept is introduced by one turn, "<sks> is und_1 … und_16 gen_1 … gen_16.": the identifier and
the und slots run through the understanding expert, the gen slots through the generation expert
(paper, section 3.1). All slots are in every context; a lesson moves only the part of its own
expert, the other part is read as it stands.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from itertools import groupby
from typing import Protocol, cast

import torch
from PIL import Image as images
from PIL import ImageFilter
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import (
    BackendInfo,
    ConceptTokens,
    Lesson,
    OnEstimate,
    OnStep,
    Prepared,
    Prompt,
    Task,
    Turn,
    counted,
)
from omnipersona_cli.errors import TaskError
from omnipersona_cli.family.codes import over_all, told_over_all
from omnipersona_cli.family.pieces import in_pieces, most_positions, settled
from omnipersona_cli.family.quantize import Quantized
from omnipersona_cli.family.text import stream
from omnipersona_cli.family.tokens import check_width, kmeans, norm_limit, trainable
from op_bagel.model import Bagel, Cache, Outputs
from op_bagel.packing import Latent, Noise, Sample, Segment, SoftRows, Text, Vit, concept_turn, pack
from op_bagel.pictures import Grid, patchify, rgb, to_pixels, to_tensor, unpatchify
from op_bagel.sampling import (
    Guidance,
    SamplingStep,
    Solver,
    decode_text,
    noise_tokens,
    sample_latents,
    score,
    training_time,
)
from op_bagel.vae import AutoEncoder

NOISES = 2
"""Times at which a picture to be drawn is noised in one lesson: the context is shared."""

UNCHANGED = 14.0
"""Mean difference (0..255) below which an edit counts as leaving a pixel alone."""

REMEMBERED = 4
"""Pictures whose features are kept, because several questions are asked about one picture."""

INTRODUCED = 8
"""Sets of concepts whose turns are kept as keys and values, for every prompt that follows."""

AT_ONCE = 4096
"""Picture tokens that are painted as one batch: those of one picture of 1024 x 1024 pixels."""

TOGETHER = 1024
"""From so many tokens of a picture on, the branches of guidance run one after another: each keeps
the machine busy alone, and a batch of them would copy their contexts."""

FEWER = 0.4
"""Share of the usual steps that `BagelBackend.faster` takes. On nano that is nearer to a picture of
many steps than all of them are with Euler's method (benchmarks/fast_painting.py)."""


class Tokenizer(Protocol):
    """A tokenizer. ``unnamed`` is how a mention without tokens is read."""

    unnamed: str

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson after every frozen encoder has run. ``request`` has its mentions at ``at``."""

    task: Task
    request: list[int]
    at: list[int]
    answer: list[int]
    features: Tensor | None  # [n, D] features of the picture looked at
    source: Tensor | None  # [n, latent width], the picture to edit
    target: Tensor | None
    grid: Grid


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Shares of painting lessons that are learned from without the request, the source's latents or
    its features, each by itself: guidance paints behind such contexts too.

    The concept's own turn is never dropped. The backbone is frozen and knows the context without it
    already; a lesson without it would move nothing. A dropped picture takes no position, as in the
    context without pictures that painting uses. The paper says nothing of this.
    """

    request: float = 0.0
    latents: float = 0.0
    features: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Bring a picture to the size that the autoencoder and the ViT want; before that, a picture
    that is learned from to the size that learning can afford."""

    vae: Callable[[Image], Image]
    vit: Callable[[Image], Image]
    lesson: Callable[[Image], Image] = rgb


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """What a picture is painted behind: all of it, and for guidance what is without the request,
    and what is without pictures."""

    full: Cache
    no_text: Cache | None = None
    no_image: Cache | None = None


class BagelBackend:
    """One opened BAGEL. ``longest`` is the norm that concept tokens need where the model was
    pretrained with some. ``read_rest`` reads the weights that only painting and concept tokens
    need, when they are first needed; without it, all are there."""

    quantized: Quantized | None = None
    """The weights that were quantised when it was opened."""

    def __init__(
        self,
        *,
        info: BackendInfo,
        model: str,
        fingerprint: str,
        bagel: Bagel,
        vae: AutoEncoder,
        tokenizer: Tokenizer,
        fit: Fit,
        guidance: Guidance,
        edit_guidance: Guidance,
        shift: float,
        longest: float = 0.0,
        read_rest: Callable[[], None] | None = None,
    ) -> None:
        self.info, self.model, self.fingerprint = info, model, fingerprint
        self.bagel, self.vae, self.tokenizer = bagel.requires_grad_(False), vae, tokenizer
        self.vae.requires_grad_(False)
        self.fit = fit
        self.dropout = Dropout()
        self._unread = [] if read_rest is None else [read_rest]
        self.guidance, self.edit_guidance, self.shift = guidance, edit_guidance, shift
        self.width = bagel.config.llm.hidden_size
        self.device = str(bagel.device)
        table = bagel.language_model.model.embed_tokens.weight
        self.norm_limit = max(longest, norm_limit(table))
        self.solver: Solver = "euler"
        self._introductions: OrderedDict[bytes, Cache] = OrderedDict()
        self.most = most_positions(bagel.config.llm, self.device, size=bagel.dtype.itemsize)
        self.encoded = 0
        """How many pictures the ViT or the autoencoder has encoded so far."""
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()

    def faster(self) -> BagelBackend:
        """A solver of second order in fewer steps; weights and all that is kept are shared."""
        other = copy(self)
        other.info = replace(self.info, steps=max(1, round(FEWER * self.info.steps)), fast="")
        other.solver = "ab2"
        return other

    # -- learning ------------------------------------------------------------------------------

    def new_tokens(
        self,
        name: str,
        *,
        understand: int,
        generate: int,
        photos: Sequence[Image],
        seed: int,
        on_step: OnStep | None = None,
    ) -> ConceptTokens:
        """Starts from k-means centres of the photos' features in both experts' eyes."""
        with torch.inference_mode():
            seen = [
                (self._features(photo), self._encode(photo)[0])
                for photo in counted(photos, on_step)
            ]
            features, latents = (torch.cat(rows) for rows in zip(*seen, strict=True))
            rows = self.bagel.vae2llm(latents.to(self.bagel.dtype))
        und = kmeans(features.float(), understand, seed)
        gen = kmeans(rows.float(), generate, seed)
        return self._fresh(name, und.mean(0, keepdim=True), und, gen)

    def _fresh(self, name: str, sks: Tensor, und: Tensor, gen: Tensor) -> ConceptTokens:
        """Trainable float32 copies, inside the ball that packs promise."""
        sks, und, gen = (trainable(rows, limit=0.9 * self.norm_limit) for rows in (sks, und, gen))
        return ConceptTokens(name=name, id=sks, und=und, gen=gen)

    def new_experts(self, *, seed: int) -> Mapping[str, Tensor]:
        """None: the mixture of transformers has its own."""
        raise TaskError(
            f"{self.info.name} has experts of its own and takes no others",
            hint="leave out --experts lora",
        )

    def see(self, images: Sequence[Image]) -> Tensor:
        """The mean of the ViT's features after the connector, [n, D]."""
        return torch.stack([self._features(image).float().mean(0) for image in images]).cpu()

    @torch.no_grad()
    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[PreparedLesson]:
        """ViT features, latents and ids, each picture once."""
        features: dict[int, Tensor] = {}
        latents: dict[int, tuple[Tensor, Grid]] = {}
        # pictures are told apart by identity: the lessons keep them alive
        for lesson in counted(lessons, on_step):
            look, target = lesson.image, lesson.target
            if look is not None and id(look) not in features:
                features[id(look)] = self._features(self.fit.lesson(look))
            if look is not None and lesson.task == "edit" and id(look) not in latents:
                latents[id(look)] = self._encode(self.fit.lesson(look))
            if target is not None and id(target) not in latents:
                latents[id(target)] = self._encode(self.fit.lesson(target))
        return [self._prepared(lesson, features, latents) for lesson in lessons]

    def _prepared(
        self, lesson: Lesson, features: dict[int, Tensor], latents: dict[int, tuple[Tensor, Grid]]
    ) -> PreparedLesson:
        ids, at = self._ids(lesson.request)
        edited = lesson.image if lesson.task == "edit" else None
        target, grid = latents[id(lesson.target)] if lesson.target is not None else (None, (0, 0))
        return PreparedLesson(
            task=lesson.task,
            request=ids,
            at=[place for place, _ in at],
            answer=self.tokenizer.encode(
                re.sub(r"<[\w-]+>", self.tokenizer.unnamed, lesson.answer)
            ),
            features=None if lesson.image is None else features[id(lesson.image)],
            source=None if edited is None else latents[id(edited)][0],
            target=target,
            grid=grid,
        )

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """Cross-entropy of answers; flow-matching error of pictures (paper, section 3.2)."""
        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        draw = torch.Generator().manual_seed(seed)
        pieces = self._pieces(lessons, at_once)
        if len(pieces) == 1:
            whole = self._losses(lessons, tokens, draw)
            return {task: losses.mean() for task, losses in whole.items()}
        sums: dict[Task, list[Tensor]] = {}
        counts: dict[Task, int] = {}
        for piece in pieces:
            for task, losses in self._losses(piece, tokens, draw).items():
                sums.setdefault(task, []).append(settled(losses.sum(), tokens.parameters()))
                counts[task] = counts.get(task, 0) + losses.numel()
        return {task: torch.stack(parts).sum() / counts[task] for task, parts in sums.items()}

    def _pieces(
        self, lessons: Sequence[PreparedLesson], at_once: int
    ) -> list[Sequence[PreparedLesson]]:
        """The whole batch where it fits, else neighbours of one task."""
        lengths = [_positions(lesson) for lesson in lessons]
        if len(lessons) <= at_once or (not at_once and sum(lengths) <= self.most):
            return [lessons]
        found: list[Sequence[PreparedLesson]] = []
        for _, group in groupby(lessons, key=lambda lesson: lesson.task):
            mine = list(group)
            lengths = [_positions(lesson) for lesson in mine]
            found += in_pieces(mine, lengths, most=self.most, at_once=at_once)
        return found

    def _losses(
        self, lessons: Sequence[PreparedLesson], tokens: ConceptTokens, draw: torch.Generator
    ) -> dict[Task, Tensor]:
        """Cross-entropies [K] of answers' tokens and squared errors [M, latent width] of what is
        drawn, by task."""
        found: dict[Task, Tensor] = {}
        asked = [lesson for lesson in lessons if lesson.task == "understand"]
        if asked:
            frozen = replace(tokens, gen=tokens.gen.detach())
            outputs, _ = self._run([self._answered(one, frozen) for one in asked], frozen)
            found["understand"] = outputs.ce
        painted = [lesson for lesson in lessons if lesson.task != "understand"]
        if painted:
            frozen = replace(tokens, und=tokens.und.detach())
            outputs, noised = self._run(
                [self._painted(one, frozen, draw) for one in painted], frozen
            )
            tasks: tuple[Task, ...] = ("generate", "edit")
            for task in tasks:
                of_task = torch.tensor([one.task == task for one in painted], device=noised.device)
                mine = of_task[noised]
                if mine.any():
                    found[task] = outputs.mse[mine]
        return found

    @torch.inference_mode()
    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Lessons about one picture go on from one reading of it."""
        concept = self._introduced((tokens,))
        of_picture: dict[int, list[int]] = {}
        for number, lesson in enumerate(cast("Sequence[PreparedLesson]", lessons)):
            of_picture.setdefault(id(lesson.features), []).append(number)
        found = torch.zeros(len(lessons), device=tokens.id.device)
        for numbers in of_picture.values():
            mine = [cast(PreparedLesson, lessons[number]) for number in numbers]
            seen = mine[0].features
            context = (
                concept if seen is None else self.bagel.prefill([Vit(features=seen)], cache=concept)
            )
            samples: list[Sample] = [
                [self._request(one, tokens), Text(one.answer, loss=True)] for one in mine
            ]
            packed = pack(samples, self.bagel.config, self.bagel.device)
            losses = self.bagel(packed, context).ce.float()
            counts = packed.label_sample.bincount(minlength=len(mine))
            sums = losses.new_zeros(len(mine)).index_add(0, packed.label_sample, losses)
            found[numbers] = (sums / counts).to(found)
        return found

    # -- answering -----------------------------------------------------------------------------

    def say(
        self,
        prompt: Prompt,
        *,
        image: Image | None = None,
        max_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Word by word, greedily at temperature 0."""
        with torch.inference_mode():
            context = self._context(prompt, image)
        generator = torch.Generator().manual_seed(seed)
        names = [span.name for turn in prompt.turns for span in turn.spans]
        names = names or [tokens.name for tokens in prompt.concepts]

        def decode(ids: list[int]) -> str:
            text = self.tokenizer.decode(ids)
            return text.replace(self.tokenizer.unnamed, f"<{names[-1]}>") if names else text

        ids = decode_text(
            self.bagel, context, max_new=max_tokens, temperature=temperature, generator=generator
        )
        yield from stream(ids, decode)

    @torch.inference_mode()
    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability of each answer, its end included."""
        context = self._context(prompt, image)
        ids = [self.tokenizer.encode(answer) for answer in answers]
        return score(self.bagel, context, ids).float().cpu()

    # -- painting ------------------------------------------------------------------------------

    def gen(
        self,
        prompt: Prompt,
        *,
        size: tuple[int, int] | None,
        steps: int | None,
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
        on_estimate: OnEstimate | None = None,
    ) -> Iterator[Image]:
        """Guidance leans away from the empty context, so that it strengthens the concept too."""
        width, height = size or self.info.sizes[0]
        stride = self.bagel.config.stride
        grid = (height // stride, width // stride)
        self._need_rest()
        with torch.inference_mode():
            full = self._context(prompt, None)
        for one in self._sampled(
            Contexts(full=full),
            grid,
            guidance=_with_scale(self.guidance, guidance),
            steps=steps,
            seeds=seeds,
            on_step=on_step,
            on_estimate=on_estimate,
            shown=partial(self._decode, grid=grid),
        ):
            yield self._decode(one, grid)

    def edit(
        self,
        image: Image,
        prompt: Prompt,
        *,
        mask: Image | None,
        steps: int | None,
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None = None,
        on_estimate: OnEstimate | None = None,
    ) -> Iterator[Image]:
        """The source is in the context twice, for both experts. Guidance leans away from a context
        of the source alone, so that it strengthens the concept too, as in `gen`. Where the edit
        leaves a pixel alone, the source's own pixel is kept, so that the autoencoder's blur does
        not spread."""
        source, grid = self._encode(image)
        restored = self._decode(source, grid)

        def shown(tokens: Tensor) -> Image:
            return keep_unchanged(image, restored, self._decode(tokens, grid))

        pictures: list[Segment] = [Latent(source, grid), Vit(features=self._features(image))]
        with torch.inference_mode():
            prefix = self._introduced(prompt.concepts)
            *before, request = self._turns(prompt)
            prefix = self.bagel.prefill(before, cache=prefix)
            no_text = self.bagel.prefill(pictures)
            if prefix.length:
                full = self.bagel.prefill([*pictures, request], cache=prefix)
            else:
                full = self.bagel.prefill([request], cache=no_text)
                no_text = full.beginning(no_text)
            no_image = self.bagel.prefill([request], cache=prefix)
        for one in self._sampled(
            Contexts(full=full, no_text=no_text, no_image=no_image),
            grid,
            guidance=_with_scale(self.edit_guidance, guidance),
            steps=steps,
            seeds=seeds,
            on_step=on_step,
            on_estimate=on_estimate,
            shown=shown,
        ):
            yield shown(one)

    def _sampled(
        self,
        contexts: Contexts,
        grid: Grid,
        *,
        guidance: Guidance,
        steps: int | None,
        seeds: Sequence[int],
        on_step: OnStep | None,
        on_estimate: OnEstimate | None,
        shown: Callable[[Tensor], Image],
    ) -> Iterator[Tensor]:
        """Latent tokens [n, latent width] of a picture per seed, a few painted at once; ``shown``
        makes a picture of one's tokens."""
        cells = grid[0] * grid[1]
        few = max(1, AT_ONCE // cells)
        batches = [seeds[first : first + few] for first in range(0, len(seeds), few)]
        for number, some in enumerate(batches):
            with torch.inference_mode():
                tokens = sample_latents(
                    self.bagel,
                    contexts.full,
                    no_text=contexts.no_text,
                    no_image=contexts.no_image,
                    noise=noise_tokens(grid, self.bagel.config.latent_width, some),
                    grid=grid,
                    guidance=guidance,
                    steps=self.info.steps if steps is None else steps,
                    shift=self.shift,
                    solver=self.solver,
                    together=cells < TOGETHER,
                    on_step=_told(
                        over_all(on_step, number, len(batches)),
                        told_over_all(on_estimate, number, len(batches)),
                        shown,
                    ),
                )
            yield from tokens

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to remark."""
        return ()

    # -- contexts ------------------------------------------------------------------------------

    def _need_rest(self) -> None:
        """Read the weights that understanding without concepts does without, once."""
        while self._unread:
            self._unread.pop()()

    def _introduce(self, tokens: ConceptTokens) -> Text:
        self._need_rest()
        check_width(tokens, self.width, backend=self.info.name)
        return concept_turn(
            tokens.id,
            tokens.und,
            tokens.gen,
            says=self.tokenizer.encode(" is "),
            between=self.tokenizer.encode(" "),
            ends=self.tokenizer.encode("."),
        )

    def _ids(self, turn: Turn) -> tuple[list[int], list[tuple[int, str]]]:
        """Token ids of a turn, a placeholder per mention, and where which name stands."""
        ids: list[int] = []
        at: list[tuple[int, str]] = []
        done = 0
        for span in sorted(turn.spans, key=lambda one: one.start):
            ids += self.tokenizer.encode(turn.text[done : span.start])
            at.append((len(ids), span.name))
            ids += self.tokenizer.encode(self.tokenizer.unnamed)[:1]
            done = span.end
        return ids + self.tokenizer.encode(turn.text[done:]), at

    def _turn(self, turn: Turn, concepts: Mapping[str, ConceptTokens]) -> Text:
        ids, at = self._ids(turn)
        soft = [SoftRows((place,), concepts[name].id) for place, name in at if name in concepts]
        return Text(ids, soft=tuple(soft))

    def _turns(self, prompt: Prompt) -> list[Segment]:
        concepts = {tokens.name: tokens for tokens in prompt.concepts}
        return [self._turn(turn, concepts) for turn in prompt.turns]

    def _introduced(self, concepts: Sequence[ConceptTokens]) -> Cache | None:
        """Keys and values of the concepts' own turns, kept for every prompt that follows."""
        if not concepts:
            return None
        rows = [row for tokens in concepts for row in (tokens.id, tokens.und, tokens.gen)]
        digest = blake2b(digest_size=16)
        for row in rows:
            digest.update(repr(row.shape).encode() + row.detach().float().cpu().numpy().tobytes())
        key = digest.digest()
        cache = self._introductions.pop(key, None)
        if cache is None:
            cache = self.bagel.prefill([self._introduce(tokens) for tokens in concepts])
        self._introductions[key] = cache
        if len(self._introductions) > INTRODUCED:
            self._introductions.popitem(last=False)
        return cache

    def _context(self, prompt: Prompt, image: Image | None) -> Cache:
        """Concepts, earlier turns, the picture, the request."""
        *before, request = self._turns(prompt)
        shown: list[Segment] = [] if image is None else [Vit(features=self._features(image))]
        return self.bagel.prefill(
            [*before, *shown, request], cache=self._introduced(prompt.concepts)
        )

    def _run(self, samples: Sequence[Sample], tokens: ConceptTokens) -> tuple[Outputs, Tensor]:
        """All samples after one concept's turn, and the sample of each token to be drawn [M]."""
        packed = pack(samples, self.bagel.config, self.bagel.device, multiple=16)
        outputs: Outputs = self.bagel(packed, self.bagel.prefill([self._introduce(tokens)]))
        return outputs, packed.noised_sample

    def _request(self, lesson: PreparedLesson, tokens: ConceptTokens) -> Text:
        soft = tuple(SoftRows((place,), tokens.id) for place in lesson.at)
        return Text(lesson.request, soft=soft)

    def _answered(self, lesson: PreparedLesson, tokens: ConceptTokens) -> Sample:
        shown = [] if lesson.features is None else [Vit(features=lesson.features)]
        return [*shown, self._request(lesson, tokens), Text(lesson.answer, loss=True)]

    def _painted(
        self, lesson: PreparedLesson, tokens: ConceptTokens, draw: torch.Generator
    ) -> Sample:
        def kept(share: float) -> bool:
            if not share or not torch.is_grad_enabled():  # held-out lessons are read whole
                return True
            return float(torch.rand((), generator=draw)) >= share

        assert lesson.target is not None  # for the type checker: painting lessons have one
        context: list[Segment] = []
        if lesson.source is not None and lesson.features is not None:
            if kept(self.dropout.latents):
                context.append(Latent(lesson.source, lesson.grid))
            if kept(self.dropout.features):
                context.append(Vit(features=lesson.features))
        if kept(self.dropout.request):
            context.append(self._request(lesson, tokens))
        for _ in range(NOISES):
            t = training_time(
                torch.randn((), generator=draw), self.bagel.config.timestep_shift_train
            )
            noise = torch.randn(lesson.target.shape, generator=draw).to(lesson.target.device)
            context.append(Noise(lesson.target, lesson.grid, float(t), noise))
        return context

    # -- frozen encoders -----------------------------------------------------------------------

    def _features(self, image: Image) -> Tensor:
        """ViT features [n, D] as they enter the language model, remembered for a while."""
        picture = rgb(image)
        key = blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()
        features = self._seen.pop(key, None)
        if features is None:
            self.encoded += 1
            patches, grid = patchify(
                to_tensor(self.fit.vit(picture)), self.bagel.config.vit.patch_size
            )
            # not an inference tensor: a lesson may need it for a gradient later
            with torch.inference_mode(False), torch.no_grad():
                features = self.bagel.see([patches], [grid])[0]
        self._seen[key] = features
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return features

    @torch.no_grad()
    def _encode(self, image: Image) -> tuple[Tensor, Grid]:
        """Latent tokens [n, latent width]; the encoder's mean, so that seeds decide alone."""
        self._need_rest()
        self.encoded += 1
        pixels = to_tensor(self.fit.vae(rgb(image)))[None].to(self.bagel.device)
        tokens, grid = patchify(self.vae.encode(pixels)[0], self.bagel.config.latent_patch_size)
        return tokens, grid

    @torch.no_grad()
    def _decode(self, tokens: Tensor, grid: Grid) -> Image:
        latents = unpatchify(tokens[None], grid, self.bagel.config.latent_patch_size)
        return images.fromarray(to_pixels(self.vae.decode(latents))[0].cpu().numpy())


def keep_unchanged(source: Image, restored: Image, painted: Image) -> Image:
    """``painted`` at the size of ``source``, but the source's own pixels wherever the painting
    differs little from ``restored``, the source after the autoencoder alone."""
    source = rgb(source)
    change = (to_tensor(painted) - to_tensor(restored)).abs().mean(0) * 127.5
    changed = images.fromarray(((change > UNCHANGED) * 255).to(torch.uint8).numpy())
    near = changed.filter(ImageFilter.MedianFilter(3)).filter(ImageFilter.MaxFilter(5))
    mask = near.resize(source.size, images.Resampling.BILINEAR)
    return images.composite(painted.resize(source.size, images.Resampling.BICUBIC), source, mask)


def _positions(lesson: PreparedLesson) -> int:
    """How long a lesson is, without its words."""
    pictures = 0 if lesson.features is None else len(lesson.features)
    pictures += 0 if lesson.source is None else len(lesson.source)
    return pictures + (0 if lesson.target is None else NOISES * len(lesson.target))


def _told(
    on_step: OnStep | None, on_estimate: OnEstimate | None, shown: Callable[[Tensor], Image]
) -> Callable[[SamplingStep], None] | None:
    """Whoever counts the steps and whoever looks on, told of both."""
    if on_step is None and on_estimate is None:
        return None

    def told(step: SamplingStep) -> None:
        if on_step is not None:
            on_step(step.index + 1, step.total)
        if on_estimate is not None:
            on_estimate(step.index + 1, step.total, lambda: shown(step.estimate[0]))

    return told


def _with_scale(guidance: Guidance, scale: float | None) -> Guidance:
    return guidance if scale is None else replace(guidance, text=scale)
