"""For authors of backends: the rules that every backend keeps, as tests; and one to test with.

Subclass `BackendContract` in a test file and say what is under test::

    class TestMine(BackendContract):
        @pytest.fixture(scope="class")
        @classmethod
        def backend(cls) -> Backend: return open_mine(None, "cpu", None)

        @pytest.fixture
        def photos(self) -> list[Image]: ...        # four pictures of one thing

        @pytest.fixture
        def others(self) -> list[Image]: ...        # two pictures of other things

        @pytest.fixture
        def weights(self, backend) -> Mapping[str, Tensor]: return backend.net.state_dict()

        @pytest.fixture
        def encoder_calls(self, backend) -> Iterator[Callable[[], int]]: ...

`SketchBackend` is a bag-of-features model with real gradients and no weights to load: what tests of
the engine and of plugins use where the backbone does not matter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
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
    Prepared,
    Prompt,
    Task,
)
from omnipersona_cli.concepts.pack import Pack, read_pack, write_pack
from omnipersona_cli.engine.optimise import adamw
from omnipersona_cli.engine.tokens import copy_of, from_slot, named_tensors, slot_name, to_slot
from omnipersona_cli.errors import TaskError
from omnipersona_cli.hookspecs import Subject, hookimpl
from omnipersona_cli.language.mentions import to_turn

STEPS = 2
"""Sampling steps that the contract asks for: enough to see that steps are taken."""

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
    batch=8,
)


class BackendContract:
    """The rules of a backend. Every test is about the fixture ``backend``."""

    @pytest.fixture(scope="class")
    @classmethod
    def backend(cls) -> Backend:
        """The opened backend under test."""
        raise NotImplementedError("say which backend is under test")

    @pytest.fixture
    def photos(self) -> list[Image]:
        """A few pictures of one thing, of the kind that the backend knows."""
        raise NotImplementedError("give a few pictures of one thing")

    @pytest.fixture
    def others(self) -> list[Image]:
        """At least two pictures of other things."""
        raise NotImplementedError("give pictures of other things")

    @pytest.fixture
    def weights(self, backend: Backend) -> Mapping[str, Tensor]:
        """Every frozen tensor of the backbone, by name, not copied."""
        raise NotImplementedError("give the backbone's state_dict()")

    @pytest.fixture
    def encoder_calls(self, backend: Backend) -> Callable[[], int]:
        """How often a vision tower or an image encoder ran so far; count with forward hooks."""
        raise NotImplementedError("count the forward calls of the frozen encoders")

    @pytest.fixture
    def tokens(self, backend: Backend, photos: list[Image]) -> ConceptTokens:
        """New tokens of <bo>."""
        return backend.new_tokens("bo", understand=4, generate=3, photos=photos, seed=0)

    @pytest.fixture
    def lessons(
        self, backend: Backend, photos: list[Image], others: list[Image]
    ) -> dict[Task, list[Lesson]]:
        """Two lessons of each task that the backend does."""
        here, paint, add = (
            to_turn(text) for text in ("is <bo> here?", "a picture of <bo>", "add <bo>.")
        )
        lessons: dict[Task, list[Lesson]] = {
            "understand": [
                Lesson(
                    task="understand", kind="recognise", request=here, image=image, answer=answer
                )
                for image, answer in ((photos[0], "yes"), (others[0], "no"))
            ],
            "generate": [
                Lesson(task="generate", kind="depict", request=paint, target=photo)
                for photo in photos[:2]
            ],
            "edit": [
                Lesson(task="edit", kind="edit", request=add, image=other, target=photo)
                for other, photo in zip(others[:2], photos[:2], strict=True)
            ],
        }
        return {task: lessons[task] for task in backend.info.tasks}

    def test_a_slot_can_be_named_after_it(self, backend: Backend) -> None:
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", slot_name(backend))
        assert "@" in backend.fingerprint
        assert backend.width > 0 and backend.norm_limit > 0

    def test_new_tokens_have_the_promised_shape(
        self, backend: Backend, tokens: ConceptTokens
    ) -> None:
        assert tokens.id.shape == (1, backend.width)
        assert tokens.und.shape == (4, backend.width)
        assert tokens.gen.shape == (3, backend.width)
        for rows in (tokens.id, tokens.und, tokens.gen):
            assert rows.dtype == torch.float32
            assert torch.isfinite(rows).all()
            assert float(rows.detach().norm(dim=1).max()) <= backend.norm_limit * 1.001

    def test_new_tokens_follow_the_seed(
        self, backend: Backend, photos: list[Image], tokens: ConceptTokens
    ) -> None:
        again = backend.new_tokens("bo", understand=4, generate=3, photos=photos, seed=0)
        for old, new in zip(tokens.parameters(), again.parameters(), strict=True):
            assert torch.equal(old, new)

    def test_an_understanding_lesson_moves_only_the_understanding_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        moved = _moved(backend, tokens, lessons, "understand")
        assert moved == {"id", "und"}

    def test_a_depiction_lesson_moves_only_the_generation_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        moved = _moved(backend, tokens, lessons, "generate")
        assert moved == {"id", "gen"}

    def test_an_edit_lesson_moves_the_generation_part(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        assert _moved(backend, tokens, lessons, "edit") >= {"id", "gen"}

    def test_a_batch_gives_one_loss_for_each_task_in_it(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
        losses = backend.loss(batch, tokens, seed=0)
        assert set(losses) == set(lessons)
        for loss in losses.values():
            assert loss.ndim == 0 and torch.isfinite(loss)

    def test_the_loss_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, lessons: dict[Task, list[Lesson]]
    ) -> None:
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
        first, again = (backend.loss(batch, tokens, seed=3) for _ in range(2))
        for task in first:
            assert torch.equal(first[task], again[task])

    def test_learning_runs_no_frozen_encoder(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        lessons: dict[Task, list[Lesson]],
        encoder_calls: Callable[[], int],
    ) -> None:
        before = encoder_calls()
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
        prepared = encoder_calls()
        assert prepared > before, "the counter sees the encoders"
        trainable = copy_of(tokens, trainable=True)
        total = torch.stack(list(backend.loss(batch, trainable, seed=0).values())).sum()
        torch.autograd.backward(total)
        assert encoder_calls() == prepared

    def test_learning_lowers_the_loss_and_leaves_no_trace(
        self,
        backend: Backend,
        tokens: ConceptTokens,
        lessons: dict[Task, list[Lesson]],
        photos: list[Image],
        weights: Mapping[str, Tensor],
    ) -> None:
        kept = {name: value.clone() for name, value in weights.items()}
        before = _answers_without_concept(backend, photos[0])
        batch = backend.prepare([lesson for task in lessons for lesson in lessons[task]])
        trainable = copy_of(tokens, trainable=True)
        moments: dict[str, Tensor] = {}
        losses = []
        for _ in range(6):
            total = torch.stack(list(backend.loss(batch, trainable, seed=0).values())).sum()
            torch.autograd.backward(total)
            adamw(named_tensors(trainable), moments, rate=backend.info.learn_rate)
            losses.append(float(total.detach()))
        assert losses[-1] < losses[0]
        for name, value in weights.items():
            assert torch.equal(value, kept[name]), f"{name} has changed"
            assert value.grad is None, f"{name} has a gradient"
        after = _answers_without_concept(backend, photos[0])
        assert before == after

    def test_a_concept_makes_a_difference(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image]
    ) -> None:
        turn = to_turn("is <bo> here?")
        scores = [
            backend.score(Prompt(turns=(turn,), concepts=concepts), ("yes", "no"), image=photos[0])
            for concepts in ((), (tokens,))
        ]
        assert scores[0].shape == (2,) and not torch.equal(scores[0], scores[1])

    def test_scores_are_log_probabilities(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image]
    ) -> None:
        prompt = Prompt(turns=(to_turn("is <bo> here?"),), concepts=(tokens,))
        scores = backend.score(prompt, ("yes", "no"), image=photos[0])
        again = backend.score(prompt, ("yes", "no"), image=photos[0])
        assert torch.equal(scores, again)
        assert float(scores.max()) <= 0 and float(scores.exp().sum()) <= 1.0001

    def test_what_it_says_is_text_and_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image]
    ) -> None:
        prompt = Prompt(turns=(to_turn("what is <bo>?"),), concepts=(tokens,))
        said = ["".join(backend.say(prompt, image=photos[0], max_tokens=8)) for _ in range(2)]
        assert said[0] == said[1]

    def test_same_seed_same_picture(self, backend: Backend, tokens: ConceptTokens) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        one, other, again = (
            next(iter(_paint(backend, prompt, seeds=(seed,)))) for seed in (5, 6, 5)
        )
        assert one.size == backend.info.sizes[0] and one.mode == "RGB"
        assert one.tobytes() == again.tobytes()
        assert one.tobytes() != other.tobytes()

    def test_a_seed_means_the_same_alone_and_among_others(
        self, backend: Backend, tokens: ConceptTokens
    ) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <bo>"),), concepts=(tokens,))
        _, second = _paint(backend, prompt, seeds=(5, 6))
        (alone,) = _paint(backend, prompt, seeds=(6,))
        assert _near(second, alone)

    def test_painting_reports_its_steps(self, backend: Backend) -> None:
        steps: list[tuple[int, int]] = []
        prompt = Prompt(turns=(to_turn("a picture"),))
        list(_paint(backend, prompt, on_step=lambda done, total: steps.append((done, total))))
        assert steps and steps[-1][0] == steps[-1][1]
        assert [done for done, _ in steps] == sorted({done for done, _ in steps})

    def test_an_edit_keeps_the_size_and_follows_the_seed(
        self, backend: Backend, tokens: ConceptTokens, others: list[Image]
    ) -> None:
        if "edit" not in backend.info.tasks:
            pytest.skip("it does not edit")
        source = others[0].resize((others[0].width + 5, others[0].height - 3))
        mask = images.new("L", source.size, 255)
        prompt = Prompt(turns=(to_turn("add <bo>."),), concepts=(tokens,))
        edited = [
            next(iter(_edit(backend, source, prompt, mask=mask, seeds=(7,)))) for _ in range(2)
        ]
        assert edited[0].size == source.size
        assert edited[0].tobytes() == edited[1].tobytes()

    def test_two_concepts_stand_in_one_prompt(
        self, backend: Backend, tokens: ConceptTokens, others: list[Image]
    ) -> None:
        mam = backend.new_tokens("mam", understand=4, generate=3, photos=others, seed=1)
        turn = to_turn("<bo> and <mam> in the snow")
        both = Prompt(turns=(turn,), concepts=(tokens, mam))
        one = Prompt(turns=(turn,), concepts=(tokens,))
        pictures = [next(iter(_paint(backend, prompt))) for prompt in (both, one)]
        assert pictures[0].tobytes() != pictures[1].tobytes()

    def test_a_name_without_a_concept_is_plain_text(self, backend: Backend) -> None:
        prompt = Prompt(turns=(to_turn("a picture of <nobody>"),))
        assert next(iter(_paint(backend, prompt))).mode == "RGB"

    def test_tasks_that_are_not_declared_are_refused(
        self, backend: Backend, others: list[Image]
    ) -> None:
        prompt = Prompt(turns=(to_turn("a picture"),))
        attempts: dict[Task, Callable[[], object]] = {
            "understand": lambda: list(backend.say(prompt, max_tokens=2)),
            "generate": lambda: list(_paint(backend, prompt)),
            "edit": lambda: list(_edit(backend, others[0], prompt, mask=None)),
        }
        for task, attempt in attempts.items():
            if task in backend.info.tasks:
                continue
            with pytest.raises(TaskError):
                attempt()

    def test_a_pack_survives_save_and_load(
        self, backend: Backend, tokens: ConceptTokens, photos: list[Image], tmp_path: Path
    ) -> None:
        slot = to_slot(tokens, backend, {"seed": 0})
        pack = Pack(name="bo", slots={slot_name(backend): slot})
        write_pack(pack, tmp_path / "bo.opconcept")
        loaded = from_slot(read_pack(tmp_path / "bo.opconcept"), backend)
        for key, value in named_tensors(tokens).items():
            assert torch.equal(named_tensors(loaded)[key], value.detach().cpu())
        turn = to_turn("is <bo> here?")
        scores = [
            backend.score(Prompt(turns=(turn,), concepts=(it,)), ("yes", "no"), image=photos[0])
            for it in (tokens, loaded)
        ]
        assert torch.equal(scores[0], scores[1])


class SketchBackend:
    """Pictures are sixteen mean colours, texts are bags of words, everything is linear but one
    attention over the understanding part. ``encoded`` counts the pictures that were encoded."""

    info = SKETCH
    model = "embedded"
    fingerprint = "sketch@1:0"
    width = _WIDTH
    norm_limit = 20.0

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.words: Tensor = torch.randn(512, _WIDTH, generator=generator) / _WIDTH**0.5
        self.encoded = 0

    def new_tokens(
        self, name: str, *, understand: int, generate: int, photos: Sequence[Image], seed: int
    ) -> ConceptTokens:
        """Small noise around the mean of the photos' features."""
        generator = torch.Generator().manual_seed(seed)
        centre = torch.stack([self._look(photo) for photo in photos]).mean(0)

        def rows(count: int) -> Tensor:
            return 0.1 * centre + 0.02 * torch.randn(count, _WIDTH, generator=generator)

        return ConceptTokens(name=name, id=rows(1), und=rows(understand), gen=rows(generate))

    def prepare(self, lessons: Sequence[Lesson]) -> Sequence[Prepared]:
        """Features of every picture, a bag of words of every text."""
        return [
            _Sketched(
                task=lesson.task,
                words=self._read(lesson.request.text),
                seen=None if lesson.image is None else self._look(lesson.image),
                target=None if lesson.target is None else self._look(lesson.target),
                answer=lesson.answer,
            )
            for lesson in lessons
        ]

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int
    ) -> Mapping[Task, Tensor]:
        """Cross-entropy of the answer, mean squared error of the colours."""
        generator = torch.Generator().manual_seed(seed)
        losses: dict[Task, list[Tensor]] = {}
        for lesson in batch:
            assert isinstance(lesson, _Sketched)
            if lesson.task == "understand":
                answers = tuple(dict.fromkeys((lesson.answer, *_ANSWERS)))
                logits = self._logits(lesson.words, lesson.seen, (tokens,), answers)
                loss = -logits.log_softmax(0)[0]
            else:
                painted = self._colours(lesson.words, lesson.seen, (tokens,), 1.0)
                noise = 0.01 * torch.randn(_WIDTH, generator=generator)
                assert lesson.target is not None
                loss = (painted - lesson.target + noise).square().mean() * 10
            losses.setdefault(lesson.task, []).append(loss)
        return {task: torch.stack(values).mean() for task, values in losses.items()}

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
                size or SKETCH.sizes[0], images.Resampling.NEAREST
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
        """A note on the one word that it does not like."""
        return [f"the word {word!r} is new to sketch" for word in ("zyzzyva",) if word in texts]

    def _paint(
        self,
        prompt: Prompt,
        seen: Tensor | None,
        guidance: float | None,
        seed: int,
        steps: int | None,
        on_step: OnStep | None,
    ) -> Image:
        total = SKETCH.steps if steps is None else steps
        for step in range(total):
            if on_step is not None:
                on_step(step + 1, total)
        scale = (SKETCH.guidance if guidance is None else guidance) / SKETCH.guidance
        with torch.no_grad():
            colours = self._colours(self._read(prompt.text), seen, prompt.concepts, scale)
        colours = colours + 0.02 * torch.randn(
            _WIDTH, generator=torch.Generator().manual_seed(seed)
        )
        pixels = ((colours + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return images.fromarray(pixels.reshape(_SIDE, _SIDE, 3).numpy())

    def _look(self, image: Image) -> Tensor:
        self.encoded += 1
        small = image.convert("RGB").resize((_SIDE, _SIDE), images.Resampling.BOX)
        return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255 - 0.5).flatten()

    def _read(self, text: str) -> Tensor:
        words = text.lower().replace("?", " ").replace(".", " ").replace("'s", " ").split()
        rows = [int(sha256(word.encode()).hexdigest()[:8], 16) % len(self.words) for word in words]
        return self.words[rows].sum(0)

    def _prompt_logits(self, prompt: Prompt, image: Image | None, answers: Sequence[str]) -> Tensor:
        words = torch.stack([self._read(turn.text) for turn in prompt.turns]).sum(0)
        seen = None if image is None else self._look(image)
        return self._logits(words, seen, prompt.concepts, answers)

    def _logits(
        self,
        words: Tensor,
        seen: Tensor | None,
        concepts: Sequence[ConceptTokens],
        answers: Sequence[str],
    ) -> Tensor:
        rows = torch.stack([self._read(answer) for answer in answers])
        thought = 0.2 * words
        for tokens in concepts:
            query = 4 * words + (0 if seen is None else 4 * seen)
            thought = thought + 4 * (tokens.und @ query).softmax(0) @ tokens.und
            if seen is not None:
                likeness = (tokens.id[0] + tokens.und.mean(0)) @ seen
                thought = thought + 5 * likeness * (self._read("yes") - self._read("no"))
        logits: Tensor = 2 * rows @ thought
        return logits

    def _colours(
        self,
        words: Tensor,
        seen: Tensor | None,
        concepts: Sequence[ConceptTokens],
        guidance: float,
    ) -> Tensor:
        colours = 0.1 * guidance * words if seen is None else 0.6 * seen + 0.02 * guidance * words
        for tokens in concepts:
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
    def op_find_subject(self, photo: Image, kind: str) -> Subject | None:
        """Whatever is strong in colour."""
        saturated = photo.convert("HSV").getchannel("S").point([0] * 150 + [255] * 106)
        box = saturated.getbbox()
        return None if box is None else Subject(box=box, mask=saturated)

    @hookimpl
    def op_negatives(
        self, kind: str, count: int, seed: int, photos: Sequence[Image], backend: str
    ) -> Sequence[Image]:
        """Discs of other colours, for the sketch backend alone."""
        colours = ("blue", "green", "purple", "orange")
        few = min(count, 12) if backend == SKETCH.name else 0
        return [drawing(colours[index % 4], 100 + index) for index in range(few)]


@dataclass(frozen=True, kw_only=True)
class _Sketched:
    """A lesson of `SketchBackend` after its encoders."""

    task: Task
    words: Tensor
    seen: Tensor | None
    target: Tensor | None
    answer: str


def open_sketch(model: str | None, device: str, dtype: str | None) -> Backend:
    """The opener of `SKETCH`."""
    return SketchBackend()


def _moved(
    backend: Backend, tokens: ConceptTokens, lessons: Mapping[Task, list[Lesson]], task: Task
) -> set[str]:
    """The parts into which one lesson of ``task`` sends a gradient that is not zero."""
    if task not in lessons:
        pytest.skip(f"it does not {task}")
    trainable = copy_of(tokens, trainable=True)
    batch = backend.prepare(lessons[task][:1])
    torch.autograd.backward(backend.loss(batch, trainable, seed=0)[task])
    return {
        name
        for name, value in (("id", trainable.id), ("und", trainable.und), ("gen", trainable.gen))
        if value.grad is not None and bool(value.grad.abs().max() > 0)
    }


def _answers_without_concept(backend: Backend, photo: Image) -> list[bytes]:
    """What the backbone says and paints when nothing learned is in the prompt, to the bit."""
    answers = []
    if "understand" in backend.info.tasks:
        question = Prompt(turns=(to_turn("is it a cat?"),))
        answers.append(backend.score(question, ("yes", "no"), image=photo).numpy().tobytes())
        answers.append("".join(backend.say(question, image=photo, max_tokens=6)).encode())
    if "generate" in backend.info.tasks:
        painted = _paint(backend, Prompt(turns=(to_turn("a cat in the forest"),)))
        answers.append(next(iter(painted)).tobytes())
    if "edit" in backend.info.tasks:
        mask = images.new("L", photo.size, 255)
        edited = _edit(backend, photo, Prompt(turns=(to_turn("make it blue"),)), mask=mask)
        answers.append(next(iter(edited)).tobytes())
    return answers


def _paint(
    backend: Backend, prompt: Prompt, *, seeds: Sequence[int] = (1,), on_step: OnStep | None = None
) -> Iterator[Image]:
    return backend.gen(prompt, size=None, steps=STEPS, guidance=None, seeds=seeds, on_step=on_step)


def _edit(
    backend: Backend,
    image: Image,
    prompt: Prompt,
    *,
    mask: Image | None,
    seeds: Sequence[int] = (1,),
) -> Iterator[Image]:
    return backend.edit(image, prompt, mask=mask, steps=STEPS, guidance=None, seeds=seeds)


def _near(one: Image, other: Image) -> bool:
    """Equal but for the rounding that another batch size may bring."""
    gap = np.abs(np.asarray(one, dtype=np.int16) - np.asarray(other, dtype=np.int16))
    return bool(gap.max() <= 2)
