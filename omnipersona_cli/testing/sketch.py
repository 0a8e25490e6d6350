"""The smallest backend that there is: real gradients, nothing to load.

Tests of the engine and of plugins use it where the backbone does not matter. It is the backend that
``docs/write-a-backend.md`` builds step by step; a test holds the two together.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from PIL import Image as images
from PIL import ImageDraw
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import (
    Backend,
    BackendInfo,
    ConceptTokens,
    Lesson,
    OnStep,
    Opening,
    Prepared,
    Prompt,
    Task,
    counted,
)
from omnipersona_cli.family.tokens import check_width, norm_limit, trainable
from omnipersona_cli.hookspecs import Region, hookimpl

_ANSWERS = ("yes", "no", "a red ball", "a blue car", "the forest", "a dog", "i don't know")
_SIDE = 4
_WIDTH = _SIDE * _SIDE * 3

SKETCH = BackendInfo(
    name="sketch",
    summary="Sixteen blurred squares, for tests.",
    opens="omnipersona_cli.testing:open_sketch",
    tasks={"understand": "native", "generate": "native", "edit": "native"},
    default_model="embedded",
    sizes=((32, 32), (64, 64)),
    pictures="any",
    licence="Apache-2.0",
    memory_gb=0.1,
    steps=4,
    guidance=4.0,
    learn_steps=60,
    learn_rate=0.05,
    unknown_answer="i don't know",
    replay_leads="grammar",
    batch=8,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class SketchLesson:
    """A lesson after every frozen encoder has run."""

    task: Task
    words: Tensor
    features: Tensor | None
    target: Tensor | None
    answer: str


class SketchBackend:
    """Pictures are sixteen mean colours, texts are bags of words, everything is linear but one
    attention over the understanding part. ``encoded`` counts the pictures that were encoded."""

    info = SKETCH
    model = "embedded"
    fingerprint = "sketch@1:0"
    device = "cpu"
    width = _WIDTH

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.words: Tensor = torch.randn(512, _WIDTH, generator=generator) / _WIDTH**0.5
        self.encoded = 0
        self.norm_limit = norm_limit(self.words)

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
        """Small noise around the mean of the photos' features."""
        generator = torch.Generator().manual_seed(seed)
        looked = [self._look(photo) for photo in counted(photos, on_step)]
        centre = torch.stack(looked).mean(0)

        def rows(count: int) -> Tensor:
            return trainable(0.1 * centre + 0.02 * torch.randn(count, _WIDTH, generator=generator))

        return ConceptTokens(name=name, id=rows(1), und=rows(understand), gen=rows(generate))

    def see(self, images: Sequence[Image]) -> Tensor:
        """The colours of the squares, [n, d]."""
        return torch.stack([self._look(image) for image in images])

    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[Prepared]:
        """Features of every picture, a bag of words of every text."""
        return [
            SketchLesson(
                task=lesson.task,
                words=self._read(lesson.request.text),
                features=None if lesson.image is None else self._look(lesson.image),
                target=None if lesson.target is None else self._look(lesson.target),
                answer=lesson.answer,
            )
            for lesson in counted(lessons, on_step)
        ]

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """Cross-entropy of the answer, mean squared error of the colours. It keeps next to nothing
        for the way back, so that ``at_once`` has no say."""
        generator = torch.Generator().manual_seed(seed)
        losses: dict[Task, list[Tensor]] = {}
        for lesson in batch:
            assert isinstance(lesson, SketchLesson)
            if lesson.task == "understand":
                answers = tuple(dict.fromkeys((lesson.answer, *_ANSWERS)))
                logits = self._logits(lesson.words, lesson.features, (tokens,), answers)
                loss = -logits.log_softmax(0)[0]
            else:
                painted = self._colours(lesson.words, lesson.features, (tokens,), 1.0)
                noise = 0.01 * torch.randn(_WIDTH, generator=generator)
                assert lesson.target is not None
                loss = (painted - lesson.target + noise).square().mean() * 10
            losses.setdefault(lesson.task, []).append(loss)
        return {task: torch.stack(values).mean() for task, values in losses.items()}

    @torch.no_grad()
    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Each lesson's own loss."""
        losses = [self.loss([one], tokens, seed=0)["understand"] for one in lessons]
        return torch.stack(losses)

    def say(
        self,
        prompt: Prompt,
        *,
        image: Image | None = None,
        max_tokens: int = 100,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """The likeliest of a few answers, word by word."""
        with torch.no_grad():
            logits = self._prompt_logits(prompt, image, _ANSWERS)
        for index, word in enumerate(_ANSWERS[int(logits.argmax())].split()[:max_tokens]):
            yield word if index == 0 else f" {word}"

    @torch.no_grad()
    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probabilities among all answers that it knows."""
        known = tuple(dict.fromkeys((*answers, *_ANSWERS)))
        return self._prompt_logits(prompt, image, known).log_softmax(0)[: len(answers)]

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
        """Sixteen squares."""
        for seed in seeds:
            yield self._paint(prompt, None, guidance, seed, steps, on_step).resize(
                size or self.info.sizes[0], images.Resampling.NEAREST
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
    ) -> Iterator[Image]:
        """The source's squares, with what was learned mixed in."""
        for seed in seeds:
            squares = self._paint(prompt, self._look(image), guidance, seed, steps, on_step)
            yield squares.resize(image.size, images.Resampling.NEAREST)

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to warn of: it takes any word and any picture."""
        return ()

    def _paint(
        self,
        prompt: Prompt,
        features: Tensor | None,
        guidance: float | None,
        seed: int,
        steps: int | None,
        on_step: OnStep | None,
    ) -> Image:
        """One small picture, from the seed alone."""
        total = self.info.steps if steps is None else steps
        for step in range(total):
            if on_step is not None:
                on_step(step + 1, total)
        scale = (self.info.guidance if guidance is None else guidance) / self.info.guidance
        with torch.no_grad():
            colours = self._colours(self._read(prompt.text), features, prompt.concepts, scale)
        colours = colours + 0.02 * torch.randn(
            _WIDTH, generator=torch.Generator().manual_seed(seed)
        )
        pixels = ((colours + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return images.fromarray(pixels.reshape(_SIDE, _SIDE, 3).numpy())

    def _look(self, image: Image) -> Tensor:
        """The colours of sixteen squares [d], from -0.5 to 0.5: the frozen image encoder."""
        self.encoded += 1
        small = image.convert("RGB").resize((_SIDE, _SIDE), images.Resampling.BOX)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255 - 0.5).flatten()

    def _read(self, text: str) -> Tensor:
        """The sum of the words' rows [d]: the frozen text embedding."""
        words = text.lower().replace("?", " ").replace(".", " ").replace("'s", " ").split()
        rows = [int(sha256(word.encode()).hexdigest()[:8], 16) % len(self.words) for word in words]
        return self.words[rows].sum(0)

    def _prompt_logits(self, prompt: Prompt, image: Image | None, answers: Sequence[str]) -> Tensor:
        words = torch.stack([self._read(turn.text) for turn in prompt.turns]).sum(0)
        features = None if image is None else self._look(image)
        return self._logits(words, features, prompt.concepts, answers)

    def _logits(
        self,
        words: Tensor,
        features: Tensor | None,
        concepts: Sequence[ConceptTokens],
        answers: Sequence[str],
    ) -> Tensor:
        """Logits [len(answers)]; of the concepts only `id` and `und` are read."""
        rows = torch.stack([self._read(answer) for answer in answers])
        thought = 0.2 * words
        for tokens in concepts:
            check_width(tokens, self.width, backend=self.info.name)
            query = 4 * words + (0 if features is None else 4 * features)
            thought = thought + 4 * (tokens.und @ query).softmax(0) @ tokens.und
            if features is not None:
                likeness = (tokens.id[0] + tokens.und.mean(0)) @ features
                thought = thought + 5 * likeness * (self._read("yes") - self._read("no"))
        logits: Tensor = 2 * rows @ thought
        return logits

    def _colours(
        self,
        words: Tensor,
        features: Tensor | None,
        concepts: Sequence[ConceptTokens],
        guidance: float,
    ) -> Tensor:
        """Colours [d]; of the concepts only `id` and `gen` are read."""
        colours = (
            0.1 * guidance * words if features is None else 0.6 * features + 0.02 * guidance * words
        )
        for tokens in concepts:
            check_width(tokens, self.width, backend=self.info.name)
            colours = colours + (tokens.gen.mean(0) + 0.1 * tokens.id[0]) * guidance
        return colours


def drawing(colour: str, seed: int) -> Image:
    """A disc of one colour on a background and at a place of the seed's choosing, 64 x 64."""
    chance = random.Random(seed)
    ground = (chance.randrange(140, 230), chance.randrange(140, 230), chance.randrange(140, 230))
    image = images.new("RGB", (64, 64), ground)
    x, y = chance.randrange(22, 42), chance.randrange(24, 40)
    pen = ImageDraw.Draw(image)
    pen.ellipse((x - 18, y - 18, x + 18, y + 18), fill=colour)
    pen.line((0, seed % 60, 63, 60 - seed % 50), fill="grey", width=2)
    return image


class SketchPlugin:
    """`SKETCH`, a finder of saturated discs and pictures of discs; register it with pluggy."""

    @hookimpl
    def op_backends(self) -> Sequence[BackendInfo]:
        """The sketch backend."""
        return (SKETCH,)

    @hookimpl(tryfirst=True)
    def op_find_subject(self, photo: Image, kind: str) -> Region | None:
        """Whatever is strong in colour."""
        saturated = photo.convert("HSV").getchannel("S").point([0] * 150 + [255] * 106)
        box = saturated.getbbox()
        return None if box is None else Region(box=box, mask=saturated)

    @hookimpl
    def op_negatives(
        self, kind: str, count: int, seed: int, photos: Sequence[Image], backend: str
    ) -> Sequence[Image]:
        """Discs of other colours, for the sketch backend alone."""
        colours = ("blue", "green", "purple", "orange")
        few = min(count, 12) if backend == SKETCH.name else 0
        return [drawing(colours[index % 4], 100 + index) for index in range(few)]


def open_sketch(opening: Opening) -> Backend:
    """The opener of `SKETCH`."""
    return SketchBackend()
