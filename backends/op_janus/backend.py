"""Janus as a backend: concept tokens as input embeddings of a frozen language model.

Understanding: `BOS [concepts] <|User|>: BOI picture EOI question <|Assistant|>: answer EOS`.
Painting: `BOS <|User|>: [concepts] prompt <|Assistant|>: BOI codes` (Janus-Pro, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
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
    Backend,
    BackendInfo,
    ConceptTokens,
    Lesson,
    OnStep,
    Prepared,
    Prompt,
    Task,
    Turn,
)
from omnipersona_cli.errors import MissingError, TaskError, UsageError
from op_autoregressive import experts, loading
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
from op_janus import INFO, pictures
from op_janus.sampling import sample

USER, ASSISTANT = "<|User|>: ", "\n\n<|Assistant|>:"
LINEARS = r"layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
"""Linears of the language model alone: no SigLIP, no image tokenizer, no head."""
BOI, EOI = "<begin_of_image>", "<end_of_image>"
NEEDED = ("<image_placeholder>", BOI, EOI, "<|User|>", "<|Assistant|>")
NEEDED_TENSORS = {
    "model.generation_head.vision_head.weight": "image head",
    "model.vqmodel.quantize.embedding.weight": "image tokenizer",
    "model.vision_model.embeddings.patch_embedding.weight": "vision tower",
}
DROPPED = 0.1
"""Share of image lessons whose prompt is padded out, where an adapter is learned: it runs in the
unconditional branch too. Tokens alone are absent from that branch, so that such a row would teach
nothing (Janus-4o's trainer, Janus page 5)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson with its pictures as features [n, d] or codes [N]; ``free`` [N] is what an edit
    changed."""

    task: Task
    request: Turn
    answer: str
    seen: Tensor | None
    codes: Tensor | None
    free: Tensor | None


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
            if lesson.task == "understand":
                if lesson.image is not None and id(lesson.image) not in seen:
                    seen[id(lesson.image)] = self._look(lesson.image)[0]
                continue
            for image in (lesson.target, lesson.image):
                if image is not None and id(image) not in codes:
                    codes[id(image)] = self._encode(image)
        return [self._prepared(lesson, seen, codes) for lesson in lessons]

    def _prepared(
        self, lesson: Lesson, seen: Mapping[int, Tensor], codes: Mapping[int, Tensor]
    ) -> PreparedLesson:
        free = None
        if lesson.task == "edit":
            changed = codes[id(lesson.target)] != codes[id(lesson.image)]
            free = changed if bool(changed.any()) else torch.ones_like(changed)
        return PreparedLesson(
            task=lesson.task,
            request=lesson.request,
            answer=lesson.answer,
            seen=seen.get(id(lesson.image)) if lesson.task == "understand" else None,
            codes=None if lesson.task == "understand" else codes[id(lesson.target)],
            free=free,
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
            prompt = self._request(lesson.request, (tokens,), task)
            if tokens.extra and float(torch.rand((), generator=draw)) < DROPPED:
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
        yield from self._paint(prompt, "generate", guidance, seeds, on_step, None, None)

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
        if mask is None:
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
        known = self._encode(image)
        for picture in self._paint(prompt, "edit", guidance, seeds, on_step, known, free):
            yield picture.resize(image.size, Resampling.BICUBIC)

    def _paint(
        self,
        prompt: Prompt,
        task: Task,
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None,
        known: Tensor | None,
        free: Tensor | None,
    ) -> Iterator[Image]:
        """One picture after the other, so that a seed means the same alone and among others."""
        scale = self.info.guidance if guidance is None else guidance
        with torch.no_grad():
            rows = self._request(prompt.turns[-1], prompt.concepts, task)
            both = torch.stack([rows, self._without(rows)])
        for number, seed in enumerate(seeds):
            codes = sample(
                self.janus,
                partial(self._run, task, prompt.concepts),
                both,
                guidance=scale,
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

    def _request(self, turn: Turn, concepts: Sequence[ConceptTokens], task: Task) -> Tensor:
        names = [concept.name for concept in concepts]
        said = [*introduced(names, task), " "] if names else []
        start: list[Piece] = [str(self.tokenizer.bos_token), USER]
        return self._rows([*start, *said, *written(turn, names), ASSISTANT, BOI], concepts)

    def _without(self, rows: Tensor) -> Tensor:
        """A prompt of the same length that says nothing: all but BOS and BOI are padding."""
        pad = torch.tensor(self.tokenizer.pad_token_id, device=rows.device)
        return torch.cat([rows[:1], self.table(pad).expand(len(rows) - 2, -1), rows[-1:]])

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


def open_backend(model: str | None, device: str, dtype: str | None) -> Backend:
    """A checkpoint in the layout of transformers, from a folder or the hub's cache.

    Raises MissingError where it is not here, UsageError or TaskError where it is no Janus that can
    do all tasks.
    """
    name = model or INFO.default_model
    device = loading.choose_device(device)
    kind = loading.choose_dtype(dtype, device)
    folder = loading.locate(name, backend="janus")
    loading.read_config(folder, types=("janus",), backend="janus")
    files = loading.tensor_files(folder, backend="janus")
    for tensor, why in NEEDED_TENSORS.items():
        loading.require(files, tensor, why=why, backend="janus")
    return _opened(folder, name, device, kind, loading.fingerprint(folder, files, name))


def _opened(
    folder: Path, name: str, device: str, kind: torch.dtype, fingerprint: str
) -> JanusBackend:
    loaded: Any = JanusForConditionalGeneration.from_pretrained(
        folder,
        dtype=kind,
        local_files_only=True,
        use_safetensors=True,
        tie_word_embeddings=False,  # the released configuration lacks the key, whose default is yes
        output_loading_info=True,
    )
    janus, report = loaded
    lost = sorted(str(it) for what in ("missing_keys", "mismatched_keys") for it in report[what])
    if lost:
        raise MissingError(
            f"the weights in {folder} do not fit their configuration: {lost[0]}",
            hint="op backends fetch janus",
        )
    janus.model.vqmodel.float()  # in bfloat16 some codes flip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    words = tokenizer.get_vocab()
    unknown = [it for it in NEEDED if it not in words]
    if unknown or tokenizer.pad_token_id is None:
        raise MissingError(
            f"the tokenizer in {folder} has no {unknown[0] if unknown else 'padding token'}",
            hint="op backends fetch janus",
        )
    side = janus.config.vision_config.image_size
    return JanusBackend(
        info=replace(INFO, sizes=((side, side),)),
        model=folder.name if Path(name).is_dir() else name,  # a path would tell of this machine
        fingerprint=fingerprint,
        janus=janus.to(device),
        tokenizer=tokenizer,
    )
