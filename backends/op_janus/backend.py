"""Janus as a backend: concept tokens as input embeddings of a frozen language model.

Understanding: `BOS [concepts] <|User|>: BOI picture EOI question <|Assistant|>: answer EOS`.
Painting: `BOS <|User|>: [concepts] prompt <|Assistant|>: BOI codes` (Janus-Pro, section 3).
Editing as Janus-4o learned it: the user's turn starts with the source, `BOI picture EOI BOI codes
EOI`; the other Janus models know no such prompt and repaint a region of the codes instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import (
    DynamicCache,
    JanusForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from omnipersona_cli.backend import (
    TASKS,
    BackendInfo,
    ConceptTokens,
    Lesson,
    OnStep,
    Prepared,
    Prompt,
    Task,
    Turn,
)
from omnipersona_cli.family import experts
from omnipersona_cli.family.codes import kept_codes, over_all
from omnipersona_cli.family.speculative import WINDOW
from omnipersona_cli.family.text import (
    answered,
    cross_entropies,
    log_probabilities,
    padded,
    stream,
    with_answer,
)
from omnipersona_cli.family.tokens import (
    Piece,
    embedded,
    introduced,
    norm_limit,
    spelled,
    start_tokens,
    usual_length,
    written,
)
from op_janus import pictures
from op_janus.sampling import guided, guided_by_source, sample

USER, ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"
BOI, EOI = "<begin_of_image>", "<end_of_image>"
DROPPED = 0.1
"""Share of image lessons whose prompt is padded out, where an adapter is learned: it runs in the
unconditional branch too. Tokens alone are absent from that branch, so that such a row would teach
nothing (Janus-4o's trainer)."""
UNDETAILED = 0.5
"""Share of native edit lessons that do not show the source's codes: one of the branches of guidance
does not see them (Janus-4o's trainer)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SourcePicture:
    """A picture to be edited natively: SigLIP's features of it [n, d], and its codes [N]."""

    features: Tensor
    codes: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson with its pictures as features [n, d] or codes [N]; ``free`` [N] is what an edit
    changed, ``source`` the picture that a native edit starts from."""

    task: Task
    request: Turn
    answer: str
    features: Tensor | None
    codes: Tensor | None
    free: Tensor | None
    source: SourcePicture | None


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
        self.tokenizer = tokenizer
        self.table = cast(torch.nn.Embedding, janus.get_input_embeddings())
        self.width = self.table.embedding_dim
        self.norm_limit = norm_limit(self.table.weight)
        self.device = str(self.table.weight.device)
        self.language = janus.model.language_model
        sight: Any = janus.config.vision_config
        self.side = sight.image_size
        self.count = sight.num_image_tokens
        self.edits = info.tasks["edit"] == "native"
        self.window = 0
        """Codes that are drawn ahead while painting."""

    def faster(self) -> JanusBackend:
        """Drawing codes ahead; the weights are shared."""
        other = copy(self)
        other.info, other.window = replace(self.info, fast=""), WINDOW
        return other

    # -- learning ------------------------------------------------------------------------------

    def new_tokens(
        self, name: str, *, understand: int, generate: int, photos: Sequence[Image], seed: int
    ) -> ConceptTokens:
        """Centres of what Janus sees in the photos: SigLIP's features for understanding, the
        embeddings of their codes for painting, both at the norm of words."""
        return start_tokens(
            name,
            features=torch.cat([self._look(photo)[0] for photo in photos]),
            codes=torch.cat([self._paint_rows(self._encode(photo)) for photo in photos]),
            understand=understand,
            generate=generate,
            seed=seed,
            length=usual_length(self.table, len(self.tokenizer)),
        )

    def new_experts(self, *, seed: int) -> dict[str, Tensor]:
        """One LoRA per task, at zero effect: "lora.<task>.<linear>.<A or B>"."""
        return experts.new_experts(self.language, experts.LLAMA_LINEARS, seed=seed)

    def see(self, images: Sequence[Image]) -> Tensor:
        """The mean of SigLIP's features after the aligner, [n, d]."""
        return torch.stack([self._look(image)[0].float().mean(0) for image in images]).cpu()

    def prepare(self, lessons: Sequence[Lesson]) -> Sequence[PreparedLesson]:
        """SigLIP and the image tokenizer run here, once for each picture, and nowhere else."""
        features: dict[int, Tensor] = {}
        codes: dict[int, Tensor] = {}
        for lesson in lessons:
            looks = lesson.task == "understand" or (lesson.task == "edit" and self.edits)
            if looks and lesson.image is not None and id(lesson.image) not in features:
                features[id(lesson.image)] = self._look(lesson.image)[0]
            for image in (lesson.target, lesson.image) if lesson.task != "understand" else ():
                if image is not None and id(image) not in codes:
                    codes[id(image)] = self._encode(image)
        return [self._prepared(lesson, features, codes) for lesson in lessons]

    def _prepared(
        self, lesson: Lesson, features: Mapping[int, Tensor], codes: Mapping[int, Tensor]
    ) -> PreparedLesson:
        free, source = None, None
        if lesson.task == "edit":
            changed = codes[id(lesson.target)] != codes[id(lesson.image)]
            free = changed if bool(changed.any()) else torch.ones_like(changed)
            if self.edits:
                source = SourcePicture(
                    features=features[id(lesson.image)], codes=codes[id(lesson.image)]
                )
        return PreparedLesson(
            task=lesson.task,
            request=lesson.request,
            answer=lesson.answer,
            features=features.get(id(lesson.image)) if lesson.task == "understand" else None,
            codes=None if lesson.task == "understand" else codes[id(lesson.target)],
            free=free,
            source=source,
        )

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int
    ) -> Mapping[Task, Tensor]:
        """Mean cross-entropy of answers' tokens, and of codes (of those that an edit changed)."""
        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        draw = torch.Generator().manual_seed(seed)
        found: dict[Task, Tensor] = {}
        for task in TASKS:
            mine = [lesson for lesson in lessons if lesson.task == task]
            if mine and task == "understand":
                found["understand"] = self._answers_loss(mine, tokens)
            elif mine:
                found[task] = self._codes_loss(mine, tokens, task, draw)
        return found

    def _answers_loss(self, lessons: Sequence[PreparedLesson], tokens: ConceptTokens) -> Tensor:
        pairs = []
        for lesson in lessons:
            asked = self._question((lesson.request,), (tokens,), lesson.features)
            pairs.append(with_answer(asked, self._answer(lesson.answer), self.table))
        return self._cross_entropies(pairs, (tokens,)).mean()

    def _cross_entropies(
        self, pairs: Sequence[tuple[Tensor, Tensor]], concepts: Sequence[ConceptTokens]
    ) -> Tensor:
        """Cross-entropies [K] of the answers in pairs of rows and labels."""
        rows = padded([row for row, _ in pairs])
        states = self._run("understand", concepts, inputs_embeds=rows, use_cache=False)
        return cross_entropies(states, [labels for _, labels in pairs], self.janus.lm_head)

    def _codes_loss(
        self,
        lessons: Sequence[PreparedLesson],
        tokens: ConceptTokens,
        task: Task,
        draw: torch.Generator,
    ) -> Tensor:
        rows, starts = [], []
        for lesson in lessons:
            chance = float(torch.rand((), generator=draw))
            detailed = chance >= UNDETAILED
            prompt = self._request(lesson.request, (tokens,), task, lesson.source, detailed)
            if tokens.extra and lesson.source is None and chance < DROPPED:
                prompt = self._without(prompt)
            codes = cast(Tensor, lesson.codes)
            rows.append(torch.cat([prompt, self._paint_rows(codes[:-1])]))
            starts.append(len(prompt) - 1)  # the row of BOI foretells the first code
        states = self._run(task, (tokens,), inputs_embeds=padded(rows), use_cache=False)
        wanted, asked = [], []
        for number, (lesson, start) in enumerate(zip(lessons, starts, strict=True)):
            codes = cast(Tensor, lesson.codes)
            free = torch.ones_like(codes, dtype=torch.bool) if lesson.free is None else lesson.free
            wanted.append(codes[free])
            asked.append(states[number, start : start + len(codes)][free])
        logits = self.janus.model.generation_head(torch.cat(asked)).float()
        return F.cross_entropy(logits, torch.cat(wanted))

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
        cache = DynamicCache(config=self.janus.config.get_text_config())

        def scores_after(token: int | None) -> Tensor:
            if token is None:
                features = None if image is None else self._look(image)[0]
                rows = self._question(prompt.turns, prompt.concepts, features)
            else:
                rows = self.table(torch.tensor([token], device=self.device))
            states = self._run(
                "understand",
                prompt.concepts,
                inputs_embeds=rows[None],
                past_key_values=cache,
                use_cache=True,
            )
            scores: Tensor = self.janus.lm_head(states[0, -1])
            return scores[: len(self.tokenizer)]  # the table has rows that are no token

        end = cast(int, self.tokenizer.eos_token_id)
        ids = answered(scores_after, end=end, most=max_tokens, temperature=temperature, seed=seed)
        yield from stream(
            ids, lambda known: str(self.tokenizer.decode(known, skip_special_tokens=True)).lstrip()
        )

    @torch.no_grad()
    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability of each answer, its end included, all in one forward."""
        features = None if image is None else self._look(image)[0]
        asked = self._question(prompt.turns, prompt.concepts, features)
        ids = [self._answer(answer) for answer in answers]
        pairs = [with_answer(asked, one, self.table) for one in ids]
        return log_probabilities(self._cross_entropies(pairs, prompt.concepts), ids)

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
        """Janus paints one size; a step is a code, so that ``steps`` has no say."""
        scale = self.info.guidance if guidance is None else guidance
        with torch.no_grad():
            rows = self._request(prompt.turns[-1], prompt.concepts, "generate")
            branches = torch.stack([rows, self._without(rows)])
        painted = self._painted("generate", prompt, branches, guided(scale), seeds, on_step)
        yield from painted

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
        """Codes outside the mask stay and the others are drawn again; Janus-4o sees the source
        while it draws, and needs no mask."""
        side = round(self.count**0.5)
        free = ~kept_codes(mask, (side, side)).to(self.table.weight.device)
        scale = self.info.guidance if guidance is None else guidance
        turn, concepts = prompt.turns[-1], prompt.concepts
        known = self._encode(image)
        with torch.no_grad():
            if self.edits:
                source = SourcePicture(features=self._look(image)[0], codes=known)
                rows = self._request(turn, concepts, "edit", source)
                part = self._request(turn, concepts, "edit", source, detailed=False)
                branches = torch.stack([rows, part, self._without(rows)])
                weights = guided_by_source(scale)
            else:
                rows = self._request(turn, concepts, "edit")
                branches, weights = torch.stack([rows, self._without(rows)]), guided(scale)
        kept = None if mask is None else known
        for picture in self._painted(
            "edit", prompt, branches, weights, seeds, on_step, known=kept, free=free
        ):
            yield picture.resize(image.size, Resampling.BICUBIC)

    def _painted(
        self,
        task: Task,
        prompt: Prompt,
        branches: Tensor,
        weights: Sequence[float],
        seeds: Sequence[int],
        on_step: OnStep | None,
        *,
        known: Tensor | None = None,
        free: Tensor | None = None,
    ) -> Iterator[Image]:
        """One picture after the other.

        Four in a batch would take 0.4 of the time (512 x 8, 576 codes, one thread). But a row of a
        batch is not bit-equal to the row alone: states differ by 1e-6 in float32, by far more in
        bfloat16. Where that changes one code, all that follow are others, and a seed would mean
        another picture alone than among others.
        """
        for number, seed in enumerate(seeds):
            codes = sample(
                self.janus,
                partial(self._run, task, prompt.concepts),
                branches,
                weights=weights,
                generator=torch.Generator().manual_seed(seed),
                known=known,
                free=free,
                window=self.window,
                on_step=over_all(on_step, number, len(seeds)),
            )
            yield pictures.to_image(pictures.decode(self.janus, codes))

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to warn of: it was trained on photographs and on any words."""
        return ()

    # -- rows ----------------------------------------------------------------------------------

    def _run(self, task: Task, concepts: Sequence[ConceptTokens], **inputs: Any) -> Tensor:
        """Last hidden states [B, L, d], under the concepts' experts of this task."""
        with experts.using(
            self.language, experts.LLAMA_LINEARS, [tokens.extra for tokens in concepts], task
        ):
            states: Tensor = self.language(**inputs).last_hidden_state
        return states

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _rows(self, pieces: Sequence[Piece], concepts: Sequence[ConceptTokens]) -> Tensor:
        script = spelled(pieces, self._ids)
        return embedded(script, {concept.name: concept for concept in concepts}, self.table)

    def _question(
        self, turns: Sequence[Turn], concepts: Sequence[ConceptTokens], features: Tensor | None
    ) -> Tensor:
        names = [concept.name for concept in concepts]
        shown = [*introduced(names, "understand"), "\n\n"] if names else []
        asked: list[Piece] = []
        for number, turn in enumerate(turns):
            asked += ["\n"] if number else []
            asked += written(turn, names)
        before: list[Piece] = [str(self.tokenizer.bos_token), *shown, USER]
        after: list[Piece] = [*asked, ASSISTANT]
        if features is None:
            return self._rows([*before, *after], concepts)
        first = self._rows([*before, BOI], concepts)
        return torch.cat([first, features.to(first), self._rows([f"{EOI}\n", *after], concepts)])

    def _request(
        self,
        turn: Turn,
        concepts: Sequence[ConceptTokens],
        task: Task,
        source: SourcePicture | None = None,
        detailed: bool = True,
    ) -> Tensor:
        """A prompt [P, d] up to BOI. ``detailed`` shows a source's codes, else padding stands in
        their places."""
        names = [concept.name for concept in concepts]
        shown = [*introduced(names, task), " "] if names else []
        start: list[Piece] = [str(self.tokenizer.bos_token), USER]
        asked: list[Piece] = [*shown, *written(turn, names), ASSISTANT, BOI]
        if source is None:
            return self._rows([*start, *asked], concepts)
        first = self._rows([*start, BOI], concepts)
        codes = self._paint_rows(source.codes) if detailed else self._padding(len(source.codes))
        parts = [first, source.features.to(first), self._rows([EOI, BOI], concepts), codes]
        return torch.cat([*parts, self._rows([EOI, *asked], concepts)])

    def _without(self, rows: Tensor) -> Tensor:
        """A prompt of the same length that says nothing: all but BOS and BOI are padding."""
        return torch.cat([rows[:1], self._padding(len(rows) - 2), rows[-1:]])

    def _padding(self, count: int) -> Tensor:
        pad = torch.tensor(self.tokenizer.pad_token_id, device=self.table.weight.device)
        row: Tensor = self.table(pad)
        return row.expand(count, -1)

    def _answer(self, text: str) -> Tensor:
        ids = [*self._ids(f" {text}"), int(cast(int, self.tokenizer.eos_token_id))]
        return torch.tensor(ids, device=self.table.weight.device)

    def _look(self, image: Image) -> Tensor:
        return pictures.look(self.janus, pictures.to_tensor(image, self.side))

    def _encode(self, image: Image) -> Tensor:
        return pictures.encode(self.janus, pictures.to_tensor(image, self.side))[0]

    def _paint_rows(self, codes: Tensor) -> Tensor:
        """Codes [n] as the language model's input rows [n, d]."""
        rows: Tensor = self.janus.prepare_embeddings_for_image_generation(codes[None])[0]
        return rows.to(self.table.weight.dtype)
