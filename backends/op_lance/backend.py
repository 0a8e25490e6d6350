"""Lance as a backend: concept tokens in both experts, inside the chat template.

A concept is introduced at the start of the system turn, "<sks> is und_1 … und_16 gen_1 … gen_16.",
as on BAGEL: identifier and und slots run through the understanding expert, gen slots through the
generation expert (paper, section 3.1). The sentence that says what is to be done follows it, so
that one prefix serves all tasks. It is no part of the prompt: guidance leans away from a picture
without the request, not from one without the concept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import torch
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
    counted,
)
from omnipersona_cli.family.deep import wide_rows
from omnipersona_cli.family.pictures import once
from omnipersona_cli.family.pieces import most_positions
from omnipersona_cli.family.quantize import Quantized
from omnipersona_cli.family.text import stream
from omnipersona_cli.family.tokens import check_width, norm_limit
from op_bagel.cache import Cache
from op_bagel.lineage import (
    Introductions,
    PreparedLesson,
    Tokenizer,
    answer_losses,
    ids_of,
    started_tokens,
    task_losses,
)
from op_bagel.model import Bagel, Outputs
from op_bagel.packing import pack
from op_bagel.painting import Contexts, faster, keep_unchanged, paint, to_paint, with_scale
from op_bagel.pictures import Grid
from op_bagel.sampling import Guidance, Solver, decode_text, score
from op_bagel.segments import Latent, Segment, SoftRows, Text, Vit
from op_lance.config import LanceConfig
from op_lance.encoders import Encoders
from op_lance.layout import concept_text, length, painting_contexts, placed, raw
from op_lance.lessons import answered, sample_of
from op_lance.pictures import LEARNED, USED, sizes_of
from op_lance.prompts import template


class LanceBackend:
    """One opened Lance. ``need_expert`` reads the weights that painting and concept tokens need,
    where they are not there yet. ``learned`` is the side of a square picture that is learned from,
    as a share of the largest."""

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
        encoders: Encoders,
        tokenizer: Tokenizer,
        guidance: Guidance,
        shift: float,
        need_expert: Callable[[], None],
        learned: float = LEARNED,
    ) -> None:
        self.info, self.model, self.fingerprint = info, model, fingerprint
        self.config, self.tokenizer = config, tokenizer
        self.mixture = mixture.requires_grad_(False)
        self.encoders, self.need_expert = encoders, need_expert
        self.sizes, self.lesson_sizes = sizes_of(config, USED), sizes_of(config, learned)
        self.guidance, self.shift = guidance, shift
        self.solver: Solver = "euler"
        self.template = template(tokenizer.encode, config.special_tokens)
        self.width = config.llm.hidden_size
        self.device = str(mixture.device)
        self.norm_limit = norm_limit(mixture.language_model.model.embed_tokens.weight)
        self.most = most_positions(config.llm, self.device, size=mixture.dtype.itemsize)
        self._introductions = Introductions(
            lambda concepts: self.mixture.prefill([self._introduce(concepts)])
        )
        self._shown: tuple[Cache | None, Tensor, Cache] | None = None

    def faster(self) -> LanceBackend:
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
        """Starts from k-means centres of the tower's features, and for the generation expert of the
        latents as they enter it, of photos at the size that they are learned from: `prepare` finds
        them encoded."""
        self.need_expert()
        look, encode, sizes = self.encoders.asked, self.encoders.encode, self.lesson_sizes
        encoded = ((look(it, sizes)[0], encode(it, sizes)[0]) for it in counted(photos, on_step))
        return started_tokens(
            name,
            encoded,
            self.mixture,
            understand=understand,
            generate=generate,
            seed=seed,
            norm_limit=self.norm_limit,
        )

    def see(self, images: Sequence[Image]) -> Tensor:
        """The mean of the tower's features, [n, D]."""
        features = [self.encoders.asked(image, self.sizes)[0].float().mean(0) for image in images]
        return torch.stack(features).cpu()

    @torch.no_grad()
    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[PreparedLesson]:
        """Features, latents and ids, each picture once for each way of looking at it."""
        asked, edited, latents = (
            once(partial(encode, sizes=self.lesson_sizes))
            for encode in (self.encoders.asked, self.encoders.edited, self.encoders.encode)
        )
        found = []
        for lesson in counted(lessons, on_step):
            features = edited if lesson.task == "edit" else asked
            found.append(self._prepared(lesson, features, latents))
        return found

    def _prepared(
        self,
        lesson: Lesson,
        features: Callable[[Image], tuple[Tensor, Grid]],
        latents: Callable[[Image], tuple[Tensor, Grid]],
    ) -> PreparedLesson:
        nothing: tuple[None, Grid] = None, (0, 0)
        looked = nothing if lesson.image is None else features(lesson.image)
        target, grid = nothing if lesson.target is None else latents(lesson.target)
        edited = lesson.image if lesson.task == "edit" else None
        ids, at = ids_of(lesson.request, self.tokenizer)
        return PreparedLesson(
            task=lesson.task,
            request=ids,
            at=[place for place, _ in at],
            answer=self.tokenizer.encode(lesson.answer),
            features=looked[0],
            looked=looked[1],
            source=None if edited is None else latents(edited)[0],
            target=target,
            grid=grid,
        )

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """Cross-entropy of answers; flow-matching error of pictures (paper, section 3.2)."""
        draw = torch.Generator().manual_seed(seed)

        def run(lessons: Sequence[PreparedLesson], tokens: ConceptTokens) -> tuple[Outputs, Tensor]:
            introduction = self._introduce([tokens])
            start = length(introduction)
            samples = [
                sample_of(one, tokens, self.template, self.config, start=start, draw=draw)
                for one in lessons
            ]
            packed = pack(samples, self.mixture.config, self.mixture.device, multiple=16)
            outputs: Outputs = self.mixture(packed, self.mixture.prefill([introduction]))
            return outputs, packed.noised_sample

        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        return task_losses(lessons, tokens, run, most=self.most, at_once=at_once)

    @torch.inference_mode()
    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Lessons about one picture go on from one reading of it."""
        prefix = self._introductions.of((tokens,))

        def context(lesson: PreparedLesson) -> Cache:
            if lesson.features is None:
                return self._begun(self.template.talking, prefix)
            return self._looked(prefix, [(lesson.features, lesson.looked)])

        return answer_losses(
            self.mixture,
            cast("Sequence[PreparedLesson]", lessons),
            context=context,
            sample=lambda one: [answered(one, tokens, self.template)],
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
        self,
        prompt: Prompt,
        answers: Sequence[str],
        *,
        image: Image | None = None,
        more: Sequence[Image] = (),
    ) -> Tensor:
        """Log-probability of each answer, its end included."""
        context = self._context(prompt, [] if image is None else [image, *more])
        ids = [self.tokenizer.encode(answer) for answer in answers]
        found = score(self.mixture, context, ids, first=self.template.assistant[-1])
        return found.float().cpu()

    def _context(self, prompt: Prompt, pictures: Sequence[Image]) -> Cache:
        """Concepts, what is to be done, the pictures, then all turns, but for the last token before
        the answer: `decode_text` and `score` read that."""
        prefix = self._introductions.of(prompt.concepts)
        if not pictures:
            before = self._begun(self.template.talking, prefix)
        else:
            before = self._looked(prefix, [self.encoders.asked(it, self.sizes) for it in pictures])
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
        cache = self._begun(self.template.looking, prefix, shown, anchor=self.config.asking_anchor)
        if len(seen) == 1:
            self._shown = prefix, first, cache
        return cache

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
        """Guidance leans away from the same context without the request."""
        prompt = to_paint(prompt)
        width, height = size or self.info.sizes[0]
        stride = self.mixture.config.stride
        grid = (height // stride, width // stride)
        self.need_expert()
        self.encoders.need()
        with torch.inference_mode():
            prefix = self._introductions.of(prompt.concepts)
            contexts = self._contexts(self._begun(self.template.painting, prefix), prompt)
        yield from paint(
            self,
            self.mixture,
            contexts,
            grid,
            seeds=seeds,
            guidance=with_scale(self.guidance, guidance),
            steps=steps,
            decode=partial(self.encoders.decode, grid=grid),
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
        """The source is in the context twice, for both experts, and the painting stands where its
        latents stand. Where the edit leaves a pixel alone, the source's own pixel is kept, so that
        the autoencoder's blur does not spread."""
        prompt = to_paint(prompt)
        self.need_expert()
        source, grid = self.encoders.encode(image, self.sizes)
        restored = self.encoders.decode(source, grid)

        def decode(tokens: Tensor) -> Image:
            return keep_unchanged(image, restored, self.encoders.decode(tokens, grid))

        features, looked = self.encoders.edited(image, self.sizes)
        with torch.inference_mode():
            prefix = self._introductions.of(prompt.concepts)
            clean = Latent(source, grid)
            pictures: list[Segment] = [Vit(features=features, grid=looked), clean]
            before = self._begun(self.template.editing, prefix, pictures, anchor=self.config.anchor)
            place = int(before.positions[0]) - length(clean)
            contexts = self._contexts(before, prompt, source=place)
        yield from paint(
            self,
            self.mixture,
            contexts,
            grid,
            seeds=seeds,
            guidance=with_scale(self.guidance, guidance),
            steps=steps,
            decode=decode,
            on_step=on_step,
            on_estimate=on_estimate,
        )

    def _contexts(self, before: Cache, prompt: Prompt, *, source: int | None = None) -> Contexts:
        """What is painted behind: ``before``, which ends where the request begins, and the request.
        ``source`` is where the clean latents stand that are edited."""
        full, bare = painting_contexts(
            self.mixture,
            before,
            self._request(prompt),
            raw(self.template.assistant),
            source=source,
            recount=self.config.recount,
        )
        return Contexts(full=full, no_text=bare)

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to remark."""
        return ()

    # -- contexts ------------------------------------------------------------------------------

    def _introduce(self, concepts: Sequence[ConceptTokens]) -> Text:
        """The start of the system turn; each concept is a line of its own."""
        self.need_expert()
        for tokens in concepts:
            check_width(tokens, self.width, backend=self.info.name)
        return concept_text(
            self.template.system,
            [(one.id, wide_rows(one, "und"), wide_rows(one, "gen")) for one in concepts],
            says=self.tokenizer.encode(" is"),
            ends=self.tokenizer.encode(".\n"),
        )

    def _begun(
        self,
        task: Sequence[int],
        prefix: Cache | None,
        shown: Sequence[Segment] = (),
        *,
        anchor: int | None = None,
    ) -> Cache:
        """The context up to the request: the system turn after ``prefix``, with what the template
        says of the ``task``, then the pictures."""
        start = 0 if prefix is None else int(prefix.positions[0])
        opened = () if prefix is not None else self.template.system
        head = raw([*opened, *task])
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
