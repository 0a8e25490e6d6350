"""Emu3 as a backend: concept tokens as input embeddings of frozen language models.

Understanding, by the checkpoint that answers:
`BOS You are a helpful assistant. [concepts] USER: picture question ASSISTANT: answer EOS`.
Painting and editing, by the one that paints:
`BOS [concepts] prompt BOI H*W codes` (Emu3's released processor).

The identifier is one for both checkpoints. The understanding group is learned on the one that
answers, and by edits, which show it too, on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from PIL.Image import Image
from torch import Tensor

from omnipersona_cli.backend import (
    TASKS,
    Backend,
    BackendInfo,
    ConceptTokens,
    Lesson,
    OnEstimate,
    OnStep,
    Opening,
    Prepared,
    Prompt,
    Task,
    counted,
)
from omnipersona_cli.errors import TaskError
from omnipersona_cli.family import experts
from omnipersona_cli.family.codes import changed_codes, kept_codes, paint_codes
from omnipersona_cli.family.device import choose_device, choose_dtype
from omnipersona_cli.family.language import PreparedLesson, Question
from omnipersona_cli.family.offload import check_offload
from omnipersona_cli.family.pictures import Encoded
from omnipersona_cli.family.quantize import refuse_quantize
from omnipersona_cli.family.speculative import WINDOW
from omnipersona_cli.family.tokens import start_tokens, usual_length
from omnipersona_cli.family.weights import place_of
from op_emu3 import INFO, layout, loading, pictures, prompts
from op_emu3.lessons import codes_loss
from op_emu3.loading import CheckpointFiles, LoadedCheckpoint
from op_emu3.sampling import sample

TOGETHER = 4608
"""Positions of one forward of learning: a picture of 512 pixels, 4,163 positions in each of 32
layers, and its prompt. The graphs of a whole batch fit nowhere."""
STARTING = 8192
"""The most codes of photos that tokens start from."""


class Emu3Backend:
    """One Emu3, or a pair of them; a checkpoint is read when a task first needs it, which
    ``on_step`` is told of."""

    def __init__(
        self,
        *,
        info: BackendInfo,
        model: str,
        sources: Mapping[Task, CheckpointFiles],
        device: str,
        dtype: torch.dtype,
        on_step: OnStep | None = None,
        offloaded: bool = False,
        lesson_size: int = 0,
    ) -> None:
        self.on_step = on_step
        self.info, self.model, self.sources = info, model, sources
        self.device, self.dtype, self.offloaded = device, dtype, offloaded
        self.lesson_size = lesson_size
        """Pixels of a side of pictures that are learned from; 0 those that are looked at."""
        self.window = 0
        """Codes that are drawn ahead while painting."""
        self.fingerprint = loading.fingerprint_of(sources)
        self.width = next(iter(sources.values())).width
        self._read: dict[Path, LoadedCheckpoint] = {}
        self._codes: dict[tuple[Path, tuple[int, int]], Encoded] = {}

    @cached_property
    def norm_limit(self) -> float:
        """From the embedding tables of all checkpoints, whichever of them are read."""
        return loading.norm_limit(self.sources)

    def opened(self, task: Task) -> LoadedCheckpoint:
        """The checkpoint that does ``task``, read now if it was not; TaskError where none does."""
        source = self.sources.get(task)
        if source is None:
            raise TaskError(
                f"{self.model} does not {task}",
                hint="leave out --model, or see which weights do: op backends show emu3",
            )
        if source.folder not in self._read:
            self._read[source.folder] = loading.read(
                source, self.device, self.dtype, self.on_step, offloaded=self.offloaded
            )
        return self._read[source.folder]

    def faster(self) -> Emu3Backend:
        """Drawing codes ahead; the checkpoints that are read are shared."""
        other = copy(self)
        other.info, other.window = replace(self.info, fast="", estimates=False), WINDOW
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
        """Centres of the embeddings that the photos' codes have in the checkpoint that will see
        the tokens, at the norm of its words."""
        reader = self.opened("understand" if "understand" in self.sources else "generate")
        painter = self.opened("generate" if "generate" in self.sources else "understand")
        models = [reader] if reader is painter else [reader, painter]
        both = [(model, photo) for model in models for photo in photos]
        found = [
            (model, self._encode(model, photo, self._lesson_grid(model, photo)))
            for model, photo in counted(both, on_step)
        ]
        codes = [[code for model, code in found if model is one] for one in (reader, painter)]
        return start_tokens(
            name,
            features=_features(reader, codes[0], seed),
            codes=_features(painter, codes[1], seed),
            understand=understand,
            generate=generate,
            seed=seed,
            length=usual_length(reader.llm.table, reader.first),
            codes_length=usual_length(painter.llm.table, painter.first),
        )

    def new_experts(self, *, seed: int) -> dict[str, Tensor]:
        """One LoRA per task, at zero effect: "lora.<task>.<linear>.<A or B>"."""
        found: dict[str, Tensor] = {}
        for task in self.sources:
            llm = self.opened(task).llm
            found |= llm.new_experts(tasks=(experts.ADAPTERS[task],), seed=seed)
        return found

    @torch.no_grad()
    def see(self, images: Sequence[Image]) -> Tensor:
        """The mean of the codes' embeddings in the checkpoint that understands, [n, d]."""
        model = self.opened("understand" if "understand" in self.sources else "generate")
        codes = (self._look(model, image).flatten() for image in images)
        rows = (model.llm.table(one + model.first) for one in codes)
        return torch.stack([one.float().mean(0) for one in rows]).cpu()

    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[PreparedLesson]:
        """The image tokenizer runs here, once for each picture and shape, and nowhere else."""
        return [self._prepared(lesson) for lesson in counted(lessons, on_step)]

    def _prepared(self, lesson: Lesson) -> PreparedLesson:
        model = self.opened(lesson.task)
        picture = codes = free = None
        if lesson.task == "understand" and lesson.image is not None:
            picture = self._encode(model, lesson.image, self._lesson_grid(model, lesson.image))
        if lesson.target is not None:
            grid = self._lesson_grid(model, lesson.target)
            codes = self._encode(model, lesson.target, grid)
            free = torch.ones_like(codes, dtype=torch.bool)
            if lesson.task == "edit" and lesson.image is not None:
                free = changed_codes(codes, self._encode(model, lesson.image, grid))
        return PreparedLesson(
            task=lesson.task,
            request=lesson.request,
            answer=lesson.answer,
            picture=picture,
            codes=codes,
            free=free,
        )

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """Mean cross-entropy of answers' tokens, and of codes (of those that an edit changed)."""
        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        draw = torch.Generator().manual_seed(seed)
        found: dict[Task, Tensor] = {}
        for task in TASKS:
            mine = [lesson for lesson in lessons if lesson.task == task]
            if mine and task == "understand":
                found[task] = self._answers_loss(mine, tokens, at_once)
            elif mine:
                found[task] = codes_loss(self.opened(task), mine, tokens, task, draw)
        return found

    def _answers_loss(
        self, lessons: Sequence[PreparedLesson], tokens: ConceptTokens, at_once: int
    ) -> Tensor:
        lengths = [1 if lesson.picture is None else lesson.picture.numel() for lesson in lessons]
        return self.opened("understand").llm.answers_loss(
            lessons, tokens, self._ask, lengths=lengths, most=TOGETHER, at_once=at_once
        )

    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Lessons about one picture go on from one reading of it."""
        mine = cast("Sequence[PreparedLesson]", lessons)  # they came out of `prepare`
        return self.opened("understand").llm.answer_losses(mine, tokens, self._ask)

    def _ask(self, lesson: PreparedLesson, tokens: ConceptTokens) -> Question:
        model = self.opened("understand")
        return prompts.question(model, (lesson.request,), (tokens,), lesson.picture)

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
        """Token by token, with a cache."""
        llm = self.opened("understand").llm
        yield from llm.say(
            self._question(prompt, image),
            prompt.concepts,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
        )

    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability of each answer, its end included."""
        llm = self.opened("understand").llm
        return llm.score(self._question(prompt, image), prompt.concepts, answers)

    @torch.no_grad()
    def _question(self, prompt: Prompt, image: Image | None) -> Question:
        model = self.opened("understand")
        codes = None if image is None else self._look(model, image)
        return prompts.question(model, prompt.turns, prompt.concepts, codes)

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
        """A step is a code, so that ``steps`` has no say."""
        model = self.opened("generate")
        width, height = size or self.info.sizes[0]
        grid = (height // layout.SIDE, width // layout.SIDE)
        yield from self._paint(
            model, prompt, "generate", grid, guidance, seeds, on_step, on_estimate
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
        """Masked regeneration: codes outside the mask stay, the others are drawn again."""
        model = self.opened("edit")
        own = image.width * image.height
        area = min(model.source.areas, key=lambda trained: abs(trained - own))
        grid = layout.grid_for(image.size, area)
        yield from self._paint(
            model,
            prompt,
            "edit",
            grid,
            guidance,
            seeds,
            on_step,
            on_estimate,
            known=self._encode(model, image, grid),
            free=~kept_codes(mask, grid).view(grid),
            size=image.size,
        )

    def _paint(
        self,
        model: LoadedCheckpoint,
        prompt: Prompt,
        task: Task,
        grid: tuple[int, int],
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None,
        on_estimate: OnEstimate | None,
        *,
        known: Tensor | None = None,
        free: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Image]:
        with torch.no_grad():
            wanted = prompts.request(model, prompt.turns[-1], prompt.concepts, task, grid)
            both = (wanted, prompts.wordless(model, grid, layout.UNWANTED))
        if len(wanted) + layout.length(grid) > model.source.positions:
            raise TaskError(
                f"the request is too long for a picture of {grid[0] * grid[1]:,} codes",
                hint="say less, or paint a smaller --size",
            )
        scale = self.info.guidance if guidance is None else guidance

        def drawn(**how: Any) -> Tensor:
            with model.llm.using(task, prompt.concepts):
                return sample(
                    model,
                    both,
                    grid,
                    guidance=scale,
                    known=known,
                    free=free,
                    window=self.window,
                    **how,
                )

        def decode(codes: Tensor) -> Image:
            pixels = pictures.decode(model.emu3, codes.view(grid).to(model.llm.device))
            return pictures.to_image(pixels, model.processor)

        yield from paint_codes(
            drawn,
            decode,
            grid,
            seeds=seeds,
            known=known,
            size=size,
            on_step=on_step,
            on_estimate=on_estimate,
        )

    # -- pictures ------------------------------------------------------------------------------

    def _encode(self, model: LoadedCheckpoint, image: Image, grid: tuple[int, int]) -> Tensor:
        key = model.source.folder, grid
        if key not in self._codes:
            self._codes[key] = Encoded(partial(_codes_of, model, grid))
        return self._codes[key](image)

    def _lesson_grid(self, model: LoadedCheckpoint, image: Image) -> tuple[int, int]:
        return layout.grid_for(image.size, self.lesson_size**2 or _modest(model))

    def _look(self, model: LoadedCheckpoint, image: Image) -> Tensor:
        return self._encode(model, image, layout.grid_for(image.size, _modest(model)))

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to warn of: it was trained on photographs and on any words."""
        return ()


# -- pictures of a checkpoint ----------------------------------------------------------------------


def _codes_of(model: LoadedCheckpoint, grid: tuple[int, int], image: Image) -> Tensor:
    return pictures.encode(model.emu3, pictures.to_tensor(image, grid, model.processor))


def _modest(model: LoadedCheckpoint) -> int:
    """The smallest trained area: what is looked at and learned from, because a picture costs as
    many positions as it has codes."""
    return min(model.source.areas)


def _features(model: LoadedCheckpoint, encoded: Sequence[Tensor], seed: int) -> Tensor:
    """Embeddings [n, d] of the photos' codes, or of so many of them as a start needs."""
    codes = torch.cat([one.flatten() for one in encoded])
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    rows: Tensor = model.llm.table(codes[order[:STARTING].to(codes.device)] + model.first)
    return rows


# -- opening it ------------------------------------------------------------------------------------


def open_backend(opening: Opening) -> Backend:
    """The checkpoints that the model names, looked at from outside; see `op_emu3.loading`.

    Raises MissingError where one is not here or not whole, UsageError where one is not Emu3.
    """
    model, device = opening.model, choose_device(opening.device)
    refuse_quantize(opening.quantize, "emu3")
    if opening.offload:
        check_offload(device)
    found = loading.sources(model, opening.revisions)
    painter = found.get("generate") or next(iter(found.values()))
    folder = place_of(model, INFO) if model else None
    names = dict.fromkeys(source.name for source in found.values())
    return Emu3Backend(
        info=replace(
            INFO,
            tasks={task: INFO.tasks[task] for task in TASKS if task in found},
            sizes=layout.sizes(painter.areas, painter.positions),
            deep_layers=min(source.layers for source in found.values()) - 1,
        ),
        # a path would tell of this machine
        model="+".join(names) if folder is None else folder.resolve().name,
        sources=found,
        device=device,
        dtype=choose_dtype(opening.dtype, device, backend="emu3"),
        on_step=opening.on_step,
        offloaded=opening.offload,
        lesson_size=opening.lesson_size,
    )
