"""Emu3 as a backend: concept tokens as input embeddings of frozen language models.

Understanding, by the checkpoint that answers:
`BOS You are a helpful assistant. [concepts] USER: picture question ASSISTANT: answer EOS`.
Painting and editing, by the one that paints:
`BOS [concepts] prompt BOI H*W codes` (Emu3 page, section 3).

The identifier is one for both checkpoints. The understanding group is learned on the one that
answers, and by edits, which show it too, on the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import DynamicCache

from omnipersona_cli.backend import (
    TASKS,
    Backend,
    BackendInfo,
    ConceptTokens,
    Lesson,
    OnStep,
    Prepared,
    Prompt,
    Task,
)
from omnipersona_cli.errors import TaskError, UsageError
from op_autoregressive import experts
from op_autoregressive import loading as files
from op_autoregressive.region import kept_codes
from op_autoregressive.slots import fresh_tokens, usual_length
from op_emu3 import INFO, layout, loading, pictures, prompts
from op_emu3.lessons import PreparedLesson, few_at_a_time, settled
from op_emu3.loading import Checkpoint, Source
from op_emu3.sampling import sample

LINEARS = r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""Linears of the language model alone: no image tokenizer, which has a q_proj too, and no head."""
DROPPED = 0.05
"""Share of image lessons without a prompt, where an expert is learned: it runs in the unconditional
branch too. Tokens alone are absent from that branch, so that such a row would teach nothing (the
authors' trainer, Emu3 page, section 5)."""
LONG = 1024
"""From this many positions on, learning keeps no activations but those between layers."""
TOGETHER = 4608
"""Positions of one forward of learning: a picture of 512 pixels and its prompt."""
STARTING = 8192
"""The most codes of photos that tokens start from."""


