"""Janus as a backend: concept tokens as input embeddings of a frozen language model.

Understanding: `BOS [concepts] <|User|>: BOI picture EOI question <|Assistant|>: answer EOS`.
Painting: `BOS <|User|>: [concepts] prompt <|Assistant|>: BOI codes` (Janus-Pro, section 3).
Editing as Janus-4o learned it: the user's turn starts with the source, `BOI picture EOI BOI codes
EOI`; the other Janus models know no such prompt and repaint a region of the codes instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL.Image import Image, Resampling
from torch import Tensor
from transformers import (
    JanusForConditionalGeneration,
    PreTrainedTokenizerFast,
)

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
    Turn,
    counted,
)
from omnipersona_cli.family import experts
from omnipersona_cli.family.codes import (
    filled_up,
    kept_codes,
    over_all,
    seen_through,
    told_over_all,
    veiled,
)
from omnipersona_cli.family.deep import joined_rows, level, run_layers
from omnipersona_cli.family.pictures import Encoded
from omnipersona_cli.family.pieces import in_pieces, most_positions, settled
from omnipersona_cli.family.prefix import SharedPrefix
from omnipersona_cli.family.speculative import WINDOW
from omnipersona_cli.family.text import (
    answered,
    cross_entropies,
    log_probabilities,
    mean_losses,
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
from op_janus.sampling import OnCodes, guided, guided_by_source, sample

USER, ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"
BOI, EOI = "<begin_of_image>", "<end_of_image>"
PROMPT = 100
"""Positions of a prompt with its concept, for cutting batches into pieces."""
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
        text = janus.config.get_text_config()
        self.prefix = SharedPrefix(text)
        self.most = most_positions(text, self.device, size=self.table.weight.itemsize)
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
            codes.append(self._paint_rows(self._encode(photo)))
        return start_tokens(
            name,
            features=torch.cat(features),
            codes=torch.cat(codes),
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
        return torch.stack([self._look(image).float().mean(0) for image in images]).cpu()

    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[PreparedLesson]:
        """SigLIP and the image tokenizer run here, once for each picture, and nowhere else."""
        shown: dict[int, Image] = {}
        painted: dict[int, Image] = {}
        for lesson in lessons:
            looks = lesson.task == "understand" or (lesson.task == "edit" and self.edits)
            if looks and lesson.image is not None:
                shown[id(lesson.image)] = lesson.image
            for image in (lesson.target, lesson.image) if lesson.task != "understand" else ():
                if image is not None:
                    painted[id(image)] = image
        features: dict[int, Tensor] = {}
        codes: dict[int, Tensor] = {}
        for key in counted([*shown, *(key for key in painted if key not in shown)], on_step):
            if key in shown:
                features[key] = self._look(shown[key])
            if key in painted:
                codes[key] = self._encode(painted[key])
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
                found[task] = self._codes_loss(mine, tokens, task, draw, at_once)
        return found

    def _answers_loss(
        self, lessons: Sequence[PreparedLesson], tokens: ConceptTokens, at_once: int
    ) -> Tensor:
        answers = [self._answer(lesson.answer) for lesson in lessons]
        count = sum(map(len, answers))
        lengths = [PROMPT + (0 if one.features is None else len(one.features)) for one in lessons]
        both = list(zip(lessons, answers, strict=True))
        parts = []
        for piece in in_pieces(both, lengths, most=self.most, at_once=at_once):
            pairs = []
            for lesson, answer in piece:
                asked = joined_rows(self._question((lesson.request,), (tokens,), lesson.features))
                pairs.append(with_answer(asked, answer, self.table))
            with self._experts("understand", (tokens,)):
                states = self._states(padded([row for row, _ in pairs]))
                labels = [labels for _, labels in pairs]
                loss = cross_entropies(states, labels, self.janus.lm_head).sum() / count
                parts.append(settled(loss, tokens.parameters()))
        return torch.stack(parts).sum()

    @torch.no_grad()
    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """Lessons about one picture go on from one reading of it."""
        of_picture: dict[int, list[int]] = {}
        for number, lesson in enumerate(cast("Sequence[PreparedLesson]", lessons)):
            of_picture.setdefault(id(lesson.features), []).append(number)
        found = torch.zeros(len(lessons), device=tokens.id.device)
        for numbers in of_picture.values():
            mine = [cast(PreparedLesson, lessons[number]) for number in numbers]
            asked = [self._question((one.request,), (tokens,), one.features) for one in mine]
            answers = [self._answer(one.answer) for one in mine]
            losses = self._answered(asked[0][0], [rest for _, rest in asked], answers, (tokens,))
            found[numbers] = mean_losses(losses, answers).to(found)
        return found

    def _answered(
        self,
        shared: Tensor,
        asked: Sequence[Tensor],
        answers: Sequence[Tensor],
        concepts: Sequence[ConceptTokens],
    ) -> Tensor:
        """Cross-entropies [K] of answers' tokens, each after ``shared`` [P, d] and its own rows of
        ``asked``."""
        run = partial(self._run, "understand", concepts)
        cache = self.prefix.read(shared, run, count=len(asked), concepts=concepts)
        pairs = [
            with_answer(rows, ids, self.table) for rows, ids in zip(asked, answers, strict=True)
        ]
        rows = padded([row for row, _ in pairs])
        states = run(rows, past_key_values=cache, use_cache=True)
        return cross_entropies(states, [labels for _, labels in pairs], self.janus.lm_head)

    def _codes_loss(
        self,
        lessons: Sequence[PreparedLesson],
        tokens: ConceptTokens,
        task: Task,
        draw: torch.Generator,
        at_once: int,
    ) -> Tensor:
        free = [
            torch.ones_like(cast(Tensor, one.codes), dtype=torch.bool)
            if one.free is None
            else one.free
            for one in lessons
        ]
        count = sum(int(places.sum()) for places in free)
        seen = 0 if lessons[0].source is None else 2 * self.count
        lengths = [PROMPT + seen + self.count] * len(lessons)
        both = list(zip(lessons, free, strict=True))
        parts = []
        for piece in in_pieces(both, lengths, most=self.most, at_once=at_once):
            prompts = [self._asked_to_paint(lesson, tokens, task, draw) for lesson, _ in piece]
            codes = [cast(Tensor, lesson.codes) for lesson, _ in piece]
            rows = [
                joined_rows([prompt, self._paint_rows(one[:-1])])
                for prompt, one in zip(prompts, codes, strict=True)
            ]
            with self._experts(task, (tokens,)):
                states = self._states(padded(level(rows)))
                asked = [
                    # the row of BOI foretells the first code
                    states[number, len(prompts[number]) - 1 :][: self.count][places]
                    for number, (_, places) in enumerate(piece)
                ]
                logits = self.janus.model.generation_head(torch.cat(asked)).float()
                wanted = torch.cat(
                    [one[places] for one, (_, places) in zip(codes, piece, strict=True)]
                )
                loss = F.cross_entropy(logits, wanted, reduction="sum") / count
                parts.append(settled(loss, tokens.parameters()))
        return torch.stack(parts).sum()

    def _asked_to_paint(
        self, lesson: PreparedLesson, tokens: ConceptTokens, task: Task, draw: torch.Generator
    ) -> Tensor:
        """The prompt [P, d] of a lesson, a part of it dropped as the authors' trainer does."""
        chance = float(torch.rand((), generator=draw))
        detailed = chance >= UNDETAILED
        prompt = self._request(lesson.request, (tokens,), task, lesson.source, detailed)
        bare = tokens.has_experts and lesson.source is None and chance < DROPPED
        return self._without(prompt) if bare else prompt

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
        run = partial(self._run, "understand", prompt.concepts)
        with torch.no_grad():
            features = None if image is None else self._look(image)
            shared, asked = self._question(prompt.turns, prompt.concepts, features)
            cache = self.prefix.read(shared, run, concepts=prompt.concepts)

        def scores_after(token: int | None) -> Tensor:
            rows = asked
            if token is not None:
                rows = self.table(torch.tensor([token], device=self.device))
            states = run(rows[None], past_key_values=cache, use_cache=True)
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
        """Log-probability of each answer, its end included; the picture is read once for all, and
        for the next question about it."""
        features = None if image is None else self._look(image)
        shared, asked = self._question(prompt.turns, prompt.concepts, features)
        ids = [self._answer(answer) for answer in answers]
        losses = self._answered(shared, [asked] * len(ids), ids, prompt.concepts)
        return log_probabilities(losses, ids)

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
            rows = self._request(prompt.turns[-1], prompt.concepts, "generate")
            branches = torch.stack(level([rows, self._without(rows)]))
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
        side = round(self.count**0.5)
        free = ~kept_codes(mask, (side, side)).to(self.table.weight.device)
        scale = self.info.guidance if guidance is None else guidance
        turn, concepts = prompt.turns[-1], prompt.concepts
        known = self._encode(image)
        with torch.no_grad():
            if self.edits:
                source = SourcePicture(features=self._look(image), codes=known)
                rows = self._request(turn, concepts, "edit", source)
                part = self._request(turn, concepts, "edit", source, detailed=False)
                branches = torch.stack(level([rows, part, self._without(rows)]))
                weights = guided_by_source(scale)
            else:
                rows = self._request(turn, concepts, "edit")
                branches = torch.stack(level([rows, self._without(rows)]))
                weights = guided(scale)
        kept = None if mask is None else known

        def sized(picture: Image) -> Image:
            return picture.resize(image.size, Resampling.BICUBIC)

        for picture in self._painted(
            "edit",
            prompt,
            branches,
            weights,
            seeds,
            on_step,
            seen_through(on_estimate, sized),
            known=kept,
            free=free,
        ):
            yield sized(picture)

    def _painted(
        self,
        task: Task,
        prompt: Prompt,
        branches: Tensor,
        weights: Sequence[float],
        seeds: Sequence[int],
        on_step: OnStep | None,
        on_estimate: OnEstimate | None,
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
                on_codes=self._shown(told_over_all(on_estimate, number, len(seeds)), known),
            )
            yield pictures.to_image(pictures.decode(self.janus, codes))

    def _shown(self, on_estimate: OnEstimate | None, known: Tensor | None) -> OnCodes | None:
        """Codes on the way as a picture: the rest of it is that of the source, or nothing yet."""
        if on_estimate is None:
            return None
        side = round(self.count**0.5)

        def picture(drawn: Sequence[Tensor]) -> Image:
            rest = drawn[-1].repeat(self.count) if known is None else known
            codes = filled_up(torch.stack(list(drawn)), rest)
            image = pictures.to_image(pictures.decode(self.janus, codes))
            return image if known is not None else veiled(image, (side, side), len(drawn))

        def told(done: int, total: int, codes: Sequence[Tensor]) -> None:
            on_estimate(done, total, lambda: picture(codes))

        return told

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Nothing to warn of: it was trained on photographs and on any words."""
        return ()

    # -- rows ----------------------------------------------------------------------------------

    def _run(
        self, task: Task, concepts: Sequence[ConceptTokens], rows: Tensor, **more: Any
    ) -> Tensor:
        """Last hidden states [B, L, d], under the concepts' experts of this task."""
        with self._experts(task, concepts):
            return run_layers(self.language, rows, **more)

    def _states(self, rows: Tensor) -> Tensor:
        """Last hidden states [B, L, d] of whole sequences, under the experts that are on."""
        return run_layers(self.language, rows, use_cache=False)

    def _experts(
        self, task: Task, concepts: Sequence[ConceptTokens]
    ) -> AbstractContextManager[None]:
        extras = [tokens.extra for tokens in concepts]
        return experts.using(self.language, experts.LLAMA_LINEARS, extras, task)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _rows(self, pieces: Sequence[Piece], concepts: Sequence[ConceptTokens]) -> Tensor:
        script = spelled(pieces, self._ids)
        return embedded(script, {concept.name: concept for concept in concepts}, self.table)

    def _question(
        self, turns: Sequence[Turn], concepts: Sequence[ConceptTokens], features: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Rows of a question up to where the answer begins, in two: those [P, d] that every
        question about the picture shares, none without a picture, and the others [L, d]."""
        names = [concept.name for concept in concepts]
        shown = [*introduced(names, "understand"), "\n\n"] if names else []
        asked: list[Piece] = []
        for number, turn in enumerate(turns):
            asked += ["\n"] if number else []
            asked += written(turn, names)
        before: list[Piece] = [str(self.tokenizer.bos_token), *shown, USER]
        after: list[Piece] = [*asked, ASSISTANT]
        if features is None:
            whole = self._rows([*before, *after], concepts)
            return whole[:0], whole
        first = self._rows([*before, BOI], concepts)
        shared = joined_rows([first, features.to(first)])
        return shared, self._rows([f"{EOI}\n", *after], concepts)

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
        return joined_rows([*parts, self._rows([EOI, *asked], concepts)])

    def _without(self, rows: Tensor) -> Tensor:
        """A prompt of the same length that says nothing: all but BOS and BOI are padding."""
        ends = rows[:, : self.width]
        return torch.cat([ends[:1], self._padding(len(rows) - 2), ends[-1:]])

    def _padding(self, count: int) -> Tensor:
        pad = torch.tensor(self.tokenizer.pad_token_id, device=self.table.weight.device)
        row: Tensor = self.table(pad)
        return row.expand(count, -1)

    def _answer(self, text: str) -> Tensor:
        ids = [*self._ids(f" {text}"), int(cast(int, self.tokenizer.eos_token_id))]
        return torch.tensor(ids, device=self.table.weight.device)

    def _seen(self, image: Image) -> Tensor:
        return pictures.look(self.janus, pictures.to_tensor(image, self.side))[0]

    def _codes(self, image: Image) -> Tensor:
        return pictures.encode(self.janus, pictures.to_tensor(image, self.side))[0]

    def _paint_rows(self, codes: Tensor) -> Tensor:
        """Codes [n] as the language model's input rows [n, d]."""
        rows: Tensor = self.janus.prepare_embeddings_for_image_generation(codes[None])[0]
        return rows.to(self.table.weight.dtype)
