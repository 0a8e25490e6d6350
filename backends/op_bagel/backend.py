"""BAGEL as a backend: concept tokens in both experts, at any size.

A concept is introduced by one turn, "<sks> is und_1 … und_16 gen_1 … gen_16.": the identifier and
the und slots run through the understanding expert, the gen slots through the generation expert
(paper, section 3.1). All slots are in every context; a lesson moves only the part of its own
expert, the other part is read as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from PIL import Image as images
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
from omnipersona_cli.family.deep import wide_rows
from omnipersona_cli.family.pictures import Encoded, once
from omnipersona_cli.family.pieces import most_positions
from omnipersona_cli.family.quantize import Quantized
from omnipersona_cli.family.text import replaced, stream
from omnipersona_cli.family.tokens import check_width, norm_limit
from op_bagel.cache import Cache
from op_bagel.lineage import (
    Introductions,
    PreparedLesson,
    Tokenizer,
    answer_losses,
    ids_of,
    noised,
    started_tokens,
    task_losses,
    unnamed_ids,
)
from op_bagel.model import Bagel, Outputs
from op_bagel.packing import pack
from op_bagel.painting import Contexts, faster, keep_unchanged, paint, to_paint, with_scale
from op_bagel.pictures import Grid, patchify, rgb, to_pixels, to_tensor, unpatchify
from op_bagel.sampling import Guidance, Solver, decode_text, score
from op_bagel.segments import Latent, Sample, Segment, SoftRows, Text, Vit, concept_turn
from op_bagel.vae import AutoEncoder


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
    """Bring an RGB picture to the size that the autoencoder and the ViT want, and one that is
    learned from to a size that learning can afford; None: to the same."""

    vae: Callable[[Image], Image]
    vit: Callable[[Image], Image]
    learn_vae: Callable[[Image], Image] | None = None
    learn_vit: Callable[[Image], Image] | None = None


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
        self._introductions = Introductions(
            lambda concepts: self.bagel.prefill([self._introduce(one) for one in concepts])
        )
        self.most = most_positions(bagel.config.llm, self.device, size=bagel.dtype.itemsize)
        self.encoded = 0
        """How many pictures the ViT or the autoencoder has encoded so far."""
        self._look, self._reduce = Encoded(self._looked), Encoded(self._reduced)

    def faster(self) -> BagelBackend:
        """A solver of second order in fewer steps."""
        return faster(self)

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
        """Starts from k-means centres of the photos' features in both experts' eyes, at the size
        that they are learned from: `prepare` finds them encoded."""
        encoded = (
            (self._features(photo, learn=True), self._encode(photo, learn=True)[0])
            for photo in counted(photos, on_step)
        )
        return started_tokens(
            name,
            encoded,
            self.bagel,
            understand=understand,
            generate=generate,
            seed=seed,
            norm_limit=self.norm_limit,
        )

    def see(self, images: Sequence[Image]) -> Tensor:
        """The mean of the ViT's features after the connector, [n, D]."""
        return torch.stack([self._features(image).float().mean(0) for image in images]).cpu()

    @torch.no_grad()
    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[PreparedLesson]:
        """ViT features, latents and ids, each picture once."""
        features = once(partial(self._features, learn=True))
        latents = once(partial(self._encode, learn=True))
        return [self._prepared(lesson, features, latents) for lesson in counted(lessons, on_step)]

    def _prepared(
        self,
        lesson: Lesson,
        features: Callable[[Image], Tensor],
        latents: Callable[[Image], tuple[Tensor, Grid]],
    ) -> PreparedLesson:
        ids, at = ids_of(lesson.request, self.tokenizer)
        edited = lesson.image if lesson.task == "edit" else None
        target, grid = (None, (0, 0)) if lesson.target is None else latents(lesson.target)
        return PreparedLesson(
            task=lesson.task,
            request=ids,
            at=[place for place, _ in at],
            answer=self._answer(lesson.answer, {span.name for span in lesson.request.spans}),
            features=None if lesson.image is None else features(lesson.image),
            source=None if edited is None else latents(edited)[0],
            target=target,
            grid=grid,
        )

    def _answer(self, text: str, names: Collection[str]) -> list[int]:
        """An answer, in which the model says `unnamed` for one of ``names``, as its soft row cannot
        be said; for every name where there are none."""

        def said(found: re.Match[str]) -> str:
            return self.tokenizer.unnamed if not names or found[1].lower() in names else found[0]

        return self.tokenizer.encode(re.sub(r"<([\w-]+)>", said, text))

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """Cross-entropy of answers; flow-matching error of pictures (paper, section 3.2)."""
        draw = torch.Generator().manual_seed(seed)

        def run(lessons: Sequence[PreparedLesson], tokens: ConceptTokens) -> tuple[Outputs, Tensor]:
            samples = [
                self._answered(one, tokens)
                if one.task == "understand"
                else self._painted(one, tokens, draw)
                for one in lessons
            ]
            return self._run(samples, tokens)

        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        return task_losses(lessons, tokens, run, most=self.most, at_once=at_once)

    @torch.inference_mode()
    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Lessons about one picture go on from one reading of it."""
        concept = self._introductions.of((tokens,))

        def context(lesson: PreparedLesson) -> Cache | None:
            if lesson.features is None:
                return concept
            return self.bagel.prefill([Vit(features=lesson.features)], cache=concept)

        return answer_losses(
            self.bagel,
            cast("Sequence[PreparedLesson]", lessons),
            context=context,
            sample=lambda one: [self._request(one, tokens), Text(one.answer, loss=True)],
        )

    # -- answering -----------------------------------------------------------------------------

    def say(
        self,
        prompt: Prompt,
        *,
        image: Image | None = None,
        more: Sequence[Image] = (),
        max_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Word by word, greedily at temperature 0."""
        with torch.inference_mode():
            context = self._context(prompt, [] if image is None else [image, *more])
        generator = torch.Generator().manual_seed(seed)
        ids = decode_text(
            self.bagel, context, max_new=max_tokens, temperature=temperature, generator=generator
        )
        said = stream(ids, self.tokenizer.decode)
        yield from replaced(said, self.tokenizer.unnamed, _meant(prompt))

    @torch.inference_mode()
    def score(
        self,
        prompt: Prompt,
        answers: Sequence[str],
        *,
        image: Image | None = None,
        more: Sequence[Image] = (),
    ) -> Tensor:
        """Log-probability of each answer, its end included."""
        context = self._context(prompt, [] if image is None else [image, *more])
        names = {tokens.name for tokens in prompt.concepts}
        ids = [self._answer(answer, names) for answer in answers]
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
        prompt = to_paint(prompt)
        width, height = size or self.info.sizes[0]
        stride = self.bagel.config.stride
        grid = (height // stride, width // stride)
        self._need_rest()
        with torch.inference_mode():
            full = self._context(prompt, [])
        yield from paint(
            self,
            self.bagel,
            Contexts(full=full),
            grid,
            seeds=seeds,
            guidance=with_scale(self.guidance, guidance),
            steps=steps,
            decode=partial(self._decode, grid=grid),
            on_step=on_step,
            on_estimate=on_estimate,
        )

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
        prompt = to_paint(prompt)
        source, grid = self._encode(image)
        restored = self._decode(source, grid)

        def decode(tokens: Tensor) -> Image:
            return keep_unchanged(image, restored, self._decode(tokens, grid))

        pictures: list[Segment] = [Latent(source, grid), Vit(features=self._features(image))]
        with torch.inference_mode():
            prefix = self._introductions.of(prompt.concepts)
            *before, request = self._turns(prompt)
            prefix = self.bagel.prefill(before, cache=prefix)
            no_text = self.bagel.prefill(pictures)
            if prefix.length:
                full = self.bagel.prefill([*pictures, request], cache=prefix)
            else:
                full = self.bagel.prefill([request], cache=no_text)
                no_text = full.beginning(no_text)
            no_image = self.bagel.prefill([request], cache=prefix)
        yield from paint(
            self,
            self.bagel,
            Contexts(full=full, no_text=no_text, no_image=no_image),
            grid,
            seeds=seeds,
            guidance=with_scale(self.edit_guidance, guidance),
            steps=steps,
            decode=decode,
            on_step=on_step,
            on_estimate=on_estimate,
        )

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to remark."""
        return ()

    # -- contexts ------------------------------------------------------------------------------

    def _need_rest(self) -> None:
        """Read the weights that understanding without concepts does without, once."""
        while self._unread:
            self._unread[-1]()  # one that fails is tried again
            self._unread.pop()

    def _introduce(self, tokens: ConceptTokens) -> Text:
        self._need_rest()
        check_width(tokens, self.width, backend=self.info.name)
        return concept_turn(
            tokens.id,
            wide_rows(tokens, "und"),
            wide_rows(tokens, "gen"),
            says=self.tokenizer.encode(" is "),
            between=self.tokenizer.encode(" "),
            ends=self.tokenizer.encode("."),
        )

    def _turn(self, turn: Turn, concepts: Mapping[str, ConceptTokens]) -> Text:
        """Mentions carry their identifiers. Others are text, or, where no concept is known at all,
        `unnamed`: so nobody's name is asked about."""
        if not concepts:
            return Text(unnamed_ids(turn, self.tokenizer))
        ids, at = ids_of(turn, self.tokenizer, concepts)
        soft = [SoftRows((place,), concepts[name].id) for place, name in at]
        return Text(ids, soft=tuple(soft))

    def _turns(self, prompt: Prompt) -> list[Segment]:
        concepts = {tokens.name: tokens for tokens in prompt.concepts}
        return [self._turn(turn, concepts) for turn in prompt.turns]

    def _context(self, prompt: Prompt, pictures: Sequence[Image]) -> Cache:
        """Concepts, earlier turns, the pictures, the request."""
        *before, request = self._turns(prompt)
        looked_at: list[Segment] = [Vit(features=self._features(one)) for one in pictures]
        return self.bagel.prefill(
            [*before, *looked_at, request], cache=self._introductions.of(prompt.concepts)
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
        picture = [] if lesson.features is None else [Vit(features=lesson.features)]
        return [*picture, self._request(lesson, tokens), Text(lesson.answer, loss=True)]

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
        shift = self.bagel.config.timestep_shift_train
        return context + noised(lesson.target, lesson.grid, shift, draw)

    # -- frozen encoders -----------------------------------------------------------------------

    def _features(self, image: Image, *, learn: bool = False) -> Tensor:
        """ViT features [n, D] as they enter the language model."""
        fit = (learn and self.fit.learn_vit) or self.fit.vit
        return self._look(fit(rgb(image)))

    def _encode(self, image: Image, *, learn: bool = False) -> tuple[Tensor, Grid]:
        """Latent tokens [n, latent width]; the encoder's mean, so that seeds decide alone."""
        fit = (learn and self.fit.learn_vae) or self.fit.vae
        latents = self._reduce(fit(rgb(image)))
        return patchify(latents, self.bagel.config.latent_patch_size)

    # not inference tensors: a lesson may need them for a gradient later

    @torch.inference_mode(False)
    @torch.no_grad()
    def _looked(self, picture: Image) -> Tensor:
        self.encoded += 1
        patches, grid = patchify(to_tensor(picture), self.bagel.config.vit.patch_size)
        return self.bagel.see([patches], [grid])[0]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _reduced(self, picture: Image) -> Tensor:
        self._need_rest()
        self.encoded += 1
        found: Tensor = self.vae.encode(to_tensor(picture)[None].to(self.bagel.device))[0]
        return found

    @torch.no_grad()
    def _decode(self, tokens: Tensor, grid: Grid) -> Image:
        latents = unpatchify(tokens[None], grid, self.bagel.config.latent_patch_size)
        return images.fromarray(to_pixels(self.vae.decode(latents))[0].cpu().numpy())


def _meant(prompt: Prompt) -> str:
    """What `unnamed` in an answer stands for: the concept that is known, or asked about."""
    known = [tokens.name for tokens in prompt.concepts]
    asked = [span.name for turn in prompt.turns for span in turn.spans]
    latest = [span.name for span in prompt.turns[-1].spans]
    for names in (latest, asked, known):
        if meant := {name for name in names if name in known or not known}:
            return f"<{meant.pop()}>" if len(meant) == 1 else "one of them"
    return "it"