class Emu3Backend:
    """One Emu3, or a pair of them; a checkpoint is read when a task first needs it."""

    def __init__(
        self,
        *,
        info: BackendInfo,
        model: str,
        sources: Mapping[Task, Source],
        device: str,
        dtype: torch.dtype,
    ) -> None:
        self.info, self.model, self.sources = info, model, sources
        self.device, self.dtype = device, dtype
        self.fingerprint = loading.fingerprint_of(sources)
        self.width = next(iter(sources.values())).width
        self._read: dict[Path, Checkpoint] = {}

    @cached_property
    def norm_limit(self) -> float:
        """From the embedding tables of all checkpoints, whichever of them are read."""
        return loading.norm_limit(self.sources)

    def opened(self, task: Task) -> Checkpoint:
        """The checkpoint that does ``task``, read now if it was not; TaskError where none does."""
        source = self.sources.get(task)
        if source is None:
            raise TaskError(
                f"{self.model} does not {task}",
                hint="leave out --model, or see which weights do: op backends show emu3",
            )
        if source.folder not in self._read:
            self._read[source.folder] = loading.read(source, self.device, self.dtype)
        return self._read[source.folder]

    # -- learning ------------------------------------------------------------------------------

    def new_tokens(
        self, name: str, *, understand: int, generate: int, photos: Sequence[Image], seed: int
    ) -> ConceptTokens:
        """Centres of the embeddings that the photos' codes have in the checkpoint that will see
        the tokens, at the norm of its words."""
        reader = self.opened("understand" if "understand" in self.sources else "generate")
        painter = self.opened("generate" if "generate" in self.sources else "understand")
        return fresh_tokens(
            name,
            seen=_features(reader, photos, seed),
            drawn=_features(painter, photos, seed),
            understand=understand,
            generate=generate,
            seed=seed,
            length=usual_length(reader.table, reader.first),
            drawn_length=usual_length(painter.table, painter.first),
        )

    def new_experts(self, *, seed: int) -> dict[str, Tensor]:
        """One LoRA per task, at zero effect: "lora.<task>.<linear>.<A or B>"."""
        found: dict[str, Tensor] = {}
        for task in self.sources:
            own = experts.ADAPTERS[task]
            language = self.opened(task).language
            found |= experts.new_experts(language, LINEARS, tasks=(own,), seed=seed)
        return found

    def prepare(self, lessons: Sequence[Lesson]) -> Sequence[PreparedLesson]:
        """The image tokenizer runs here, once for each picture and shape, and nowhere else."""
        known: dict[tuple[int, Path, tuple[int, int]], Tensor] = {}

        def codes(model: Checkpoint, image: Image, grid: tuple[int, int]) -> Tensor:
            key = (id(image), model.source.folder, grid)
            if key not in known:
                known[key] = _encode(model, image, grid)
            return known[key]

        found = []
        for lesson in lessons:
            model = self.opened(lesson.task)
            shown = lesson.image if lesson.task == "understand" else lesson.target
            grid = None if shown is None else layout.grid_for(shown.size, _modest(model))
            here = None if shown is None or grid is None else codes(model, shown, grid)
            free = None
            if lesson.task == "edit" and lesson.image is not None and here is not None and grid:
                changed = here != codes(model, lesson.image, grid)
                free = changed if bool(changed.any()) else torch.ones_like(changed)
            found.append(
                PreparedLesson(
                    task=lesson.task,
                    request=lesson.request,
                    answer=lesson.answer,
                    seen=here if lesson.task == "understand" else None,
                    codes=None if lesson.task == "understand" else here,
                    free=free,
                )
            )
        return found

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int
    ) -> Mapping[Task, Tensor]:
        """Mean cross-entropy of answers' tokens, and of codes (of those that an edit changed).

        Ends of lines are not asked for, as nobody draws them when painting, and codes compete with
        codes alone, as they do there (Emu3 page, section 5).
        """
        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        draw = torch.Generator().manual_seed(seed)
        found: dict[Task, Tensor] = {}
        for task in TASKS:
            mine = [lesson for lesson in lessons if lesson.task == task]
            if mine and task == "understand":
                found[task] = self._said(mine, tokens)
            elif mine:
                found[task] = self._drawn(mine, tokens, task, draw)
        return found

    def _said(self, lessons: Sequence[PreparedLesson], tokens: ConceptTokens) -> Tensor:
        model = self.opened("understand")
        answers = [prompts.answer(model, lesson.answer) for lesson in lessons]
        count = sum(len(said) for said in answers)
        sizes = [1 if it.seen is None else it.seen.numel() for it in lessons]
        parts = []
        for group in few_at_a_time(list(zip(lessons, answers, strict=True)), sizes, TOGETHER):
            rows, labels = [], []
            for lesson, said in group:
                asked = prompts.question(model, (lesson.request,), (tokens,), lesson.seen)
                rows.append(torch.cat([asked, model.table(said[:-1])]))
                labels.append(F.pad(said, (len(asked) - 1, 0), value=-100))
            with _running(model, (tokens,), "understand"):
                loss = _answers_ce(model, rows, labels).sum() / count
                parts.append(settled(loss, tokens.parameters()))
        return torch.stack(parts).sum()

    def _drawn(
        self,
        lessons: Sequence[PreparedLesson],
        tokens: ConceptTokens,
        task: Task,
        draw: torch.Generator,
    ) -> Tensor:
        model = self.opened(task)
        wanted = [
            torch.ones_like(cast(Tensor, it.codes), dtype=torch.bool)
            if it.free is None
            else it.free
            for it in lessons
        ]
        count = sum(int(free.sum()) for free in wanted)
        parts = []
        for lesson, free in zip(lessons, wanted, strict=True):
            codes = cast(Tensor, lesson.codes)
            grid = (codes.shape[0], codes.shape[1])
            bare = tokens.extra and float(torch.rand((), generator=draw)) < DROPPED
            prompt = (
                prompts.wordless(model, grid, "")
                if bare
                else prompts.request(model, lesson.request, (tokens,), task, grid)
            )
            ids = prompts.lines_of(model, codes)
            asked = F.pad(free, (0, 1)).flatten().nonzero()[:, 0]  # ends of lines are not free
            rows = torch.cat([prompt, model.table(ids[: int(asked[-1])])])
            with _running(model, (tokens,), task):
                states = _states(model, rows[None])[0, len(prompt) - 1 :]
                logits = (states[asked] @ model.head.T).float()
                loss = F.cross_entropy(logits, codes[free], reduction="sum") / count
                parts.append(settled(loss, tokens.parameters()))
        return torch.stack(parts).sum()

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
        model = self.opened("understand")
        generator = torch.Generator().manual_seed(seed)
        cache = DynamicCache(config=model.language.config)
        said: list[int] = []
        shown = ""
        with torch.no_grad():
            seen = None if image is None else _look(model, image)
            rows = prompts.question(model, prompt.turns, prompt.concepts, seen)[None]
        for _ in range(max_tokens):
            with torch.no_grad(), _running(model, prompt.concepts, "understand"):
                read = model.language(inputs_embeds=rows, past_key_values=cache, use_cache=True)
                scores = model.emu3.lm_head(read.last_hidden_state[0, -1]).float().cpu()
            if temperature > 0:
                chances = (scores / temperature).softmax(-1)
                token = int(torch.multinomial(chances, 1, generator=generator))
            else:
                token = int(scores.argmax())
            if token == model.end_of_text:
                return
            said.append(token)
            text = str(model.tokenizer.decode(said, skip_special_tokens=True)).lstrip()
            if text.startswith(shown) and text != shown and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
            rows = model.table(torch.tensor([[token]], device=model.device))

    @torch.no_grad()
    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability of each answer, its end included, all in one forward."""
        model = self.opened("understand")
        seen = None if image is None else _look(model, image)
        asked = prompts.question(model, prompt.turns, prompt.concepts, seen)
        said = [prompts.answer(model, answer) for answer in answers]
        rows = [torch.cat([asked, model.table(ids[:-1])]) for ids in said]
        labels = [F.pad(ids, (len(asked) - 1, 0), value=-100) for ids in said]
        with _running(model, prompt.concepts, "understand"):
            losses = _answers_ce(model, rows, labels)
        parts = torch.split(losses, [len(ids) for ids in said])
        return torch.stack([-part.sum() for part in parts]).cpu()

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
        """A step is a code, so that ``steps`` has no say."""
        model = self.opened("generate")
        width, height = size or self.info.sizes[0]
        if (width, height) not in self.info.sizes:
            offered = ", ".join(f"{wide}x{high}" for wide, high in self.info.sizes)
            raise TaskError(
                f"emu3 cannot paint {width}x{height} pixels", hint=f"--size takes {offered}"
            )
        grid = (height // layout.SIDE, width // layout.SIDE)
        yield from self._paint(model, prompt, "generate", grid, guidance, seeds, on_step)

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
        """Masked regeneration: codes outside the mask stay, the others are drawn again."""
        model = self.opened("edit")
        if mask is None:
            raise TaskError(
                "emu3 edits by repainting a region, and none is known",
                hint="--mask MASK.png or --box x,y,width,height",
            )
        own = image.width * image.height
        area = min(model.source.areas, key=lambda it: abs(it - own))
        grid = layout.grid_for(image.size, area)
        free = ~kept_codes(mask, grid).view(grid)
        if not bool(free.any()):
            raise UsageError(
                "the mask is empty: nothing may change", hint="paint white what may change"
            )
        known = _encode(model, image, grid)
        painted = self._paint(model, prompt, "edit", grid, guidance, seeds, on_step, known, free)
        for picture in painted:
            yield picture.resize(image.size, Resampling.BICUBIC)

    def _paint(
        self,
        model: Checkpoint,
        prompt: Prompt,
        task: Task,
        grid: tuple[int, int],
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None,
        known: Tensor | None = None,
        free: Tensor | None = None,
    ) -> Iterator[Image]:
        """One picture after the other, so that a seed means the same alone and among others."""
        with torch.no_grad():
            wanted = prompts.request(model, prompt.turns[-1], prompt.concepts, task, grid)
            both = (wanted, prompts.wordless(model, grid, layout.UNWANTED))
        if len(wanted) + layout.length(grid) > model.source.positions:
            raise TaskError(
                f"the request is too long for a picture of {grid[0] * grid[1]:,} codes",
                hint="say less, or paint a smaller --size",
            )
        for number, seed in enumerate(seeds):
            with _running(model, prompt.concepts, task):
                codes = sample(
                    model,
                    both,
                    grid,
                    guidance=self.info.guidance if guidance is None else guidance,
                    generator=torch.Generator().manual_seed(seed),
                    known=known,
                    free=free,
                    on_step=_later(on_step, number, len(seeds)),
                )
            yield pictures.to_image(pictures.decode(model.emu3, codes), model.processor)

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to warn of: it was trained on photographs and on any words."""
        return ()


