"""From families to samples: what one step of joint pretraining is made of.

Three groups, because a concept's turn is run once for all samples that share it:

    alone   samples without slots: captions, questions, edits by description, descriptions in
            context ("<sks> is a red cat."), the three stages of replay
    behind  samples that start from one concept's turn (slots in both experts)
    pairs   samples that start from the turns of two concepts

Understanding samples chain up to three questions. What is to be painted ends its sample as a
`Paint`: the context before it is read once for all its noised copies (`pretraining.painting`).
Guidance is taught by leaving out the prompt, the pictures or the concept now and then.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from op_bagel.segments import Latent, Segment, SoftRows, Text, Vit, concept_turn
from op_nano.shape import CONFIG, SLOTS
from op_nano.tokenizer import NAME, encode
from op_toy.words import WHERE, describe, fact_answer, side
from op_toy.world import Composition
from pretraining import phrases
from pretraining.families import (
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

SKS = "<sks>"
GRID = (4, 4)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The encoded pool: ViT rows [N, 16, d_vit] and latent tokens [N, 16, d_latent], float16,
    picture p of family f at row f * 11 + p. ``mean`` and ``std`` [d_vit] are those of the rows."""

    families: Sequence[Family]
    vit: Tensor
    latents: Tensor
    mean: Tensor = field(init=False)
    std: Tensor = field(init=False)

    def __post_init__(self) -> None:
        some = self.vit[:4096].float().flatten(0, 1)
        object.__setattr__(self, "mean", some.mean(0))
        object.__setattr__(self, "std", some.std(0) + 1e-6)


@dataclass(frozen=True, eq=False)
class Look(Vit):
    """A picture of the pool to look at, to be filled in by `fill`."""

    row: int = -1


@dataclass(frozen=True)
class Paint:
    """The picture of the pool that a sample is to end in."""

    row: int


Taught = Sequence[Segment | Paint]
"""A sample; where it paints, its last part says what."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Samples that run together; behind a concept, ``concepts`` says which, one number a sample."""

    samples: list[Taught] = field(default_factory=list)
    concepts: list[int] = field(default_factory=list)

    def answered(self) -> Group:
        """The samples that teach words."""
        return self._some(painted=False)

    def painted(self) -> Group:
        """The samples that end in a picture."""
        return self._some(painted=True)

    def _some(self, *, painted: bool) -> Group:
        some = [i for i, one in enumerate(self.samples) if isinstance(one[-1], Paint) == painted]
        return Group(
            samples=[self.samples[i] for i in some],
            concepts=[self.concepts[i] for i in some] if self.concepts else [],
        )


