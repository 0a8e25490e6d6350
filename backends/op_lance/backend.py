"""Lance as a backend: concept tokens in both experts, inside the chat template.

A concept is introduced at the start of the system turn, "<sks> is und_1 … und_16 gen_1 … gen_16.",
as on BAGEL: identifier and und slots run through the understanding expert, gen slots through the
generation expert (paper, section 3.1). The sentence that says what is to be done follows it, so
that one prefix serves all tasks. It is no part of the prompt: guidance leans away from a picture
without the request, not from one without the concept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch
from PIL import Image as images
from PIL.Image import Image
from torch import Tensor, nn

from omnipersona_cli.backend import (
    BackendInfo,
    ConceptTokens,
    Lesson,
    OnStep,
    Prepared,
    Prompt,
    Task,
    counted,
)
from omnipersona_cli.errors import TaskError
from omnipersona_cli.family.codes import over_all
from omnipersona_cli.family.pieces import most_positions
from omnipersona_cli.family.quantize import Quantized
from omnipersona_cli.family.text import stream
from omnipersona_cli.family.tokens import check_width, kmeans, norm_limit
from op_bagel.lineage import (
    AT_ONCE,
    TOGETHER,
    Introductions,
    Looks,
    PreparedLesson,
    Tokenizer,
    by_picture,
    fresh_tokens,
    ids_of,
    keep_unchanged,
    mean_losses,
    noised,
    step_of,
    task_losses,
    to_paint,
    with_scale,
)
from op_bagel.model import Bagel, Cache, Outputs
from op_bagel.packing import Latent, Sample, Segment, SoftRows, Text, Vit, pack
from op_bagel.pictures import Grid, patchify, rgb, to_tensor, unpatchify
from op_bagel.sampling import Guidance, decode_text, noise_tokens, sample_latents, score
from op_lance.config import LanceConfig
from op_lance.layout import concept_text, length, painting_contexts, placed, raw
from op_lance.pictures import (
    LEARNED,
    USED,
    Sizes,
    for_tower,
    merged,
    sizes_of,
    tower_patches,
)
from op_lance.prompts import EDITING, LOOKING, PAINTING, TALKING, template
from op_lance.tower import see
from op_lance.vae import AutoEncoder, to_pixels

DROPPED = 0.1
"""Share of painting lessons that are learned from without the request, or without the pictures that
are edited, as in the release's scripts; the template stays."""


