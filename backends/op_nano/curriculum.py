"""From families to samples: what one step of joint pretraining is made of.

Three groups, because a concept's turn is run once for all samples that share it:

    alone   samples without slots: captions, questions, edits by description, descriptions in
            context ("<sks> is a red cat."), the three stages of replay
    behind  samples that start from one concept's turn (slots in both experts)
    pairs   samples that start from the turns of two concepts

Understanding samples chain up to three questions; pictures to be drawn are noised at two times at
once. Guidance is taught by leaving out the prompt, the pictures or the concept now and then.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from op_bagel.packing import Latent, Noise, Sample, Segment, Soft, Text, Vit, concept_turn
from op_nano import phrases
from op_nano.families import (
    ALIKE,
    CHANGED,
    EMPTY,
    MOVED,
    PICTURES,
    POSED,
    REPLACED,
    TWO,
    Family,
)
from op_nano.shape import SLOTS
from op_nano.tokenizer import NAME, encode
from op_nano.world import Picture

SKS = "<sks>"
GRID = (4, 4)
NOISES = 2


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The encoded pool: ViT rows [N, 16, d_vit] and latent tokens [N, 16, d_latent], float16,
    picture p of family f at row f * 11 + p."""

    families: Sequence[Family]
    vit: Tensor
    latents: Tensor


class Group:
    """Samples that run together, and which pictures of the pool they look at, in order: the
    `Vit` segments hold blanks, so that the connector runs once for a whole step."""

    def __init__(self, width: int) -> None:
        self.samples: list[Sample] = []
        self.concepts: list[int] = []
        self.seen: list[int] = []
        self.blank = torch.zeros(GRID[0] * GRID[1], width)

    def look(self, row: int) -> Vit:
        """A picture of the pool, to be filled in."""
        self.seen.append(row)
        return Vit(features=self.blank)


def read_turn(text: str, rows: dict[str, Tensor], *, loss: bool = False) -> Text:
    """A text turn whose mentions of the names in ``rows`` carry their identifier row [1, D];
    other mentions are the word "<sks>"."""
    ids: list[int] = []
    soft: list[Soft] = []
    rest = text
    while rest:
        start = rest.find("<")
        end = rest.find(">", start)
        if start < 0 or end < 0:
            ids += encode(rest)
            break
        ids += encode(rest[:start])
        name = rest[start : end + 1]
        if name in rows:
            soft.append(Soft((len(ids),), rows[name]))
            ids.append(0)
        else:
            ids.append(NAME)
        rest = rest[end + 1 :]
    return Text(ids, loss=loss, soft=tuple(soft))


def introduce(slots: Tensor) -> Text:
    """The system turn of a concept: [1 + 2 * SLOTS, D] rows as "<sks> is und gen."."""
    return concept_turn(
        slots[:1],
        slots[1 : 1 + SLOTS],
        slots[1 + SLOTS :],
        says=encode("is"),
        ends=encode("."),
    )


