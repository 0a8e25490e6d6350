"""Janus as a backend: concept tokens as input embeddings of a frozen language model.

Understanding: `BOS [concepts] <|User|>: BOI picture EOI question <|Assistant|>: answer EOS`.
Painting: `BOS <|User|>: [concepts] prompt <|Assistant|>: BOI codes` (Janus-Pro, section 3).
Editing as Janus-4o learned it: the user's turn starts with the source, `BOI picture EOI BOI codes
EOI`; the other Janus models know no such prompt and repaint a region of the codes instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from omnipersona_cli.backend import (
    TASKS,
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
from omnipersona_cli.family.codes import changed_codes, kept_codes, paint_codes
from omnipersona_cli.family.deep import level, run_layers
from omnipersona_cli.family.language import CausalLM, PreparedLesson, Question
from omnipersona_cli.family.pictures import Encoded, once
from omnipersona_cli.family.pieces import most_positions
from omnipersona_cli.family.speculative import WINDOW
from omnipersona_cli.family.tokens import norm_limit, start_tokens, usual_length
from op_janus import pictures, prompts
from op_janus.lessons import codes_loss
from op_janus.prompts import PROMPT, SourcePicture
from op_janus.sampling import guided, guided_by_source, sample


class JanusBackend:
    """One opened Janus."""

    def __init__(
        self,
        *,
        info: BackendInfo,
        model: str,
        fingerprint: str,
        janus: JanusForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
    ) -> None:
        self.info, self.model, self.fingerprint = info, model, fingerprint
        self.janus = cast("JanusForConditionalGeneration", janus.requires_grad_(False).train(False))
        table = cast(torch.nn.Embedding, janus.get_input_embeddings())
        self.llm = CausalLM(
            janus.model.language_model,
            table,
            janus.lm_head,
            tokenizer,
            end=cast(int, tokenizer.eos_token_id),
            vocabulary=len(tokenizer),  # the table has rows that are no token
        )
        self.width = table.embedding_dim
        self.norm_limit = norm_limit(table.weight)
        self.device = str(table.weight.device)
        sight: Any = janus.config.vision_config
        self.side = sight.image_size
        self.count = sight.num_image_tokens
        self.grid = (round(self.count**0.5), round(self.count**0.5))
        self.edits = info.tasks["edit"] == "native"
        self.window = 0
        """Codes that are drawn ahead while painting."""
        text = janus.config.get_text_config()
        self.most = most_positions(text, self.device, size=table.weight.itemsize)
        self._look = Encoded(self._seen)
        self._encode = Encoded(self._codes)

    def faster(self) -> JanusBackend:
        """Drawing codes ahead; the weights are shared."""
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
        """Centres of what Janus sees in the photos: SigLIP's features for understanding, the
        embeddings of their codes for painting, both at the norm of words."""
        features, codes = [], []
        for photo in counted(photos, on_step):
            features.append(self._look(photo))
            codes.append(pictures.code_rows(self.janus, self._encode(photo)))
        return start_tokens(
            name,
            features=torch.cat(features),
            codes=torch.cat(codes),
            understand=understand,
            generate=generate,
            seed=seed,
            length=usual_length(self.llm.table, len(self.llm.tokenizer)),
        )

    def new_experts(self, *, seed: int) -> dict[str, Tensor]:
        """One LoRA per task, at zero effect: "lora.<task>.<linear>.<A or B>"."""
        return self.llm.new_experts(seed=seed)

    def see(self, images: Sequence[Image]) -> Tensor:
        """The mean of SigLIP's features after the aligner, [n, d]."""
        return torch.stack([self._look(image).float().mean(0) for image in images]).cpu()

    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[PreparedLesson]:
        """SigLIP and the image tokenizer run here, once for each picture, and nowhere else."""
        features, codes = once(self._look), once(self._encode)
        return [self._prepared(lesson, features, codes) for lesson in counted(lessons, on_step)]

    def _prepared(
        self, lesson: Lesson, features: Callable[[Image], Tensor], codes: Callable[[Image], Tensor]
    ) -> PreparedLesson:
        picture = target = free = source = None
        looks = lesson.task == "understand" or (lesson.task == "edit" and self.edits)
        if looks and lesson.image is not None:
            picture = features(lesson.image)
        if lesson.target is not None:
            target = codes(lesson.target)
            free = torch.ones_like(target, dtype=torch.bool)
        if lesson.task == "edit" and lesson.image is not None and target is not None:
            source = codes(lesson.image)
            free = changed_codes(target, source)
        return PreparedLesson(
            task=lesson.task,
            request=lesson.request,
            answer=lesson.answer,
            picture=picture,
            codes=target,
            free=free,
            source=source if self.edits else None,
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
                found["understand"] = self._answers_loss(mine, tokens, at_once)
            elif mine:
                found[task] = codes_loss(
                    self.janus, self.llm, mine, tokens, task, draw, most=self.most, at_once=at_once
                )
        return found

    def _answers_loss(
        self, lessons: Sequence[PreparedLesson], tokens: ConceptTokens, at_once: int
    ) -> Tensor:
        lengths = [PROMPT + (0 if one.picture is None else len(one.picture)) for one in lessons]
        return self.llm.answers_loss(
            lessons, tokens, self._ask, lengths=lengths, most=self.most, at_once=at_once
        )

    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Lessons about one picture go on from one reading of it."""
        mine = cast("Sequence[PreparedLesson]", lessons)  # they came out of `prepare`
        return self.llm.answer_losses(mine, tokens, self._ask)

    def _ask(self, lesson: PreparedLesson, tokens: ConceptTokens) -> Question:
        return prompts.question(self.llm, (lesson.request,), (tokens,), lesson.picture)

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
        yield from self.llm.say(
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
        return self.llm.score(self._question(prompt, image), prompt.concepts, answers)

    @torch.no_grad()
    def _question(self, prompt: Prompt, image: Image | None) -> Question:
        features = None if image is None else self._look(image)
        return prompts.question(self.llm, prompt.turns, prompt.concepts, features)

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
        """Janus paints one size; a step is a code, so that ``steps`` has no say."""
        scale = self.info.guidance if guidance is None else guidance
        with torch.no_grad():
            rows = prompts.request(self.llm, prompt.turns[-1], prompt.concepts, "generate")
            branches = [rows, prompts.without(self.llm, rows)]
        yield from self._painted(
            "generate", prompt, branches, guided(scale), seeds, on_step, on_estimate
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
        """Codes outside the mask stay and the others are drawn again; Janus-4o sees the source
        while it draws, and needs no mask."""
        free = ~kept_codes(mask, self.grid).to(self.llm.device)
        scale = self.info.guidance if guidance is None else guidance
        known = self._encode(image)
        ask = partial(prompts.request, self.llm, prompt.turns[-1], prompt.concepts, "edit")
        with torch.no_grad():
            if self.edits:
                codes = pictures.code_rows(self.janus, known)
                source = SourcePicture(features=self._look(image), codes=codes)
                branches = [ask(source), ask(source, detailed=False)]
                weights = guided_by_source(scale)
            else:
                branches, weights = [ask()], guided(scale)
            branches.append(prompts.without(self.llm, branches[0]))
        yield from self._painted(
            "edit",
            prompt,
            branches,
            weights,
            seeds,
            on_step,
            on_estimate,
            known=None if mask is None else known,
            free=free,
            size=image.size,
        )

    def _painted(
        self,
        task: Task,
        prompt: Prompt,
        branches: Sequence[Tensor],
        weights: Sequence[float],
        seeds: Sequence[int],
        on_step: OnStep | None,
        on_estimate: OnEstimate | None,
        *,
        known: Tensor | None = None,
        free: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Iterator[Image]:
        rows = torch.stack(level(branches))

        def drawn(**how: Any) -> Tensor:
            with self.llm.using(task, prompt.concepts):  # once, and not at every code
                return sample(
                    self.janus,
                    partial(run_layers, self.llm.decoder),
                    rows,
                    weights=weights,
                    known=known,
                    free=free,
                    window=self.window,
                    **how,
                )

        def decode(codes: Tensor) -> Image:
            return pictures.to_image(pictures.decode(self.janus, codes.to(self.llm.device)))

        yield from paint_codes(
            drawn,
            decode,
            self.grid,
            seeds=seeds,
            known=known,
            size=size,
            on_step=on_step,
            on_estimate=on_estimate,
        )

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to warn of: it was trained on photographs and on any words."""
        return ()

    # -- frozen encoders -----------------------------------------------------------------------

    def _seen(self, image: Image) -> Tensor:
        return pictures.look(self.janus, pictures.to_tensor(image, self.side))[0]

    def _codes(self, image: Image) -> Tensor:
        return pictures.encode(self.janus, pictures.to_tensor(image, self.side))[0]