class LanceBackend:
    """One opened Lance. ``read_rest`` reads the weights that only painting and concept tokens need,
    when they are first needed; without it, all are there."""

    quantized: Quantized | None = None
    """The weights that were quantised when it was opened."""

    def __init__(
        self,
        *,
        info: BackendInfo,
        model: str,
        fingerprint: str,
        config: LanceConfig,
        mixture: Bagel,
        tower: nn.Module,
        vae: AutoEncoder,
        tokenizer: Tokenizer,
        guidance: Guidance,
        shift: float,
        read_rest: Callable[[], None] | None = None,
    ) -> None:
        self.info, self.model, self.fingerprint = info, model, fingerprint
        self.config, self.tokenizer = config, tokenizer
        self.mixture = mixture.requires_grad_(False)
        self.tower, self.vae = tower.requires_grad_(False), vae.requires_grad_(False)
        self.sizes, self.lesson_sizes = sizes_of(config, USED), sizes_of(config, LEARNED)
        self.guidance, self.shift = guidance, shift
        self.template = template(tokenizer.encode, config.special_tokens)
        self.width = config.llm.hidden_size
        self.device = str(mixture.device)
        self.norm_limit = norm_limit(mixture.language_model.model.embed_tokens.weight)
        self.most = most_positions(config.llm, self.device, size=mixture.dtype.itemsize)
        self.encoded = 0
        """How many pictures the tower or the autoencoder has encoded so far."""
        self._read_rest = read_rest
        self._looks = Looks(self._look)
        self._introductions = Introductions(
            lambda concepts: self.mixture.prefill([self._introduce(concepts)])
        )
        self._shown: tuple[Cache | None, Tensor, Cache] | None = None

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
        """Starts from k-means centres of the tower's features, and for the generation expert of the
        latents as they enter it."""
        with torch.inference_mode():
            seen = [
                (self._asked(photo, self.sizes)[0], self._encode(photo, self.sizes)[0])
                for photo in counted(photos, on_step)
            ]
            features, latents = (torch.cat(rows) for rows in zip(*seen, strict=True))
            rows = self.mixture.vae2llm(latents.to(self.mixture.dtype))
        und = kmeans(features.float(), understand, seed)
        gen = kmeans(rows.float(), generate, seed)
        return fresh_tokens(name, und.mean(0, keepdim=True), und, gen, norm_limit=self.norm_limit)

    def new_experts(self, *, seed: int) -> Mapping[str, Tensor]:
        """None: the mixture of transformers has its own."""
        raise TaskError(
            f"{self.info.name} has experts of its own and takes no others",
            hint="leave out --experts lora",
        )

    def see(self, images: Sequence[Image]) -> Tensor:
        """The mean of the tower's features, [n, D]."""
        seen = [self._asked(image, self.sizes)[0].float().mean(0) for image in images]
        return torch.stack(seen).cpu()

    @torch.no_grad()
    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[PreparedLesson]:
        """Features, latents and ids, each picture once for each way of looking at it."""
        sizes = self.lesson_sizes
        asked: dict[int, tuple[Tensor, Grid]] = {}
        edited: dict[int, tuple[Tensor, Grid]] = {}
        latents: dict[int, tuple[Tensor, Grid]] = {}
        # pictures are told apart by identity: the lessons keep them alive
        for lesson in counted(lessons, on_step):
            look, target = lesson.image, lesson.target
            if look is not None and lesson.task != "edit" and id(look) not in asked:
                asked[id(look)] = self._asked(look, sizes)
            if look is not None and lesson.task == "edit" and id(look) not in edited:
                edited[id(look)] = self._edited(look, sizes)
            encoded = (look if lesson.task == "edit" else None, target)
            for picture in encoded:
                if picture is not None and id(picture) not in latents:
                    latents[id(picture)] = self._encode(picture, sizes)
        found = []
        for lesson in lessons:
            seen = edited if lesson.task == "edit" else asked
            shown = (None, (0, 0)) if lesson.image is None else seen[id(lesson.image)]
            painted = (None, (0, 0)) if lesson.target is None else latents[id(lesson.target)]
            found.append(self._prepared(lesson, shown, painted, latents))
        return found

    def _prepared(
        self,
        lesson: Lesson,
        shown: tuple[Tensor | None, Grid],
        painted: tuple[Tensor | None, Grid],
        latents: Mapping[int, tuple[Tensor, Grid]],
    ) -> PreparedLesson:
        ids, at = ids_of(lesson.request, self.tokenizer)
        edits = lesson.task == "edit" and lesson.image is not None
        return PreparedLesson(
            task=lesson.task,
            request=ids,
            at=[place for place, _ in at],
            answer=self.tokenizer.encode(lesson.answer),
            features=shown[0],
            looked=shown[1],
            source=latents[id(lesson.image)][0] if edits else None,
            target=painted[0],
            grid=painted[1],
        )

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """Cross-entropy of answers; flow-matching error of pictures (paper, section 3.2)."""
        draw = torch.Generator().manual_seed(seed)

        def run(lessons: Sequence[PreparedLesson], tokens: ConceptTokens) -> tuple[Outputs, Tensor]:
            introduction = self._introduce([tokens])
            samples = [self._sample(one, tokens, length(introduction), draw) for one in lessons]
            packed = pack(samples, self.mixture.config, self.mixture.device, multiple=16)
            outputs: Outputs = self.mixture(packed, self.mixture.prefill([introduction]))
            return outputs, packed.noised_sample

        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        return task_losses(lessons, tokens, run, most=self.most, at_once=at_once)

    @torch.inference_mode()
    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Lessons about one picture go on from one reading of it."""
        ours = cast("Sequence[PreparedLesson]", lessons)
        prefix = self._introductions.of((tokens,))
        found = torch.zeros(len(ours), device=tokens.id.device)
        for numbers in by_picture(ours):
            mine = [ours[number] for number in numbers]
            seen = mine[0].features
            context = (
                self._begun(TALKING, prefix)
                if seen is None
                else self._looked(prefix, [(seen, mine[0].looked)])
            )
            samples: list[Sample] = [[self._answered(one, tokens)] for one in mine]
            packed = pack(samples, self.mixture.config, self.mixture.device)
            losses = self.mixture(packed, context).ce.float()
            found[numbers] = mean_losses(packed, losses, len(mine)).to(found)
        return found

    def _sample(
        self, lesson: PreparedLesson, tokens: ConceptTokens, start: int, draw: torch.Generator
    ) -> Sample:
        """A lesson after its concept's introduction, which takes ``start`` positions."""
        shown: list[Segment] = []
        if lesson.features is not None:
            shown.append(Vit(features=lesson.features, grid=lesson.looked))
        if lesson.task == "understand":
            head = raw([*self._sentence(LOOKING if shown else TALKING), *self.template.user])
            said = self._answered(lesson, tokens)
            return placed([head, *shown, said], start=start, anchor=self._asking_anchor)

        def kept() -> bool:
            if not torch.is_grad_enabled():  # held-out lessons are read whole
                return True
            return float(torch.rand((), generator=draw)) >= DROPPED

        assert lesson.target is not None  # for the type checker: painting lessons have one
        head = raw([*self._sentence(PAINTING), *self.template.user])
        if lesson.source is not None:
            head = raw([*self._sentence(EDITING), *self.template.user])
            shown = [*shown, Latent(lesson.source, lesson.grid)] if kept() else []
        soft = [SoftRows((place,), tokens.id) for place in lesson.at]
        after = raw(self.template.assistant)
        if kept():
            after = raw([*lesson.request, *self.template.assistant], soft)
        drawn = noised(lesson.target, lesson.grid, self.config.timestep_shift_train, draw)
        return placed([head, *shown, after, *drawn], start=start, anchor=self.config.anchor)

    def _answered(self, lesson: PreparedLesson, tokens: ConceptTokens) -> Text:
        """The request, and the answer to be learned."""
        soft = [SoftRows((place,), tokens.id) for place in lesson.at]
        request = [*lesson.request, *self.template.assistant]
        ids = [*request, *lesson.answer, self.template.end]
        return Text(ids, raw=True, soft=soft, loss=True, loss_from=len(request))

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
            context = self.context(prompt, [] if image is None else [image])
        ids = decode_text(
            self.mixture,
            context,
            max_new=max_tokens,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
            first=self.template.assistant[-1],
        )
        yield from stream(ids, self.tokenizer.decode)

    @torch.inference_mode()
    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability of each answer, its end included."""
        context = self.context(prompt, [] if image is None else [image])
        ids = [self.tokenizer.encode(answer) for answer in answers]
        found = score(self.mixture, context, ids, first=self.template.assistant[-1])
        return found.float().cpu()

    def context(self, prompt: Prompt, pictures: Sequence[Image]) -> Cache:
        """Concepts, what is to be done, the pictures, then all turns, but for the last token before
        the answer: `decode_text` and `score` read that."""
        prefix = self._introductions.of(prompt.concepts)
        if not pictures:
            before = self._begun(TALKING, prefix)
        else:
            before = self._looked(prefix, [self._asked(it, self.sizes) for it in pictures])
        request = self._request(prompt)
        ids = [*request.ids, *self.template.assistant[:-1]]
        return self.mixture.prefill([raw(ids, request.soft)], cache=before)

    def _looked(self, prefix: Cache | None, seen: Sequence[tuple[Tensor, Grid]]) -> Cache:
        """The context up to the question. The last one is kept for a single picture: several
        questions are asked about one."""
        first = seen[0][0]
        if self._shown is not None and len(seen) == 1:
            kept_prefix, kept_features, cache = self._shown
            if kept_prefix is prefix and kept_features is first:
                return cache
        shown = [Vit(features=features, grid=grid) for features, grid in seen]
        cache = self._begun(LOOKING, prefix, shown, anchor=self._asking_anchor)
        if len(seen) == 1:
            self._shown = prefix, first, cache
        return cache

    @property
    def _asking_anchor(self) -> int | None:
        return self.config.anchor if self.config.understanding_anchor else None

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
        """Guidance leans away from the same context without the request."""
        prompt = to_paint(prompt)
        width, height = size or self.info.sizes[0]
        stride = self.mixture.config.stride
        grid = (height // stride, width // stride)
        self._need_rest()
        with torch.inference_mode():
            before = self._begun(PAINTING, self._introductions.of(prompt.concepts))
        for one in self._painted(
            before, prompt, grid, seeds, steps=steps, guidance=guidance, on_step=on_step
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
    ) -> Iterator[Image]:
        """The source is in the context twice, for both experts, and the painting stands where its
        latents stand. Where the edit leaves a pixel alone, the source's own pixel is kept, so that
        the autoencoder's blur does not spread."""
        prompt = to_paint(prompt)
        source, grid = self._encode(image, self.sizes)
        features, looked = self._edited(image, self.sizes)
        with torch.inference_mode():
            prefix = self._introductions.of(prompt.concepts)
            clean = Latent(source, grid)
            shown: list[Segment] = [Vit(features=features, grid=looked), clean]
            before = self._begun(EDITING, prefix, shown, anchor=self.config.anchor)
            place = int(before.positions[0]) - length(clean)
        restored = self._decode(source, grid)
        for one in self._painted(
            before,
            prompt,
            grid,
            seeds,
            source=place,
            steps=steps,
            guidance=guidance,
            on_step=on_step,
        ):
            yield keep_unchanged(image, restored, self._decode(one, grid))

    def _painted(
        self,
        before: Cache,
        prompt: Prompt,
        grid: Grid,
        seeds: Sequence[int],
        *,
        steps: int | None,
        guidance: float | None,
        on_step: OnStep | None,
        source: int | None = None,
    ) -> Iterator[Tensor]:
        """Latent tokens [n, latent width] of a picture per seed, a few painted at once, after
        ``before``, which ends where the request begins."""
        with torch.inference_mode():
            full, bare = painting_contexts(
                self.mixture,
                before,
                self._request(prompt),
                raw(self.template.assistant),
                source=source,
                recount=self.config.recount,
            )
        cells = grid[0] * grid[1]
        few = max(1, AT_ONCE // cells)
        batches = [seeds[first : first + few] for first in range(0, len(seeds), few)]
        for number, some in enumerate(batches):
            with torch.inference_mode():
                tokens = sample_latents(
                    self.mixture,
                    full,
                    no_text=bare,
                    noise=noise_tokens(grid, self.mixture.config.latent_width, some),
                    grid=grid,
                    guidance=with_scale(self.guidance, guidance),
                    steps=self.info.steps if steps is None else steps,
                    shift=self.shift,
                    together=cells < TOGETHER,
                    on_step=step_of(over_all(on_step, number, len(batches))),
                )
            yield from tokens

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to remark."""
        return ()

    # -- contexts ------------------------------------------------------------------------------

    def _need_rest(self) -> None:
        """Read the weights that understanding without concepts does without, once."""
        if self._read_rest is not None:
            read, self._read_rest = self._read_rest, None
            read()

    def _introduce(self, concepts: Sequence[ConceptTokens]) -> Text:
        """The start of the system turn; each concept is a line of its own."""
        self._need_rest()
        for tokens in concepts:
            check_width(tokens, self.width, backend=self.info.name)
        return concept_text(
            self.template.system,
            [(tokens.id, tokens.und, tokens.gen) for tokens in concepts],
            says=self.tokenizer.encode(" is"),
            ends=self.tokenizer.encode(".\n"),
        )

    def _sentence(self, sentence: str) -> list[int]:
        return self.tokenizer.encode(sentence)

    def _begun(
        self,
        sentence: str,
        prefix: Cache | None,
        shown: Sequence[Segment] = (),
        *,
        anchor: int | None = None,
    ) -> Cache:
        """The context up to the request: the system turn after ``prefix``, then the pictures."""
        start = 0 if prefix is None else int(prefix.positions[0])
        opened = () if prefix is not None else self.template.system
        head = raw([*opened, *self._sentence(sentence), *self.template.user])
        return self.mixture.prefill(
            placed([head, *shown], start=start, anchor=anchor), cache=prefix
        )

    def _request(self, prompt: Prompt) -> Text:
        """All turns in the user's, a line each: what was said before has no roles."""
        concepts = {tokens.name: tokens for tokens in prompt.concepts}
        ids: list[int] = []
        soft: list[SoftRows] = []
        for turn in prompt.turns:
            ids += self.tokenizer.encode("\n") if ids else []
            own, at = ids_of(turn, self.tokenizer, concepts)
            soft += [SoftRows((len(ids) + place,), concepts[name].id) for place, name in at]
            ids += own
        return raw(ids, soft)

    # -- frozen encoders -----------------------------------------------------------------------

    def _asked(self, image: Image, sizes: Sizes) -> tuple[Tensor, Grid]:
        """Features [n, D] of a picture that is asked about, in its bucket, and their grid."""
        return self._looks.of(sizes.asked.apply(image))

    def _edited(self, image: Image, sizes: Sizes) -> tuple[Tensor, Grid]:
        """Features [n, D] of a picture that is edited, in its own shape, and their grid."""
        return self._looks.of(sizes.edited.apply(image))

    def _look(self, picture: Image) -> tuple[Tensor, Grid]:
        self.encoded += 1
        patches, grid = tower_patches(for_tower(picture), self.config.tower)
        # not an inference tensor: a lesson may need it for a gradient later
        with torch.inference_mode(False), torch.no_grad():
            return see(self.tower, patches, [grid])[0], merged(grid, self.config.tower)

    @torch.no_grad()
    def _encode(self, image: Image, sizes: Sizes) -> tuple[Tensor, Grid]:
        """Latent tokens [n, latent width]; the encoder's mean, so that seeds decide alone."""
        self._need_rest()
        self.encoded += 1
        pixels = to_tensor(sizes.latent.apply(rgb(image)))[None].to(self.mixture.device)
        return patchify(self.vae.encode(pixels)[0], 1)

    @torch.no_grad()
    def _decode(self, tokens: Tensor, grid: Grid) -> Image:
        latents = unpatchify(tokens[None], grid, 1)
        return images.fromarray(to_pixels(self.vae.decode(latents))[0].cpu().numpy())