def read_turn(text: str, rows: dict[str, Tensor], *, loss: bool = False) -> Text:
    """A text turn whose mentions of the names in ``rows`` carry their identifier row [1, D];
    other mentions are the word "<sks>"."""
    ids: list[int] = []
    soft: list[SoftRows] = []
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
            soft.append(SoftRows((len(ids),), rows[name]))
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

    def __init__(self, pool: Pool, seed: int, *, width: int = CONFIG.llm.hidden_size) -> None:
        self.pool = pool
        self.rng = random.Random(seed)
        self.noise = torch.Generator().manual_seed(seed)
        self.blank = torch.zeros(GRID[0] * GRID[1], width)

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
        """One step's samples (alone, behind, pairs), about 57: ``slots`` [C, 33, D] belong to
        ``families``, whose first four are two pairs of neighbours."""
        rng = self.rng
        alone, behind, pairs = Group(), Group(), Group()
        every = range(len(self.pool.families))
        alone.samples.extend(self._questions(rng.choice(every)) for _ in range(8))
        alone.samples.extend(self._caption(rng.choice(every)) for _ in range(5))
        alone.samples.extend(self._edit(rng.choice(every), {}) for _ in range(13))
        alone.samples.extend(self._described(rng.choice(every)) for _ in range(2))
        alone.samples.append(self._replay())
        for index, family in enumerate(families):
            rows = {SKS: slots[index, :1]}
            taught = [self._drawn_as(family, rows)]
            taught += [self._edit(family, rows), self._edit(family, rows)]
            if rng.random() < 0.4:
                taught.append(self._recognise(family, rows))
            behind.samples.extend(taught)
            behind.concepts.extend([index] * len(taught))
        pairs.samples.append(self._pair(families[0], slots[:2]))
        return alone, behind, pairs

    # -- what a sample is ----------------------------------------------------------------------

    def _clean(self, family: int, picture: int) -> Latent:
        return Latent(self.pool.latents[family * PICTURES + picture].float(), GRID)

    def _draw(self, family: int, picture: int) -> Paint:
        return Paint(family * PICTURES + picture)

    def _look(self, family: int, picture: int) -> Look:
        return Look(features=self.blank, row=family * PICTURES + picture)

    def _ask(self, exchanges: Sequence[phrases.Exchange], rows: dict[str, Tensor]) -> list[Segment]:
        turns: list[Segment] = []
        for exchange in exchanges:
            turns.append(read_turn(exchange.question, rows))
            turns.append(read_turn(exchange.answer, rows, loss=True))
        return turns

    def _questions(self, family: int) -> Taught:
        picture = self.rng.randrange(10)
        composition = self.pool.families[family].pictures[picture]
        asked = [phrases.picture_question(composition, self.rng) for _ in range(2)]
        yes_or_no = phrases.yes_or_no_question(composition, self.rng)
        asked.insert(self.rng.randrange(3), yes_or_no)  # what is mistaken most
        return [self._look(family, picture), *self._ask(asked, {})]

    def _caption(self, family: int) -> Taught:
        picture = self.rng.randrange(PICTURES)
        composition = self.pool.families[family].pictures[picture]
        text = phrases.caption(
            composition,
            [phrases.mention(character, self.rng) for character in composition.characters],
            self.rng,
        )
        return [*self._prompt(self._placed(text, composition), {}), self._draw(family, picture)]

    def _placed(self, text: str, composition: Composition) -> str:
        """A caption or an addition that sometimes says where a single character stands: the
        largest thing that it otherwise leaves open."""
        if len(composition.characters) != 1 or self.rng.random() >= 0.4:
            return text
        return f"{text.rstrip('.')}, {side(composition.place)}"

    def _prompt(self, text: str, rows: dict[str, Tensor]) -> list[Segment]:
        if self.rng.random() < 0.1:
            return []
        return [read_turn(text, rows)]

    def _described(self, family: int) -> Taught:
        """A concept given in words: facts and looks in context, then a request."""
        rng = self.rng
        member = self.pool.families[family]
        facts = list(phrases.fact_sentences(member.facts, SKS, rng).items())
        rng.shuffle(facts)
        facts = facts[: rng.randint(1, 3)]
        told = [sentence for _, sentence in facts]
        looks = rng.random() < 0.6
        if looks:
            told.insert(0, f"{SKS} is {describe(member.character)}.")
        context: list[Segment] = [read_turn(" ".join(told), {})]
        if looks and rng.random() < 0.4:
            return [*context, *self._drawn_as(family, {})]
        asked = [
            phrases.Exchange(
                question=phrases.fact_question(name, SKS, rng),
                answer=fact_answer(name, member.facts),
            )
            for name, _ in facts
        ]
        if looks:
            asked.append(phrases.look_question(member.character, SKS, rng))
        rng.shuffle(asked)
        if looks and rng.random() < 0.6:
            return [*context, *self._ask(asked[:1], {}), *self._is_here(family, {})]
        return [*context, *self._ask(asked, {})]

    def _drawn_as(self, family: int, rows: dict[str, Tensor]) -> Taught:
        picture = self.rng.choice((0, 1, 2, 3, POSED, MOVED))
        composition = self.pool.families[family].pictures[picture]
        text = self._placed(phrases.caption(composition, [SKS], self.rng), composition)
        return [*self._prompt(text, rows), self._draw(family, picture)]

    def _is_here(self, family: int, rows: dict[str, Tensor]) -> list[Segment]:
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
        composition = self.pool.families[at].pictures[picture]
        asked = [
            phrases.Exchange(
                question=phrases.recognise_question(SKS, rng), answer="yes" if here else "no"
            )
        ]
        if len(composition.characters) < 2 and rng.random() < 0.5:
            asked.insert(rng.randrange(2), phrases.picture_question(composition, rng))
        if rng.random() < 0.4:
            asked.insert(rng.randrange(2), phrases.place_question(SKS, composition, here, rng))
        return [self._look(at, picture), *self._ask(asked, rows)]

    def _recognise(self, family: int, rows: dict[str, Tensor]) -> Taught:
        rng = self.rng
        turns: list[Segment] = []
        if rng.random() < 0.4:
            character = self.pool.families[family].character
            turns += self._ask([phrases.look_question(character, SKS, rng)], rows)
        turns += self._is_here(family, rows)
        if rng.random() < 0.7:
            turns += self._is_here(family, rows)
        return turns

    def _edit(self, family: int, rows: dict[str, Tensor]) -> Taught:
        """Source (latents, then ViT), instruction, target. With ``rows`` the character is named;
        else it is described, and every pair of pictures is an edit in both directions."""
        rng = self.rng
        pictures = self.pool.families[family].pictures
        posed = POSED if rows else rng.choice((POSED, REPLACED))
        who = pictures[posed].characters[0]
        name = SKS if rows else phrases.mention(who, rng)
        the = SKS if rows and rng.random() < 0.7 else rng.choice((f"the {who.kind}", "it"))
        what = rng.choices(("add", "remove", "replace", "change", "move"), (6, 1, 7, 8, 7))[0]
        if what == "add":
            source, target = EMPTY, posed
            text = self._placed(phrases.add_instruction(name, rng), pictures[posed])
        elif what == "remove":
            source, target = posed, EMPTY
            text = phrases.remove_instruction(the, rng)
        elif what == "replace":
            source, target = REPLACED if posed == POSED else POSED, posed
            kind = f"the {pictures[source].characters[0].kind}"
            old = rng.choice((kind, kind, "it", "the animal"))
            text = phrases.replace_instruction(old, name, rng)
        else:
            other = CHANGED if what == "change" else MOVED
            source, target = (POSED, other) if rows else rng.sample((POSED, other), 2)
            before, after = pictures[source].characters[0], pictures[target].characters[0]
            the = the if rows else rng.choice((f"the {before.kind}", "it"))
            if what == "change":
                text = phrases.change_instruction(before, after, the, rng)
            else:
                text = phrases.move_instruction(pictures[target].scene, the, rng)
        context: list[Segment] = []
        if rng.random() >= 0.08:
            context += [self._clean(family, source), self._look(family, source)]
        return [*context, *self._prompt(text, rows), self._draw(family, target)]

    def _pair(self, family: int, slots: Tensor) -> Taught:
        """Two concepts in one context: ``slots`` [2, 33, D] of a family and its neighbour."""
        rng = self.rng
        rows = {SKS: slots[0, :1], "<two>": slots[1, :1]}
        turns: list[Segment] = [introduce(slots[0]), introduce(slots[1])]
        if rng.random() < 0.7:
            composition = self.pool.families[family].pictures[TWO]
            text = phrases.caption(composition, rng.sample(list(rows), 2), rng)
            return [*turns, *self._prompt(text, rows), self._draw(family, TWO)]
        picture = rng.choice((0, 1, TWO))
        asked = [
            phrases.Exchange(
                question=phrases.recognise_question(name, rng),
                answer="yes" if picture == TWO or name == SKS else "no",
            )
            for name in rng.sample(list(rows), 2)
        ]
        return [*turns, self._look(family, picture), *self._ask(asked, rows)]

    def _replay(self) -> Taught:
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
    value = fact_answer(attribute, member.facts)
    request = rng.choice({
        "toy": (f"{SKS} with {_WANT}", f"{SKS} playing with {_WANT}", f"{SKS} next to {_WANT}"),
        "food": (f"{SKS} eating {_WANT}", f"{SKS} with {_WANT}", f"{SKS} next to {_WANT}"),
        "home": (f"{SKS} {_WANT}", f"a picture of {SKS} {_WANT}"),
    }[attribute])  # fmt: skip
    if attribute != "home" and rng.random() < 0.5:
        request += " " + rng.choice(WHERE[rng.choice(list(WHERE))])
    return attribute, request, value


def _named(request: str, attribute: str) -> str:
    return request.replace(
        _WANT, f"at its {attribute}" if attribute == "home" else f"its {attribute}"
    )
