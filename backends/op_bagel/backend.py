"""BAGEL as a backend: concept tokens in both experts, at any size.

A concept is introduced by one turn, "<sks> is und_1 … und_16 gen_1 … gen_16.": the identifier and
the und slots run through the understanding expert, the gen slots through the generation expert
(paper, section 3.1). All slots are in every context; a lesson moves only the part of its own
expert, the other part is read as it stands.

Opening the released 7B checkpoint belongs into `open_backend`, at the end of this file.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from operator import is_
from typing import NoReturn, Protocol, cast

import torch
from PIL import Image as images
from PIL import ImageFilter
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import (
    BackendInfo,
    ConceptTokens,
    Lesson,
    OnStep,
    Prepared,
    Prompt,
    Task,
    Turn,
)
from omnipersona_cli.errors import MissingError, SlotError, TaskError, UsageError
from op_bagel.model import Bagel, Cache, Outputs
from op_bagel.packing import Latent, Noise, Sample, Segment, Soft, Text, Vit, concept_turn, pack
from op_bagel.pictures import Grid, patchify, rgb, to_pixels, to_tensor, unpatchify
from op_bagel.sampling import (
    Guidance,
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


class Words(Protocol):
    """A tokenizer. ``unnamed`` is how a mention without tokens is read."""

    unnamed: str

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson with everything frozen behind it. ``request`` has its mentions at ``at``."""

    task: Task
    request: list[int]
    at: list[int]
    answer: list[int]
    seen: Tensor | None  # [n, D] features of the picture looked at
    source: Tensor | None  # [n, latent width], the picture to edit
    target: Tensor | None
    grid: Grid


