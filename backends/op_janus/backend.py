"""Janus as a backend: concept tokens as input embeddings of a frozen language model.

Understanding: `BOS [concepts] <|User|>: BOI picture EOI question <|Assistant|>: answer EOS`.
Painting: `BOS <|User|>: [concepts] prompt <|Assistant|>: BOI codes` (Janus-Pro, section 3).
Editing as Janus-4o learned it: the user's turn starts with the source, `BOI picture EOI BOI codes
EOI`; the other Janus models know no such prompt and repaint a region of the codes instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from omnipersona_cli.errors import TaskError, UsageError
from op_autoregressive import experts
from op_autoregressive.region import kept_codes
from op_autoregressive.slots import (
    Piece,
    embedded,
    fresh_tokens,
    introduced,
    norm_limit,
    spelled,
    usual_length,
    written,
)
from op_janus import pictures
from op_janus.sampling import guided, guided_by_source, sample

USER, ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"
LINEARS = r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""Linears of the language model alone: no SigLIP, no image tokenizer, no head."""
BOI, EOI = "<begin_of_image>", "<end_of_image>"
DROPPED = 0.1
"""Share of image lessons whose prompt is padded out, where an adapter is learned: it runs in the
unconditional branch too. Tokens alone are absent from that branch, so that such a row would teach
nothing (Janus-4o's trainer)."""
UNDETAILED = 0.5
"""Share of native edit lessons that do not show the source's codes: one of the branches of guidance
does not see them (Janus-4o's trainer)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """A picture to be edited natively: what SigLIP sees [n, d], and its codes [N]."""

    seen: Tensor
    codes: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson with its pictures as features [n, d] or codes [N]; ``free`` [N] is what an edit
    changed, ``source`` the picture that a native edit starts from."""

    task: Task
    request: Turn
    answer: str
    seen: Tensor | None
    codes: Tensor | None
    free: Tensor | None
    source: Source | None


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
        self.norm_limit = norm_limit(self.table)
        self.language = janus.model.language_model
        sight: Any = janus.config.vision_config
        self.side = sight.image_size
        self.count = sight.num_image_tokens
        self.edits = info.tasks["edit"] == "native"

    # -- learning ------------------------------------------------------------------------------

    def new_tokens(
        self, name: str, *, understand: int, generate: int, photos: Sequence[Image], seed: int
    ) -> ConceptTokens:
        """Centres of what Janus sees in the photos: SigLIP's features for understanding, the
        embeddings of their codes for painting, both at the norm of words."""
        return fresh_tokens(
            name,
            seen=torch.cat([self._look(photo)[0] for photo in photos]),
            drawn=torch.cat([self._paint_rows(self._encode(photo)) for photo in photos]),
            understand=understand,
            generate=generate,
            seed=seed,
            length=usual_length(self.table, len(self.tokenizer)),
        )

    def new_experts(self, *, seed: int) -> dict[str, Tensor]:
        """One LoRA per task, at zero effect: "lora.<task>.<linear>.<A or B>"."""
        return experts.new_experts(self.language, LINEARS, seed=seed)

    def prepare(self, lessons: Sequence[Lesson]) -> Sequence[PreparedLesson]:
        """SigLIP and the image tokenizer run here, once for each picture, and nowhere else."""
        seen: dict[int, Tensor] = {}
        codes: dict[int, Tensor] = {}
        for lesson in lessons:
            looks = lesson.task == "understand" or (lesson.task == "edit" and self.edits)
            if looks and lesson.image is not None and id(lesson.image) not in seen:
                seen[id(lesson.image)] = self._look(lesson.image)[0]
            for image in (lesson.target, lesson.image) if lesson.task != "understand" else ():
                if image is not None and id(image) not in codes:
                    codes[id(image)] = self._encode(image)
        return [self._prepared(lesson, seen, codes) for lesson in lessons]

    def _prepared(
        self, lesson: Lesson, seen: Mapping[int, Tensor], codes: Mapping[int, Tensor]
    ) -> PreparedLesson:
        free, source = None, None
        if lesson.task == "edit":
            changed = codes[id(lesson.target)] != codes[id(lesson.image)]
            free = changed if bool(changed.any()) else torch.ones_like(changed)
            if self.edits:
                source = Source(seen=seen[id(lesson.image)], codes=codes[id(lesson.image)])
        return PreparedLesson(
            task=lesson.task,
            request=lesson.request,
            answer=lesson.answer,
            seen=seen.get(id(lesson.image)) if lesson.task == "understand" else None,
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
                found["understand"] = self._said(mine, tokens)
            elif mine:
                found[task] = self._drawn(mine, tokens, task, draw)
        return found

    def _said(self, lessons: Sequence[PreparedLesson], tokens: ConceptTokens) -> Tensor:
        rows, labels = [], []
        for lesson in lessons:
            asked = self._question((lesson.request,), (tokens,), lesson.seen)
            said = self._answer(lesson.answer)
            rows.append(torch.cat([asked, self.table(said[:-1])]))
            labels.append(F.pad(said, (len(asked) - 1, 0), value=-100))
        return self._ce(rows, labels, "understand", (tokens,)).mean()

    def _ce(
        self,
        rows: Sequence[Tensor],
        labels: Sequence[Tensor],
        task: Task,
        concepts: Sequence[ConceptTokens],
    ) -> Tensor:
        """Cross-entropies [K] of all labels >= 0; padding stands to the right, where nothing that
        is asked for can see it. The head runs on labelled rows alone."""
        states = self._run(task, concepts, inputs_embeds=padded(rows), use_cache=False)
        wanted = torch.nn.utils.rnn.pad_sequence(list(labels), batch_first=True, padding_value=-100)
        at = wanted >= 0
        logits = self.janus.lm_head(states[at]).float()
        return F.cross_entropy(logits, wanted[at], reduction="none")

    def _drawn(
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
        generator = torch.Generator().manual_seed(seed)
        cache = DynamicCache(config=self.janus.config.get_text_config())
        seen = None if image is None else self._look(image)[0]
        said: list[int] = []
        shown = ""
        with torch.no_grad():
            rows = self._question(prompt.turns, prompt.concepts, seen)[None]
        for _ in range(max_tokens):
            with torch.no_grad():
                states = self._run(
                    "understand",
                    prompt.concepts,
                    inputs_embeds=rows,
                    past_key_values=cache,
                    use_cache=True,
                )
                scores = self.janus.lm_head(states[0, -1]).float().cpu()
                scores[len(self.tokenizer) :] = -torch.inf  # rows of the table that are no token
            if temperature > 0:
                chances = (scores / temperature).softmax(-1)
                token = int(torch.multinomial(chances, 1, generator=generator))
            else:
                token = int(scores.argmax())
            if token == self.tokenizer.eos_token_id:
                return
            said.append(token)
            text = str(self.tokenizer.decode(said, skip_special_tokens=True)).lstrip()
            if text.startswith(shown) and text != shown and not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text
            rows = self.table(torch.tensor([[token]], device=self.table.weight.device))

    @torch.no_grad()
    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability of each answer, its end included, all in one forward."""
        seen = None if image is None else self._look(image)[0]
        asked = self._question(prompt.turns, prompt.concepts, seen)
        said = [self._answer(answer) for answer in answers]
        rows = [torch.cat([asked, self.table(ids[:-1])]) for ids in said]
        labels = [F.pad(ids, (len(asked) - 1, 0), value=-100) for ids in said]
        losses = self._ce(rows, labels, "understand", prompt.concepts)
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
        """Janus paints one size; a step is a code, so that ``steps`` has no say."""
        if size is not None and size not in self.info.sizes:
            width, height = self.info.sizes[0]
            raise TaskError(
                f"janus cannot paint {size[0]}x{size[1]} pixels",
                hint=f"leave out --size: it is always {width}x{height}",
            )
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
        if mask is None and not self.edits:
            raise TaskError(
                "janus edits by repainting a region, and none is known",
                hint="--mask MASK.png or --box x,y,width,height",
            )
        side = round(self.count**0.5)
        free = ~kept_codes(mask, (side, side)).to(self.table.weight.device)
        if not bool(free.any()):
            raise UsageError(
                "the mask is empty: nothing may change", hint="paint white what may change"
            )
        scale = self.info.guidance if guidance is None else guidance
        turn, concepts = prompt.turns[-1], prompt.concepts
        known = self._encode(image)
        with torch.no_grad():
            if self.edits:
                source = Source(seen=self._look(image)[0], codes=known)
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
                on_step=_later(on_step, number, len(seeds)),
            )
            yield pictures.to_image(pictures.decode(self.janus, codes))

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to warn of: it was trained on photographs and on any words."""
        return ()

    # -- rows ----------------------------------------------------------------------------------

    def _run(self, task: Task, concepts: Sequence[ConceptTokens], **inputs: Any) -> Tensor:
        """Last hidden states [B, L, d], under the concepts' experts of this task."""
        with experts.using(self.language, LINEARS, [it.extra for it in concepts], task):
            states: Tensor = self.language(**inputs).last_hidden_state
        return states

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _rows(self, pieces: Sequence[Piece], concepts: Sequence[ConceptTokens]) -> Tensor:
        script = spelled(pieces, self._ids)
        return embedded(script, {concept.name: concept for concept in concepts}, self.table)

    def _question(
        self, turns: Sequence[Turn], concepts: Sequence[ConceptTokens], seen: Tensor | None
    ) -> Tensor:
        names = [concept.name for concept in concepts]
        said = [*introduced(names, "understand"), "\n\n"] if names else []
        asked: list[Piece] = []
        for number, turn in enumerate(turns):
            asked += ["\n"] if number else []
            asked += written(turn, names)
        before: list[Piece] = [str(self.tokenizer.bos_token), *said, USER]
        after: list[Piece] = [*asked, ASSISTANT]
        if seen is None:
            return self._rows([*before, *after], concepts)
        first = self._rows([*before, BOI], concepts)
        return torch.cat([first, seen.to(first), self._rows([f"{EOI}\n", *after], concepts)])

    def _request(
        self,
        turn: Turn,
        concepts: Sequence[ConceptTokens],
        task: Task,
        source: Source | None = None,
        detailed: bool = True,
    ) -> Tensor:
        """A prompt [P, d] up to BOI. ``detailed`` shows a source's codes, else padding stands in
        their places."""
        names = [concept.name for concept in concepts]
        said = [*introduced(names, task), " "] if names else []
        start: list[Piece] = [str(self.tokenizer.bos_token), USER]
        asked: list[Piece] = [*said, *written(turn, names), ASSISTANT, BOI]
        if source is None:
            return self._rows([*start, *asked], concepts)
        first = self._rows([*start, BOI], concepts)
        codes = self._paint_rows(source.codes) if detailed else self._padding(len(source.codes))
        parts = [first, source.seen.to(first), self._rows([EOI, BOI], concepts), codes]
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


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Rows [L_i, d] as one batch [n, L, d], padded on the right."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)


def _later(on_step: OnStep | None, number: int, pictures_in_all: int) -> OnStep | None:
    """Progress over all pictures, from that of one."""
    if on_step is None:
        return None
    return lambda done, steps: on_step(number * steps + done, pictures_in_all * steps)