class Teacher:
    """Draws the samples of one step from a pool; deterministic in its seed."""

    def __init__(self, pool: Pool, seed: int) -> None:
        self.pool = pool
        self.rng = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)

    def concepts(self, count: int) -> list[int]:
        """Different families, the first four two pairs of neighbours."""
        drawn = self.rng.sample(range(len(self.pool.families)), count)
        first, second = drawn[0] & ~1, drawn[1] & ~1
        rest = [family for family in drawn[2:] if family | 1 not in (first | 1, second | 1)]
        return [first, first + 1, second, second + 1, *rest][:count]

    def references(self, families: Sequence[int], pictures: int) -> Tensor:
        """Rows [C, pictures] of pictures 0..3, drawn with repetition so that few also do."""
        return torch.tensor(
            [
                [family * PICTURES + self.rng.randrange(4) for _ in range(pictures)]
                for family in families
            ]
        )

    def step(self, families: Sequence[int], slots: Tensor) -> tuple[Group, Group, Group]:
        """One step's samples (alone, behind, pairs), about 37: ``slots`` [C, 33, D] belong to
        ``families``, whose first four are two pairs of neighbours."""
        rng = self.rng
        alone, behind, pairs = (Group(slots.shape[-1]) for _ in range(3))
        every = range(len(self.pool.families))
        alone.samples += [self._questions(rng.choice(every), alone) for _ in range(2)]
        alone.samples += [self._caption(rng.choice(every)) for _ in range(12)]
        alone.samples += [self._edit(rng.choice(every), {}, alone) for _ in range(3)]
        alone.samples += [self._described(rng.choice(every), alone) for _ in range(2)]
        alone.samples.append(self._replay())
        for index, family in enumerate(families):
            rows = {SKS: slots[index, :1]}
            behind.samples.append(self._recognise(family, rows, behind))
            if rng.random() < 0.6:
                behind.samples.append(self._drawn_as(family, rows))
            else:
                behind.samples.append(self._edit(family, rows, behind))
            behind.concepts += [index, index]
        pairs.samples.append(self._pair(families[0], slots[:2], pairs))
        return alone, behind, pairs

    # -- what a sample is ----------------------------------------------------------------------

    def _clean(self, family: int, picture: int) -> Latent:
        return Latent(self.pool.latents[family * PICTURES + picture].float(), GRID)

    def _draw(self, family: int, picture: int) -> list[Segment]:
        tokens = self.pool.latents[family * PICTURES + picture].float()
        drawn: list[Segment] = []
        for _ in range(NOISES):
            t = torch.sigmoid(torch.randn((), generator=self.noise)).item()
            noise = torch.randn(tokens.shape, generator=self.noise)
            drawn.append(Noise(tokens, GRID, t, noise))
        return drawn

    def _ask(self, exchanges: Sequence[phrases.Exchange], rows: dict[str, Tensor]) -> list[Segment]:
        turns: list[Segment] = []
        for exchange in exchanges:
            turns.append(read_turn(exchange.question, rows))
            turns.append(read_turn(exchange.answer, rows, loss=True))
        return turns

    def _questions(self, family: int, group: Group) -> Sample:
        picture = self.rng.randrange(10)
        shown = self.pool.families[family].pictures[picture]
        asked = [phrases.picture_question(shown, self.rng) for _ in range(3)]
        return [group.look(family * PICTURES + picture), *self._ask(asked, {})]

    def _caption(self, family: int) -> Sample:
        picture = self.rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, TWO))
        shown = self.pool.families[family].pictures[picture]
        text = phrases.caption(
            shown, [phrases.mention(who, self.rng) for who in shown.characters], self.rng
        )
        return [*self._prompt(self._placed(text, shown), {}), *self._draw(family, picture)]

    def _placed(self, text: str, shown: Picture) -> str:
        """A caption that sometimes says where a single character stands: the largest thing that it
        otherwise leaves open."""
        if len(shown.characters) != 1 or self.rng.random() >= 0.4:
            return text
        side = "in the middle" if shown.place == "middle" else f"on the {shown.place}"
        return f"{text.rstrip('.')}, {side}"

    def _prompt(self, text: str, rows: dict[str, Tensor]) -> list[Segment]:
        if self.rng.random() < 0.1:
            return []
        return [read_turn(text, rows)]

    def _described(self, family: int, group: Group) -> Sample:
        """A concept given in words: facts and looks in context, then a request."""
        rng = self.rng
        member = self.pool.families[family]
        facts = list(phrases.fact_sentences(member.facts, SKS, rng).items())
        rng.shuffle(facts)
        facts = facts[: rng.randint(1, 3)]
        told = [sentence for _, sentence in facts]
        looks = rng.random() < 0.6
        if looks:
            told.insert(0, f"{SKS} is {phrases.describe(member.character)}.")
        context: list[Segment] = [read_turn(" ".join(told), {})]
        if looks and rng.random() < 0.4:
            return [*context, *self._drawn_as(family, {})]
        asked = [
            phrases.Exchange(
                question=phrases.fact_question(name, SKS, rng),
                answer=phrases.fact_answer(name, member.facts),
            )
            for name, _ in facts
        ]
        if looks:
            asked.append(phrases.look_question(member.character, SKS, rng))
        rng.shuffle(asked)
        if looks and rng.random() < 0.6:
            return [*context, *self._ask(asked[:1], {}), *self._is_here(family, {}, group)]
        return [*context, *self._ask(asked, {})]

    def _drawn_as(self, family: int, rows: dict[str, Tensor]) -> list[Segment]:
        picture = self.rng.choice((0, 1, 2, 3, POSED, MOVED))
        shown = self.pool.families[family].pictures[picture]
        text = self._placed(phrases.caption(shown, [SKS], self.rng), shown)
        return [*self._prompt(text, rows), *self._draw(family, picture)]

    def _is_here(self, family: int, rows: dict[str, Tensor], group: Group) -> list[Segment]:
        """A picture, and whether the concept is in it; sometimes what is in it first."""
        rng = self.rng
        here = rng.random() < 0.5
        at = family
        if here:
            picture = rng.choice((0, 1, 2, 3, POSED, MOVED, TWO))
        else:
            picture = rng.choice((ALIKE, ALIKE, CHANGED, REPLACED, EMPTY))
            if picture == EMPTY:
                at, picture = rng.randrange(len(self.pool.families)), rng.randrange(10)
        shown = self.pool.families[at].pictures[picture]
        asked = [
            phrases.Exchange(
                question=phrases.recognise_question(SKS, rng), answer="yes" if here else "no"
            )
        ]
        if len(shown.characters) < 2 and rng.random() < 0.5:
            asked.insert(rng.randrange(2), phrases.picture_question(shown, rng))
        return [group.look(at * PICTURES + picture), *self._ask(asked, rows)]

    def _recognise(self, family: int, rows: dict[str, Tensor], group: Group) -> Sample:
        rng = self.rng
        turns: list[Segment] = []
        if rng.random() < 0.4:
            who = self.pool.families[family].character
            turns += self._ask([phrases.look_question(who, SKS, rng)], rows)
        turns += self._is_here(family, rows, group)
        if rng.random() < 0.7:
            turns += self._is_here(family, rows, group)
        return turns

    def _edit(self, family: int, rows: dict[str, Tensor], group: Group) -> Sample:
        """Source (latents, then ViT), instruction, target. With ``rows`` the character is named,
        else described."""
        rng = self.rng
        member = self.pool.families[family]
        who = member.character
        other = member.pictures[REPLACED].characters[0]
        name = SKS if rows else phrases.mention(who, rng)
        the = SKS if rows and rng.random() < 0.7 else rng.choice((f"the {who.kind}", "it"))
        what = rng.choices(
            ("add", "remove", "replace", "replaced", "change", "move"),
            (6, 3, 3, 0 if rows else 2, 2, 2),
        )[0]
        if what == "add":
            source, target, text = EMPTY, POSED, phrases.add_instruction(name, rng)
        elif what == "remove":
            source, target = POSED, EMPTY
            text = phrases.remove_instruction(the, rng)
        elif what == "replace":
            source, target = REPLACED, POSED
            old = rng.choice((f"the {other.kind}", f"the {other.kind}", "it", "the animal"))
            text = phrases.replace_instruction(old, name, rng)
        elif what == "replaced":
            source, target = POSED, REPLACED
            text = phrases.replace_instruction(the, phrases.mention(other, rng), rng)
        elif what == "change":
            source, target = POSED, CHANGED
            changed = member.pictures[CHANGED].characters[0]
            text = phrases.change_instruction(who, changed, the, rng)
        else:
            source, target = POSED, MOVED
            text = phrases.move_instruction(member.pictures[MOVED].scene, the, rng)
        context: list[Segment] = []
        if rng.random() >= 0.08:
            context += [self._clean(family, source), group.look(family * PICTURES + source)]
        return [*context, *self._prompt(text, rows), *self._draw(family, target)]

    def _pair(self, family: int, slots: Tensor, group: Group) -> Sample:
        """Two concepts in one context: ``slots`` [2, 33, D] of a family and its neighbour."""
        rng = self.rng
        rows = {SKS: slots[0, :1], "<two>": slots[1, :1]}
        turns: list[Segment] = [introduce(slots[0]), introduce(slots[1])]
        if rng.random() < 0.7:
            shown = self.pool.families[family].pictures[TWO]
            text = phrases.caption(shown, rng.sample(list(rows), 2), rng)
            return [*turns, *self._prompt(text, rows), *self._draw(family, TWO)]
        picture = rng.choice((0, 1, TWO))
        asked = [
            phrases.Exchange(
                question=phrases.recognise_question(name, rng),
                answer="yes" if picture == TWO or name == SKS else "no",
            )
            for name in rng.sample(list(rows), 2)
        ]
        return [*turns, group.look(family * PICTURES + picture), *self._ask(asked, rows)]

    def _replay(self) -> Sample:
        """Intent parsing or prompt rewriting, from up to two in-context examples."""
        rng = self.rng
        rewriting = rng.random() < 0.5
        lines: list[str] = []
        answer = ""
        for _ in range(rng.randint(0, 2) + 1):
            if answer:
                lines[-1] += f" {answer}"
            member = self.pool.families[rng.randrange(len(self.pool.families))]
            attribute, request, value = _reference(member, rng)
            memory = f"the {attribute} of {SKS} is {value}."
            if rewriting:
                answer = request.replace(_WANT, value)
                lines.append(f"request: {_named(request, attribute)} memory: {memory} prompt:")
            else:
                answer = f"what is the {attribute} of {SKS}?"
                lines.append(f"request: {_named(request, attribute)} question:")
        return [read_turn(" ".join(lines), {}), read_turn(answer, {}, loss=True)]


_WANT = "{}"


def _reference(member: Family, rng: random.Random) -> tuple[str, str, str]:
    attribute = rng.choice(("toy", "home", "food"))
    value = phrases.fact_answer(attribute, member.facts)
    request = rng.choice({
        "toy": (f"{SKS} with {_WANT}", f"{SKS} playing with {_WANT}", f"{SKS} next to {_WANT}"),
        "food": (f"{SKS} eating {_WANT}", f"{SKS} with {_WANT}", f"{SKS} next to {_WANT}"),
        "home": (f"{SKS} {_WANT}", f"a picture of {SKS} {_WANT}"),
    }[attribute])  # fmt: skip
    if attribute != "home" and rng.random() < 0.5:
        request += " " + rng.choice(phrases.WHERE[rng.choice(list(phrases.WHERE))])
    return attribute, request, value


def _named(request: str, attribute: str) -> str:
    return request.replace(
        _WANT, f"at its {attribute}" if attribute == "home" else f"its {attribute}"
    )
