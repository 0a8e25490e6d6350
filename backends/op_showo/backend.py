"""Show-o as a backend: concept tokens in its prompts, losses on answers and on hidden codes.

What never changes is computed once: a picture's codes, and the keys and values of the part of an
understanding row that holds the picture and no concept token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from PIL import Image as images
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
    Turn,
    counted,
)
from omnipersona_cli.errors import TaskError
from omnipersona_cli.family.codes import over_all, seen_through, told_over_all
from omnipersona_cli.family.pictures import once
from omnipersona_cli.family.pieces import give_back, in_pieces, most_positions, settled
from omnipersona_cli.family.text import answered, mean_losses, stream
from omnipersona_cli.family.tokens import check_width, kmeans, norm_limit, trainable
from op_showo import placing, prompts
from op_showo.magvit import Magvit, fit, to_image
from op_showo.model import Showo, stack
from op_showo.pictures import REMEMBERED, Observed, Pictures
from op_showo.placing import BIAS, HEAD, ConceptRows, TextTokenizer
from op_showo.region import changed, covered, window
from op_showo.sampling import Seeded, decode_masked, training_mask


@dataclass(frozen=True, kw_only=True, eq=False)
class PreparedLesson:
    """A lesson with every picture encoded. ``region`` [N] is what an edit changed; outside of it
    ``target`` has the codes of the source, as it has when an edit is asked for."""

    task: Task
    request: Turn
    answer: str
    observed: Observed | None
    target: Tensor | None  # [N] codes
    region: Tensor | None


class ShowoBackend:
    """One opened Show-o. ``clip`` gives features [1, n, width] of a picture, for the variants that
    understand through CLIP."""

    def __init__(
        self,
        *,
        info: BackendInfo,
        model: str,
        fingerprint: str,
        net: Showo,
        magvit: Magvit,
        tokenizer: TextTokenizer,
        clip: Callable[[Image], Tensor] | None = None,
        system: str = "",
        remember: int = REMEMBERED,
    ) -> None:
        self.info, self.model, self.fingerprint = info, model, fingerprint
        self.net = net.requires_grad_(False).eval()
        self.magvit = magvit.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.pictures = Pictures(
            self.net, self.magvit, tokenizer, clip=clip, system=system, remember=remember
        )
        self.width = net.config.llm.hidden_size
        self.device = str(net.device)
        self.norm_limit = norm_limit(net.table)
        self.most = most_positions(net.showo.config, self.device, size=net.table.itemsize)

    # -- learning ------------------------------------------------------------------------------

    @torch.no_grad()
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
        """Centres of the embeddings of the photos' codes; the head's row for the identifier starts
        as that of image code 0, where UniCTokens' new row finds itself too."""
        vocab = self.net.config.vocab
        encoded = [self.pictures.encode(photo) for photo in counted(photos, on_step)]
        codes = torch.cat(encoded).flatten()
        rows = self.net.table[codes.to(self.net.device) + vocab.image_offset].float().cpu()
        und, gen = (
            kmeans(rows, count, seed + number)
            for number, count in enumerate((understand, generate))
        )
        head = self.net.showo.lm_head

        def fresh(values: Tensor) -> Tensor:
            return trainable(values.to(self.net.device))

        return ConceptTokens(
            name=name,
            id=fresh(rows.mean(0, keepdim=True)),
            und=fresh(und),
            gen=fresh(gen),
            extra={
                HEAD: fresh(head.weight[vocab.image_offset][None]),
                BIAS: fresh(head.bias[vocab.image_offset][None]),
            },
        )

    def see(self, images: Sequence[Image]) -> Tensor:
        """The mean of the codes' embeddings, or of CLIP's features, [n, d]."""
        return torch.stack([self.pictures.features(image) for image in images])

    @torch.no_grad()
    def prepare(
        self, lessons: Sequence[Lesson], *, on_step: OnStep | None = None
    ) -> Sequence[PreparedLesson]:
        """Codes of every picture, and the keys and values of reading it, as far as memory goes."""
        observed, codes = once(self._observed), once(self.pictures.encode)
        return [self._prepared(lesson, observed, codes) for lesson in counted(lessons, on_step)]

    def _observed(self, image: Image | None) -> Observed:
        one = self.pictures.see(image)
        if not self.pictures.full:
            self.pictures.prefix(one)
        return one

    def _prepared(
        self,
        lesson: Lesson,
        observed: Callable[[Image | None], Observed],
        codes: Callable[[Image], Tensor],
    ) -> PreparedLesson:
        target = None if lesson.target is None else codes(lesson.target)[0]
        region = None
        if lesson.task == "edit" and lesson.image and lesson.target and target is not None:
            config = self.net.config
            source, painted = (
                fit(picture.convert("RGB"), config.resolution)
                for picture in (lesson.image, lesson.target)
            )
            region = changed(source, painted, config.side)
            target = torch.where(region, target, codes(lesson.image)[0])
        return PreparedLesson(
            task=lesson.task,
            request=lesson.request,
            answer=lesson.answer,
            observed=observed(lesson.image) if lesson.task == "understand" else None,
            target=target,
            region=region,
        )

    def loss(
        self, batch: Sequence[Prepared], tokens: ConceptTokens, *, seed: int, at_once: int = 0
    ) -> Mapping[Task, Tensor]:
        """Cross-entropy of answers, and of the codes that a lesson hides (Show-o, section 3.3).

        The text is never dropped, as pretraining did in a tenth of the rows: such a row holds no
        concept token, so that it would teach nothing.
        """
        lessons = cast("Sequence[PreparedLesson]", batch)  # they came out of `prepare`
        draw = torch.Generator().manual_seed(seed)
        tasks: tuple[Task, ...] = ("understand", "generate", "edit")
        found: dict[Task, Tensor] = {}
        for task in tasks:
            mine = [lesson for lesson in lessons if lesson.task == task]
            of_piece = (
                self._answers_loss if task == "understand" else partial(self._codes_loss, draw=draw)
            )
            parts, count = [], 0
            lengths = [self.net.config.image_tokens + self.net.config.text_length] * len(mine)
            for piece in in_pieces(mine, lengths, most=self.most, at_once=at_once):
                losses = of_piece(piece, self._rows((tokens,)))
                parts.append(settled(losses.sum(), tokens.parameters()))
                count += len(losses)
            if parts:
                found[task] = torch.stack(parts).sum() / count
        return found

    @torch.no_grad()
    def answer_losses(self, lessons: Sequence[Prepared], tokens: ConceptTokens) -> Tensor:
        """What reading a picture leaves behind serves every lesson about it."""
        concepts = self._rows((tokens,))
        of_picture: dict[bytes, list[int]] = {}
        for number, lesson in enumerate(cast("Sequence[PreparedLesson]", lessons)):
            of_picture.setdefault(cast(Observed, lesson.observed).key, []).append(number)
        found = torch.zeros(len(lessons), device=tokens.id.device)
        for numbers in of_picture.values():
            mine = [cast(PreparedLesson, lessons[number]) for number in numbers]
            answers = [
                torch.tensor([*placing.answer_ids(one.answer, concepts, self.tokenizer), 0])
                for one in mine
            ]
            found[numbers] = mean_losses(self._answers_loss(mine, concepts), answers).to(found)
        return found

    def _answers_loss(self, lessons: Sequence[PreparedLesson], concepts: ConceptRows) -> Tensor:
        """Cross-entropy [n] of the answers' tokens and of their ends."""
        vocab = self.net.config.vocab
        rows, labels = [], []
        for lesson in lessons:
            asked = self._question((lesson.request,), concepts)
            answer = [*placing.answer_ids(lesson.answer, concepts, self.tokenizer), vocab.eos]
            rows.append(asked + answer[:-1])
            labels.append([prompts.IGNORE] * (len(asked) - 1) + answer)
        context = stack(
            [self.pictures.prefix(cast(Observed, lesson.observed)) for lesson in lessons]
        )
        ids = prompts.padded(rows, vocab.special("[PAD]"))
        states, _ = self.net.follow(self.net.embed(ids, concepts.soft), context)
        return self.net.losses(states, prompts.padded(labels, prompts.IGNORE), concepts.soft)

    def _codes_loss(
        self, lessons: Sequence[PreparedLesson], concepts: ConceptRows, draw: torch.Generator
    ) -> Tensor:
        """Cross-entropy [n] of the hidden codes; an edit hides some of what it changed."""
        config = self.net.config
        texts, hidden = [], []
        for lesson in lessons:
            editing = lesson.task == "edit"
            text = placing.request_ids(lesson.request, concepts, self.tokenizer, editing=editing)
            texts.append(prompts.text_block(text, config))
            places = torch.arange(config.image_tokens)
            if lesson.region is not None:
                places = places[lesson.region.cpu()]
            u, order = torch.rand(1, generator=draw), torch.rand(1, len(places), generator=draw)
            some = places[training_mask(u, order)[0][0]]
            hidden.append(
                torch.zeros(config.image_tokens, dtype=torch.bool).index_fill(0, some, True)
            )
        codes = torch.stack([cast(Tensor, lesson.target) for lesson in lessons]).cpu()
        hide = torch.stack(hidden)
        picture = prompts.picture_ids(codes, hide, config)
        ids = torch.cat((torch.tensor(texts), picture), dim=1)
        attend = prompts.painting_attend(ids, config)
        states, _ = self.net(self.net.embed(ids, concepts.soft), attend)
        labels = torch.where(hide, codes + config.vocab.image_offset, prompts.IGNORE)
        start = config.text_length + 2
        return self.net.losses(states[:, start:-1], labels, concepts.soft)

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
        """Token by token; image codes and markers are never said."""
        concepts = self._rows(prompt.concepts)
        vocab = self.net.config.vocab
        with torch.no_grad():
            context = self.pictures.prefix(self.pictures.see(image))
        asked = self._question(prompt.turns, concepts)
        room = self.net.config.llm.max_position_embeddings - context.length - len(asked)
        if room < 1:
            raise TaskError(
                f"the question and what it stands on are {1 - room} tokens too long for "
                f"{self.info.name}",
                hint="ask a shorter one, or begin a new talk",
            )

        def scores_after(token: int | None) -> Tensor:
            nonlocal context
            step = asked if token is None else [token]
            rows = self.net.embed(torch.tensor([step]), concepts.soft)
            states, context = self.net.follow(rows, context)
            scores = self.net.logits(states[0, -1], concepts.soft).float()
            scores[vocab.llm_vocab_size : vocab.size] = -torch.inf
            return scores

        ids = answered(
            scores_after,
            end=vocab.eos,
            most=min(max_tokens, room),
            temperature=temperature,
            seed=seed,
        )
        yield from stream(ids, lambda known: self._text(known, concepts).lstrip())

    @torch.no_grad()
    def score(
        self, prompt: Prompt, answers: Sequence[str], *, image: Image | None = None
    ) -> Tensor:
        """Log-probability of each answer, its end included, all in one batch."""
        if not answers:
            return torch.zeros(0)
        concepts = self._rows(prompt.concepts)
        vocab = self.net.config.vocab
        asked = torch.tensor([self._question(prompt.turns, concepts)])
        context = self.pictures.prefix(self.pictures.see(image))
        states, context = self.net.follow(self.net.embed(asked, concepts.soft), context)
        ids_of = [
            [*placing.answer_ids(answer, concepts, self.tokenizer), vocab.eos] for answer in answers
        ]
        ids = prompts.padded([row[:-1] for row in ids_of], vocab.special("[PAD]"))
        rows = self.net.embed(ids, concepts.soft)
        after, _ = self.net.follow(rows, context.expand(len(ids_of)))
        first = states[:, -1:].expand(len(ids_of), -1, -1)
        labels = prompts.padded(ids_of, prompts.IGNORE).to(after.device)
        at = labels >= 0
        logits = self.net.logits(torch.cat((first, after), dim=1)[at], concepts.soft).float()
        found = logits.log_softmax(-1).gather(-1, labels[at][:, None])[:, 0]
        scores = torch.zeros(labels.shape, device=after.device).masked_scatter(at, found)
        return scores.sum(1).cpu()

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
        """All codes start hidden."""
        concepts = self._rows(prompt.concepts)
        text = self._request(prompt, concepts)
        hidden = torch.ones(1, self.net.config.image_tokens, dtype=torch.bool)
        codes = torch.zeros_like(hidden, dtype=torch.long)
        yield from self._paint(
            text, concepts, codes, hidden, steps, guidance, seeds, on_step, on_estimate
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
        """Draw the codes under the mask again, the others stay: Show-o's inpainting."""
        if mask is None:  # only a native edit may be without one
            mask = images.new("L", image.size, 255)
        box = window(mask, image.size)
        side = self.net.config.resolution
        part = image.convert("RGB").crop(box)
        codes = self.pictures.encode(part.resize((side, side), images.Resampling.BICUBIC))
        hidden = covered(mask.crop(box), side, self.net.config.side)
        concepts = self._rows(prompt.concepts)
        text = self._request(prompt, concepts, editing=True)

        def placed(picture: Image) -> Image:
            whole = image.convert("RGB").copy()
            whole.paste(picture.resize(part.size, images.Resampling.BICUBIC), box[:2])
            return whole

        on_placed = seen_through(on_estimate, placed)
        for picture in self._paint(
            text, concepts, codes, hidden, steps, guidance, seeds, on_step, on_placed
        ):
            yield placed(picture)

    def _paint(
        self,
        text: Sequence[int],
        concepts: ConceptRows,
        codes: Tensor,
        hidden: Tensor,
        steps: int | None,
        guidance: float | None,
        seeds: Sequence[int],
        on_step: OnStep | None,
        on_estimate: OnEstimate | None,
    ) -> Iterator[Image]:
        """One picture after the other, so that a seed means the same alone and among others."""
        count = self.info.steps if steps is None else steps
        scale = self.info.guidance if guidance is None else guidance
        logits = self._code_logits(text, concepts, scale)

        def picture(painted: Tensor) -> Image:
            give_back()  # what passes of the language model left, before the tokenizer's maps
            with torch.no_grad():
                return to_image(self.magvit.decode(painted.to(self.net.device))[0])

        for number, seed in enumerate(seeds):
            painted = codes
            count_step = over_all(on_step, number, len(seeds))
            show_estimate = told_over_all(on_estimate, number, len(seeds))
            with torch.no_grad():
                for step in decode_masked(
                    logits, codes.cpu(), hidden.cpu(), steps=count, chance=Seeded((seed,))
                ):
                    painted = step.codes
                    if count_step is not None:
                        count_step(step.index + 1, count)
                    if show_estimate is not None:
                        show_estimate(step.index + 1, count, partial(picture, painted))
            yield picture(painted)

    @torch.no_grad()
    def _code_logits(
        self, text: Sequence[int], concepts: ConceptRows, scale: float
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """What a step asks for. The texts, with and without the request, are read once: they never
        see the picture (Show-o, section 3.2)."""
        config = self.net.config
        texts = [prompts.text_block(text, config)]
        if scale:
            texts.append(prompts.text_block([], config))
        ids = torch.tensor(texts)
        pad = ids == config.vocab.special("[PAD]")
        _, context = self.net.read(
            self.net.embed(ids, concepts.soft), prompts.painting_attend(ids, config), key=~pad
        )

        def logits(codes: Tensor, unknown: Tensor) -> Tensor:
            rows = self.net.embed(prompts.picture_ids(codes, unknown, config).repeat(len(texts), 1))
            own = torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device)
            attend = torch.cat((context.key, own), dim=1)[:, None, None]
            states, _ = self.net(rows, attend.expand(-1, 1, rows.shape[1], -1), context)
            scores = self.net.code_logits(states[:, 1:-1]).float().cpu()
            return (1 + scale) * scores[:1] - scale * scores[1:] if scale else scores

        return logits

    def remarks(self, *, texts: Sequence[str] = (), photos: Sequence[Image] = ()) -> Sequence[str]:
        """Requests that are too long to be read to their end when painting."""
        room = self.net.config.text_length - 2
        return [
            f"{self.info.name} reads {room} tokens of a request before it paints; "
            f"the end of {text[:30]!r}… is cut off"
            for text in texts
            if len(self.tokenizer.encode(text)) > room
        ]

    # -- rows ----------------------------------------------------------------------------------

    def _rows(self, concepts: Sequence[ConceptTokens]) -> ConceptRows:
        for tokens in concepts:
            check_width(tokens, self.width, backend=self.info.name)
        return placing.concept_rows(concepts, self.net.config.vocab.size)

    def _question(self, turns: Sequence[Turn], concepts: ConceptRows) -> list[int]:
        """Bos and the newline are in the released prompts of the variants without CLIP alone."""
        if self.pictures.clip is not None:
            return placing.question_ids(turns, concepts, self.tokenizer, opening="")
        return [self.net.config.vocab.bos, *placing.question_ids(turns, concepts, self.tokenizer)]

    def _request(
        self, prompt: Prompt, concepts: ConceptRows, *, editing: bool = False
    ) -> list[int]:
        """What painting reads. TaskError where concepts leave no room for the words."""
        ids = placing.request_ids(prompt.turns[-1], concepts, self.tokenizer, editing=editing)
        room = self.net.config.text_length - 2
        if concepts.ids and len(ids) > room:
            raise TaskError(
                f"{self.info.name} reads {room} tokens before it paints; the request and its "
                f"concepts have {len(ids)}",
                hint="say it in fewer words, or learn with fewer --generate-tokens",
            )
        return ids

    def _text(self, ids: Sequence[int], concepts: ConceptRows) -> str:
        """The answer, identifiers as "<name>"."""
        text, run = "", []
        for token in ids:
            if (name := concepts.name_of(token)) is None:
                run.append(token)
            else:
                text += self.tokenizer.decode(run) + f"<{name}>"
                run = []
        return text + self.tokenizer.decode(run)