# -- pictures of a checkpoint ----------------------------------------------------------------------


def _encode(model: Checkpoint, image: Image, grid: tuple[int, int]) -> Tensor:
    return pictures.encode(model.emu3, pictures.to_tensor(image, grid, model.processor))


def _modest(model: Checkpoint) -> int:
    """The smallest trained area: what is looked at and learned from, because a picture costs as
    many positions as it has codes."""
    return min(model.source.areas)


def _look(model: Checkpoint, image: Image) -> Tensor:
    return _encode(model, image, layout.grid_for(image.size, _modest(model)))


def _features(model: Checkpoint, photos: Sequence[Image], seed: int) -> Tensor:
    """Embeddings [n, d] of the photos' codes, or of so many of them as a start needs."""
    codes = torch.cat([_look(model, photo).flatten() for photo in photos])
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(seed))
    rows: Tensor = model.table(codes[order[:STARTING].to(codes.device)] + model.first)
    return rows


# -- running it ------------------------------------------------------------------------------------


@contextmanager
def _running(model: Checkpoint, concepts: Sequence[ConceptTokens], task: Task) -> Iterator[None]:
    """The language model under the concepts' experts of this task."""
    with experts.using(model.language, LINEARS, [it.extra for it in concepts], task):
        yield


def _states(model: Checkpoint, rows: Tensor) -> Tensor:
    """Last hidden states [B, L, d] of whole sequences.

    Layers forget their activations only in training mode, which changes nothing else here: dropout
    is zero, and the image tokenizer, whose statistics would move, stays out of it.
    """
    frugal = torch.is_grad_enabled() and rows.shape[1] >= LONG
    model.language.train(frugal)
    try:
        states: Tensor = model.language(inputs_embeds=rows, use_cache=False).last_hidden_state
    finally:
        model.language.train(False)
    return states


