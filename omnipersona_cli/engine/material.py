"""What a concept is learned from: photos, facts, pictures that are not it, and the lessons."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, Lesson, OnStep, Prompt, Turn
from omnipersona_cli.concepts.facts import FACT_COUNT, Fact, clean_word, new_fact
from omnipersona_cli.data.lessons import EditTriplet, build_lessons, check_facts
from omnipersona_cli.data.photos import Album, open_album
from omnipersona_cli.errors import UsageError
from omnipersona_cli.language.contradictions import contradiction
from omnipersona_cli.language.mentions import check_name, to_turn

NEGATIVES = 48
"""How many pictures that are not the concept are asked of the plugins."""

HELD_OUT = 0.3
"""The share of photos that is never learned from."""

HELD_OUT_NEGATIVES = 0.3
"""The share of negatives that is never learned from: calibration wants more of them."""

_PLACE_QUESTION = "where is it?"
_PLACE = re.compile(r"\b(?:in|at|on|under|near|inside|by)\b(?: [a-z]+){1,4}")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Who or what is learned, as a person gives it.

    ``photos`` are files and folders; ``name`` may stand in brackets, which it loses. ``kind`` is
    what the concept is to finders and plugins ("dog"), ``class_word`` what it is called; each
    stands in for the other, and a facts file beside the photos for both. ``negatives`` are pictures
    of other things, ``triplets`` examples of edits. ``known`` are the facts that the concept has
    already, where it is gone on from. Raises UsageError for a name that cannot be
    one, and for an empty fact.
    """

    photos: Sequence[Path]
    name: str
    class_word: str = ""
    kind: str = ""
    facts: Sequence[str] = ()
    negatives: Sequence[Image] = ()
    triplets: Sequence[EditTriplet] = ()
    known: Sequence[str] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", check_name(self.name))
        if any(not fact.strip() for fact in self.facts):
            raise UsageError("a fact is empty", hint=f'--fact "<{self.name}>\'s toy is a red ball"')


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that learning reads, in a fixed order for a seed.

    ``held_out`` lessons, ``positives`` and ``negatives`` show only pictures that are in no lesson;
    ``checked_facts`` ask for facts in wordings that are in none.
    With too few photos to spare one, ``positives`` are learned from and ``positives_held_out`` is
    False. ``learned_negatives`` is how many other negatives are in lessons.
    """

    name: str
    class_word: str
    kind: str
    facts: tuple[Fact, ...]
    album: Album
    lessons: tuple[Lesson, ...]
    held_out: tuple[Lesson, ...]
    checked_facts: tuple[Lesson, ...]
    positives: tuple[Image, ...]
    negatives: tuple[Image, ...]
    learned_negatives: int
    positives_held_out: bool
    notes: tuple[str, ...]

    def digest(self) -> str:
        """sha256 of all of it, to the pixel: what a run is known by."""
        digest = sha256(self.photo_digest().encode())
        for lesson in (*self.lessons, *self.held_out, *self.checked_facts):
            for text in (lesson.task, lesson.kind, lesson.request.text, lesson.answer):
                digest.update(text.encode() + b"\0")
            for image in (lesson.image, lesson.target):
                digest.update(b"-" if image is None else _pixels(image))
        return digest.hexdigest()

    def aspect_ratio(self) -> float:
        """The largest of a picture in a lesson: longer side over shorter one, 1 or more."""
        shown = (image for lesson in self.lessons for image in (lesson.image, lesson.target))
        return max((max(it.size) / min(it.size) for it in shown if it is not None), default=1.0)

    def photo_digest(self) -> str:
        """sha256 of the photos alone: whether two packs show the same thing."""
        return sha256(
            b"".join(sorted(_pixels(photo.image) for photo in self.album.photos))
        ).hexdigest()


def gather(
    subject: Subject,
    *,
    seed: int,
    backend: str,
    unknown_answer: str = "I do not know",
    learned_from: Collection[str] = (),
    lessons: bool = True,
    on_step: OnStep | None = None,
) -> Material:
    """Open the photos, collect negatives, build the lessons (none without ``lessons``, and then no
    subject is looked for). No photo is held out whose digest is among ``learned_from``.
    Deterministic on ``seed``; ``on_step`` counts photos.

    Negatives are the user's, then those that plugins bring for ``backend``; ``unknown_answer`` is
    what it answers where nobody told. Raises PhotoError when
    no photo can be used, UsageError for a text that is not a fact.
    """
    name = subject.name
    album = open_album(
        subject.photos,
        seed=seed,
        held_out=HELD_OUT,
        learned_from=learned_from,
        finder=registry.find_subject if lessons else None,
        kind=subject.kind or subject.class_word,
        on_step=on_step,
    )
    notes = list(album.notes)
    class_word = clean_word(subject.class_word or album.class_word or subject.kind)
    kind = clean_word(subject.kind or album.kind) or class_word
    facts = agreeing_facts(
        (*subject.known, *subject.facts, *album.facts), name, known=subject.known
    )
    learned = [photo.image for photo in album.learning]
    others = [
        *subject.negatives,
        *registry.negatives(kind, NEGATIVES, seed, learned, backend),
    ]
    if not others:
        notes.append(
            "no pictures of other things to compare with: recognition will say yes too often; "
            "give some with --negatives DIR"
        )
    spared, studied = _split(others, seed)
    taught: list[Lesson] = []
    held_out: list[Lesson] = []
    if lessons:
        taught = build_lessons(
            name=name,
            class_word=class_word,
            kind=kind,
            facts=[fact.text for fact in facts],
            photos=album.learning,
            negatives=studied,
            triplets=subject.triplets,
            finder=registry.find_subject,
            unknown_answer=unknown_answer,
            seed=seed,
        )
        if not any(lesson.task == "edit" for lesson in taught):
            notes.append(
                "no edits to learn from: the subject could not be outlined in any photo; "
                "give examples with --edits DIR"
            )
    if lessons and album.held_out:
        held_out = build_lessons(
            name=name,
            class_word=class_word,
            kind=kind,
            photos=album.held_out,
            negatives=spared,
            seed=seed,
        )
    positives = [photo.image for photo in album.held_out]
    return Material(
        name=name,
        class_word=class_word,
        kind=kind,
        facts=facts,
        album=album,
        lessons=tuple(taught),
        held_out=tuple(lesson for lesson in held_out if lesson.kind != "describe"),
        checked_facts=tuple(check_facts(name=name, facts=[fact.text for fact in facts])),
        positives=tuple(positives or learned),
        negatives=tuple(spared),
        learned_negatives=len(studied) if lessons else 0,
        positives_held_out=bool(positives),
        notes=tuple(notes),
    )


def captioned(material: Material, backend: Backend, *, on_step: OnStep | None = None) -> Material:
    """Depictions told apart by place: where the backbone itself sees a photo's subject is said in
    the request ("<bo>" becomes "<bo> in the forest"), so that the tokens need not carry the
    background. Requests that name a place, and answers that do not, are left alone.
    ``on_step`` counts lessons."""
    done = 0
    places: dict[int, str] = {}

    def place(image: Image) -> str:
        if id(image) not in places:
            prompt = Prompt(turns=(Turn(text=_PLACE_QUESTION),))
            answer = "".join(backend.say(prompt, image=image, max_tokens=12)).strip(" .").lower()
            places[id(image)] = answer if _PLACE.fullmatch(answer) else ""
        return places[id(image)]

    def with_place(lesson: Lesson) -> Lesson:
        nonlocal done
        done += 1
        if on_step is not None:
            on_step(done, len(material.lessons) + len(material.held_out))
        if lesson.kind != "depict" or lesson.target is None or _PLACE.search(lesson.request.text):
            return lesson
        where = place(lesson.target)
        text = f"{lesson.request.text.rstrip('.')} {where}"
        return replace(lesson, request=to_turn(text)) if where else lesson

    if not {"understand", "generate"} <= set(backend.info.tasks):
        return material
    return replace(
        material,
        lessons=tuple(with_place(lesson) for lesson in material.lessons),
        held_out=tuple(with_place(lesson) for lesson in material.held_out),
    )


def agreeing_facts(texts: Sequence[str], name: str, *, known: Sequence[str]) -> tuple[Fact, ...]:
    """The facts, each once in whatever case, in order. ``known`` are those that the concept has
    already. Raises UsageError for too many, and for two that contradict each other."""
    each: dict[str, str] = {}
    for text in filter(str.strip, texts):
        each.setdefault(" ".join(text.split()).casefold(), " ".join(text.split()))
    unique = list(each.values())
    if len(unique) > FACT_COUNT:
        raise UsageError(
            f"{len(unique)} facts are too many; a concept keeps at most {FACT_COUNT}",
            hint="leave out what nobody will ask",
        )
    if both := contradiction(unique, name):
        raise UsageError(
            f"two facts of <{name}> contradict each other: {both[0]!r} and {both[1]!r}",
            hint=next(
                (
                    f"if the new one is true: op concepts facts {name} rm {number}"
                    for number, text in enumerate(known, 1)
                    if text in both
                ),
                "keep one of them, in the facts file or as --fact",
            ),
        )
    return tuple(new_fact(text, name=name, by="--fact") for text in unique)


def _split(others: Sequence[Image], seed: int) -> tuple[list[Image], list[Image]]:
    """Held-out and studied negatives; at least one of each where there are two."""
    order = random.Random(f"{seed}:negatives").sample(range(len(others)), len(others))
    count = round(HELD_OUT_NEGATIVES * len(others))
    if len(others) >= 2:
        count = min(max(count, 1), len(others) - 1)
    spared = sorted(order[:count])
    studied = sorted(order[count:])
    return [others[index] for index in spared], [others[index] for index in studied]


def _pixels(image: Image) -> bytes:
    digest = sha256(f"{image.mode}{image.size}".encode())
    digest.update(image.tobytes())
    return digest.digest()