class BagelBackend:
    """One opened BAGEL. ``fit_vae`` and ``fit_vit`` bring a picture to the size that the
    autoencoder and the ViT want; ``start`` gives the first tokens [1 + und + gen, D]."""

    def __init__(
        self,
        *,
        info: BackendInfo,
        model: str,
        fingerprint: str,
        bagel: Bagel,
        vae: AutoEncoder,
        words: Words,
        fit_vae: Callable[[Image], Image],
        fit_vit: Callable[[Image], Image],
        guidance: Guidance,
        edit_guidance: Guidance,
        shift: float,
        norm_limit: float | None = None,
    ) -> None:
        self.info, self.model, self.fingerprint = info, model, fingerprint
        self.bagel, self.vae, self.words = bagel.requires_grad_(False), vae, words
        self.vae.requires_grad_(False)
        self.fit_vae, self.fit_vit = fit_vae, fit_vit
        self.guidance, self.edit_guidance, self.shift = guidance, edit_guidance, shift
        self.width = bagel.config.llm.hidden_size
        largest = bagel.language_model.model.embed_tokens.weight.norm(dim=1).max()
        self.norm_limit = norm_limit or 10.0 * float(largest)
        self._kept: tuple[list[Tensor], list[int], Cache] | None = None
        self.encoded = 0
        """How many pictures the ViT or the autoencoder has encoded so far."""
        self._seen: OrderedDict[bytes, Tensor] = OrderedDict()

    # -- learning ------------------------------------------------------------------------------

    def new_tokens(
        self, name: str, *, understand: int, generate: int, photos: Sequence[Image], seed: int
    ) -> ConceptTokens:
        """Starts from k-means centres of the photos' features in both experts' eyes."""
        with torch.inference_mode():
            seen = torch.cat([self._see(photo) for photo in photos])
            tokens = torch.cat([self._encode(photo)[0] for photo in photos])
            drawn = self.bagel.vae2llm(tokens.to(self.bagel.dtype))
        und = kmeans(seen.float(), understand, seed)
        return self._fresh(
            name, und.mean(0, keepdim=True), und, kmeans(drawn.float(), generate, seed)
        )

    def _fresh(self, name: str, sks: Tensor, und: Tensor, gen: Tensor) -> ConceptTokens:
        """Trainable float32 copies, inside the ball that packs promise."""

        def row(values: Tensor) -> Tensor:
            values = values.detach().clone().float()
            norms = values.norm(dim=1, keepdim=True).clamp(min=1e-6)
            values *= (0.9 * self.norm_limit / norms).clamp(max=1.0)
            return values.requires_grad_(True)

        return ConceptTokens(name=name, id=row(sks), und=row(und), gen=row(gen))

    @torch.no_grad()
    def prepare(self, lessons: Sequence[Lesson]) -> Sequence[PreparedLesson]:
        """ViT features, latents and ids, each picture once."""
        seen: dict[int, Tensor] = {}
        drawn: dict[int, tuple[Tensor, Grid]] = {}
        for lesson in lessons:  # pictures are told apart by identity: the lessons keep them alive
            look, target = lesson.image, lesson.target
            if look is not None and id(look) not in seen:
                seen[id(look)] = self._see(look)
            if look is not None and lesson.task == "edit" and id(look) not in drawn:
                drawn[id(look)] = self._encode(look)
            if target is not None and id(target) not in drawn:
                drawn[id(target)] = self._encode(target)
        return [self._prepared(lesson, seen, drawn) for lesson in lessons]

    def _prepared(
        self, lesson: Lesson, seen: dict[int, Tensor], drawn: dict[int, tuple[Tensor, Grid]]
    ) -> PreparedLesson:
        ids, at = self._ids(lesson.request)
        edited = lesson.image if lesson.task == "edit" else None
        target, grid = drawn[id(lesson.target)] if lesson.target is not None else (None, (0, 0))
        return PreparedLesson(
            task=lesson.task,
            request=ids,
            at=[place for place, _ in at],
            answer=self.words.encode(lesson.answer),
            seen=None if lesson.image is None else seen[id(lesson.image)],
            source=None if edited is None else drawn[id(edited)][0],
            target=target,
            grid=grid,
        )

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int
    ) -> Mapping[Task, Tensor]:
        """Cross-entropy of answers; flow-matching error of pictures (paper, section 3.2)."""
        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        draw = torch.Generator().manual_seed(seed)
        found: dict[Task, Tensor] = {}
        said = [lesson for lesson in lessons if lesson.task == "understand"]
        if said:
            frozen = replace(tokens, gen=tokens.gen.detach())
            outputs, _ = self._run([self._answered(one, frozen) for one in said], frozen)
            found["understand"] = outputs.ce.mean()
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
                    found[task] = outputs.mse[mine].mean()
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
        ids: list[int] = []
        shown = ""
        names = [span.name for turn in prompt.turns for span in turn.spans]
        for token in decode_text(
            self.bagel, context, max_new=max_tokens, temperature=temperature, generator=generator
        ):
            ids.append(token)
            text = self.words.decode(ids)
            if names:
                text = text.replace(self.words.unnamed, f"<{names[-1]}>")
            if text.startswith(shown) and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text

    @torch.inference_mode()
    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability of each answer, its end included."""
        context = self._context(prompt, image)
        return score(self.bagel, context, [self.words.encode(answer) for answer in answers])

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
    ) -> Iterator[Image]:
        """Guidance leans away from the empty context, so that it strengthens the concept too."""
        width, height = size or self.info.sizes[0]
        stride = self.bagel.config.stride
        largest = self.bagel.config.max_latent_size * stride
        fits = min(width, height) > 0 and max(width, height) <= largest
        if width % stride or height % stride or not fits:
            sizes = ", ".join(f"{w}x{h}" for w, h in self.info.sizes)
            raise TaskError(
                f"{self.info.name} cannot paint {width}x{height} pixels",
                hint=f"--size takes {sizes}",
            )
        grid = (height // stride, width // stride)
        with torch.inference_mode():
            full = self._context(prompt, None)
            tokens = sample_latents(
                self.bagel,
                full,
                noise=noise_tokens(grid, self.bagel.config.latent_width, seeds),
                grid=grid,
                guidance=_with_scale(self.guidance, guidance),
                steps=_step_count(steps, self.info.steps),
                shift=self.shift,
                on_step=None if on_step is None else lambda it: on_step(it.index + 1, it.total),
            )
        for one in tokens:
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
    ) -> Iterator[Image]:
        """The source is in the context twice, for both experts. Guidance leans away from a context
        of the source alone, so that it strengthens the concept too, as in `gen`. Where the edit
        leaves a pixel alone, the source's own pixel is kept, so that the autoencoder's blur does
        not spread."""
        source, grid = self._encode(image)
        pictures: list[Segment] = [Latent(source, grid), Vit(features=self._see(image))]
        with torch.inference_mode():
            prefix = self._introduced(prompt.concepts)
            *before, request = self._turns(prompt)
            prefix = self.bagel.prefill(before, cache=prefix)
            full = self.bagel.prefill([*pictures, request], cache=prefix)
            tokens = sample_latents(
                self.bagel,
                full,
                no_text=self.bagel.prefill(pictures),
                no_image=self.bagel.prefill([request], cache=prefix),
                noise=noise_tokens(grid, self.bagel.config.latent_width, seeds),
                grid=grid,
                guidance=_with_scale(self.edit_guidance, guidance),
                steps=_step_count(steps, self.info.steps),
                shift=self.shift,
                on_step=None if on_step is None else lambda it: on_step(it.index + 1, it.total),
            )
        restored = self._decode(source, grid)
        for one in tokens:
            yield keep_unchanged(image, restored, self._decode(one, grid))

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to remark."""
        return ()

    # -- contexts ------------------------------------------------------------------------------

    def _introduce(self, tokens: ConceptTokens) -> Text:
        widths = {rows.shape[-1] for rows in (tokens.id, tokens.und, tokens.gen)}
        if widths != {self.width}:
            raise SlotError(
                f"<{tokens.name}> was learned on another backbone: its tokens are "
                f"{max(widths)} wide, those of {self.info.name} {self.width}",
                hint=f"op learn PHOTOS --name {tokens.name} -b {self.info.name}",
            )
        return concept_turn(
            tokens.id,
            tokens.und,
            tokens.gen,
            says=self.words.encode(" is "),
            between=self.words.encode(" "),
            ends=self.words.encode("."),
        )

    def _ids(self, turn: Turn) -> tuple[list[int], list[tuple[int, str]]]:
        """Token ids of a turn, a placeholder per mention, and where which name stands."""
        ids: list[int] = []
        at: list[tuple[int, str]] = []
        done = 0
        for span in sorted(turn.spans, key=lambda one: one.start):
            ids += self.words.encode(turn.text[done : span.start])
            at.append((len(ids), span.name))
            ids += self.words.encode(self.words.unnamed)[:1]
            done = span.end
        return ids + self.words.encode(turn.text[done:]), at

    def _turn(self, turn: Turn, concepts: Mapping[str, ConceptTokens]) -> Text:
        ids, at = self._ids(turn)
        soft = [Soft((place,), concepts[name].id) for place, name in at if name in concepts]
        return Text(ids, soft=tuple(soft))

    def _turns(self, prompt: Prompt) -> list[Segment]:
        concepts = {tokens.name: tokens for tokens in prompt.concepts}
        return [self._turn(turn, concepts) for turn in prompt.turns]

    def _introduced(self, concepts: Sequence[ConceptTokens]) -> Cache | None:
        """What the concepts' own turns leave behind. The last answer is kept: the questions of one
        calibration, or of one conversation, share it."""
        if not concepts:
            return None
        rows = [row for tokens in concepts for row in (tokens.id, tokens.und, tokens.gen)]
        moment = [row._version if not row.is_inference() else 0 for row in rows]
        if self._kept is not None:
            kept_rows, kept_moment, cache = self._kept
            same = len(rows) == len(kept_rows) and all(map(is_, rows, kept_rows))
            if same and moment == kept_moment:
                return cache
        cache = self.bagel.prefill([self._introduce(tokens) for tokens in concepts])
        self._kept = rows, moment, cache
        return cache

    def _context(self, prompt: Prompt, image: Image | None) -> Cache:
        """Concepts, earlier turns, the picture, the request."""
        *before, request = self._turns(prompt)
        seen: list[Segment] = [] if image is None else [Vit(features=self._see(image))]
        return self.bagel.prefill(
            [*before, *seen, request], cache=self._introduced(prompt.concepts)
        )

    def _run(self, samples: Sequence[Sample], tokens: ConceptTokens) -> tuple[Outputs, Tensor]:
        """All samples behind one concept's turn, and the sample of each token to be drawn [M]."""
        packed = pack(samples, self.bagel.config, self.bagel.device, multiple=16)
        outputs: Outputs = self.bagel(packed, self.bagel.prefill([self._introduce(tokens)]))
        return outputs, packed.noised_sample

    def _request(self, lesson: PreparedLesson, tokens: ConceptTokens) -> Text:
        soft = tuple(Soft((place,), tokens.id) for place in lesson.at)
        return Text(lesson.request, soft=soft)

    def _answered(self, lesson: PreparedLesson, tokens: ConceptTokens) -> Sample:
        seen = [] if lesson.seen is None else [Vit(features=lesson.seen)]
        return [*seen, self._request(lesson, tokens), Text(lesson.answer, loss=True)]

    def _painted(
        self, lesson: PreparedLesson, tokens: ConceptTokens, draw: torch.Generator
    ) -> Sample:
        context: list[Segment] = []
        if lesson.source is not None and lesson.seen is not None:
            context += [Latent(lesson.source, lesson.grid), Vit(features=lesson.seen)]
        assert lesson.target is not None  # for the type checker: painting lessons have one
        target = lesson.target
        for _ in range(NOISES):
            t = training_time(
                torch.randn((), generator=draw), self.bagel.config.timestep_shift_train
            )
            noise = torch.randn(target.shape, generator=draw).to(target.device)
            if not context or not isinstance(context[-1], Noise):
                context.append(self._request(lesson, tokens))
            context.append(Noise(target, lesson.grid, float(t), noise))
        return context

    # -- frozen encoders -----------------------------------------------------------------------

    def _see(self, image: Image) -> Tensor:
        """ViT features [n, D] as they enter the language model, remembered for a while."""
        picture = rgb(image)
        key = blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()
        features = self._seen.pop(key, None)
        if features is None:
            self.encoded += 1
            patches, grid = patchify(
                to_tensor(self.fit_vit(picture)), self.bagel.config.vit.patch_size
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
        self.encoded += 1
        pixels = to_tensor(self.fit_vae(rgb(image)))[None].to(self.bagel.device)
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


def kmeans(rows: Tensor, count: int, seed: int, rounds: int = 20) -> Tensor:
    """Centres [count, D] of rows [n, D]; with fewer rows than centres, rows repeat with a little
    noise. Deterministic in ``seed``."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    centres = rows[order.repeat(-(-count // len(rows)))[:count]].clone()
    if len(rows) <= count:
        noise = torch.randn(centres.shape, generator=generator).to(rows.device)
        return centres + 0.02 * rows.std() * noise
    for _ in range(rounds):
        nearest = torch.cdist(rows, centres).argmin(1)
        for index in range(count):
            if (nearest == index).any():
                centres[index] = rows[nearest == index].mean(0)
    return centres


def _step_count(steps: int | None, default: int) -> int:
    if steps is not None and steps < 1:
        raise UsageError(f"a picture cannot be painted in {steps} steps", hint="--steps 24")
    return default if steps is None else steps


def _with_scale(guidance: Guidance, scale: float | None) -> Guidance:
    return guidance if scale is None else replace(guidance, text=scale)


def open_backend(model: str | None, device: str, dtype: str | None) -> NoReturn:
    """The place of the released 7B checkpoint: its loader is not written yet."""
    raise MissingError(
        "the released BAGEL weights cannot be opened yet",
        hint="op learn PHOTOS --name bo -b nano",
    )