def _answers_ce(model: Checkpoint, rows: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
    """Cross-entropies [K] of all labels >= 0; padding stands to the right, where nothing that is
    asked for can see it. The head runs on labelled rows alone."""
    pad = torch.nn.utils.rnn.pad_sequence
    wanted = pad(list(labels), batch_first=True, padding_value=-100)
    states = _states(model, pad(list(rows), batch_first=True))
    at = wanted >= 0
    logits: Tensor = model.emu3.lm_head(states[at]).float()
    return F.cross_entropy(logits, wanted[at], reduction="none")


def _later(on_step: OnStep | None, number: int, pictures_in_all: int) -> OnStep | None:
    """Progress over all pictures, from that of one."""
    if on_step is None:
        return None
    return lambda done, steps: on_step(number * steps + done, pictures_in_all * steps)


def open_backend(model: str | None, device: str, dtype: str | None) -> Backend:
    """The checkpoints that ``model`` names, looked at from outside; see `op_emu3.loading`.

    Raises MissingError where one is not here or not whole, UsageError where one is no Emu3.
    """
    device = files.choose_device(device)
    kind = files.choose_dtype(dtype, device)
    found = loading.sources(model)
    painter = found.get("generate") or next(iter(found.values()))
    folder = Path(model or "").expanduser()
    names = dict.fromkeys(source.name for source in found.values())
    return Emu3Backend(
        info=replace(
            INFO,
            tasks={task: INFO.tasks[task] for task in TASKS if task in found},
            sizes=layout.sizes(painter.areas, painter.positions),
        ),
        # a path would tell of this machine
        model=folder.resolve().name if model and folder.is_dir() else "+".join(names),
        sources=found,
        device=device,
        dtype=kind,
    )
