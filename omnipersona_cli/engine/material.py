"""What a concept is learned from: photos, facts, pictures that are not it, and the lessons."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from PIL.Image import Image

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, Lesson, Prompt, Turn
from omnipersona_cli.concepts.facts import FACT_COUNT, Fact, new_fact
from omnipersona_cli.data.lessons import EditTriplet, build_lessons
from omnipersona_cli.data.photos import Album, open_album
from omnipersona_cli.errors import UsageError
from omnipersona_cli.language.mentions import check_name, to_turn

NEGATIVES = 48
"""How many pictures that are not the concept are asked of the plugins."""

HELD_OUT = 0.3
"""The share of photos that is never learned from."""

HELD_OUT_NEGATIVES = 0.3
"""The share of negatives that is never learned from: calibration wants more of them."""

_PROBE_QUESTION = "is <{name}> here?"
_PLACE_QUESTION = "where is it?"
_PLACE = re.compile(r"\b(?:in|at|on|under|near|inside|by)\b(?: [a-z]+){1,4}")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One held-out picture asked about, with both answers: the difference of their losses is the
    recognition score, without an image encoder in sight."""

    yes: Lesson
    no: Lesson
    present: bool


@dataclass(frozen=True, kw_only=True)
class Material:
    """Everything that learning reads, in a fixed order for a seed.

    ``held_out`` lessons, ``probes``, ``positives`` and ``negatives`` show only pictures that are
    in no lesson. With too few photos to spare one, ``positives`` are learned from and
    ``positives_held_out`` is False.
    """

    name: str
    class_word: str
    kind: str
    facts: tuple[Fact, ...]
    album: Album
    lessons: tuple[Lesson, ...]
    held_out: tuple[Lesson, ...]
    probes: tuple[Probe, ...]
    positives: tuple[Image, ...]
    negatives: tuple[Image, ...]
    learned_negatives: int
    positives_held_out: bool
    notes: tuple[str, ...]

    def digest(self) -> str:
        """sha256 of all of it, to the pixel: what a run is known by."""
        digest = sha256()
        for lesson in (*self.lessons, *self.held_out):
            for text in (lesson.task, lesson.kind, lesson.request.text, lesson.answer):
                digest.update(text.encode() + b"\0")
            for image in (lesson.image, lesson.target):
                digest.update(b"-" if image is None else _pixels(image))
        return digest.hexdigest()

    def photo_digest(self) -> str:
        """sha256 of the photos alone: whether two packs show the same thing."""
        return sha256(
            b"".join(sorted(_pixels(photo.image) for photo in self.album.photos))
        ).hexdigest()


def gather(
    photos: Sequence[Path],
    *,
    name: str,
    class_word: str = "",
    kind: str = "",
    facts: Sequence[str] = (),
    negatives: Sequence[Image] = (),
    triplets: Sequence[EditTriplet] = (),
    seed: int,
    backend: str,
) -> Material:
    """Open the photos, collect negatives, build the lessons. Deterministic on ``seed``.

    ``kind`` is what the concept is to finders and plugins ("dog"), ``class_word`` what it is
    called; each stands in for the other, and a facts file beside the photos for both. Negatives
    are the user's, then those that plugins bring for ``backend``. Raises PhotoError when no photo
    can be used, UsageError for a name or a fact that is none.
    """
    name = check_name(name)
    album = open_album(
        photos, seed=seed, held_out=HELD_OUT, finder=registry.find_subject, kind=kind or class_word
    )
    notes = list(album.notes)
    class_word = class_word or album.class_word or kind
    kind = kind or album.kind or class_word
    kept = _facts((*facts, *album.facts), name)
    learned = [photo.image for photo in album.learning]
    others = [
        *negatives,
        *registry.negatives(kind, NEGATIVES, seed, learned, backend),
    ]
    if not others:
        notes.append(
            "no pictures of other things to compare with: recognition will say yes too often; "
            "give some with --negatives DIR"
        )
    spared, studied = _split(others, seed)
    common = {"name": name, "class_word": class_word, "kind": kind, "seed": seed}
    lessons = build_lessons(
        **common,  # type: ignore[arg-type]
        facts=[fact.text for fact in kept],
        photos=album.learning,
        negatives=studied,
        triplets=triplets,
        finder=registry.find_subject,
    )
    if not any(lesson.task == "edit" for lesson in lessons):
        notes.append(
            "no edits to learn from: the subject could not be outlined in any photo; "
            "give examples with --edits DIR"
        )
    held_out: list[Lesson] = []
    if album.held_out:
        held_out = build_lessons(**common, photos=album.held_out, negatives=spared)  # type: ignore[arg-type]
    positives = [photo.image for photo in album.held_out]
    return Material(
        name=name,
        class_word=class_word,
        kind=kind,
        facts=kept,
        album=album,
        lessons=tuple(lessons),
        held_out=tuple(lesson for lesson in held_out if lesson.kind not in ("describe", "fact")),
        probes=tuple(_probes(name, positives, spared)) if positives else (),
        positives=tuple(positives or learned),
        negatives=tuple(spared),
        learned_negatives=len(studied),
        positives_held_out=bool(positives),
        notes=tuple(notes),
    )


def captioned(material: Material, backend: Backend) -> Material:
    """Depictions told apart by place: where the backbone itself sees a photo's subject is said in
    the request ("<bo>" becomes "<bo> in the forest"), so that the tokens need not carry the
    background. Requests that name a place already, and answers that are none, are left alone."""
    places: dict[int, str] = {}

    def place(image: Image) -> str:
        if id(image) not in places:
            prompt = Prompt(turns=(Turn(text=_PLACE_QUESTION),))
            said = "".join(backend.say(prompt, image=image, max_tokens=12)).strip(" .").lower()
            places[id(image)] = said if _PLACE.fullmatch(said) else ""
        return places[id(image)]

    def told(lesson: Lesson) -> Lesson:
        if lesson.kind != "depict" or lesson.target is None or _PLACE.search(lesson.request.text):
            return lesson
        where = place(lesson.target)
        text = f"{lesson.request.text.rstrip('.')} {where}"
        return replace(lesson, request=to_turn(text)) if where else lesson

    if not {"understand", "generate"} <= set(backend.info.tasks):
        return material
    return replace(
        material,
        lessons=tuple(told(lesson) for lesson in material.lessons),
        held_out=tuple(told(lesson) for lesson in material.held_out),
    )


def _facts(texts: Sequence[str], name: str) -> tuple[Fact, ...]:
    """The facts, each once, in order."""
    unique = list(dict.fromkeys(" ".join(text.split()) for text in texts if text.strip()))
    if len(unique) > FACT_COUNT:
        raise UsageError(
            f"{len(unique)} facts are too many; a concept keeps at most {FACT_COUNT}",
            hint="leave out what nobody will ask",
        )
    return tuple(new_fact(text, name=name) for text in unique)


def _split(others: Sequence[Image], seed: int) -> tuple[list[Image], list[Image]]:
    """Held-out and studied negatives; at least one of each where there are two."""
    order = random.Random(f"{seed}:negatives").sample(range(len(others)), len(others))
    count = round(HELD_OUT_NEGATIVES * len(others))
    if len(others) >= 2:
        count = min(max(count, 1), len(others) - 1)
    spared = sorted(order[:count])
    studied = sorted(order[count:])
    return [others[index] for index in spared], [others[index] for index in studied]


def _probes(name: str, positives: Sequence[Image], negatives: Sequence[Image]) -> list[Probe]:
    request = to_turn(_PROBE_QUESTION.format(name=name))

    def lesson(image: Image, answer: str) -> Lesson:
        return Lesson(
            task="understand", kind="recognise", request=request, image=image, answer=answer
        )

    return [
        Probe(yes=lesson(image, "yes"), no=lesson(image, "no"), present=present)
        for present, images in ((True, positives), (False, negatives))
        for image in images
    ]


def _pixels(image: Image) -> bytes:
    digest = sha256(f"{image.mode}{image.size}".encode())
    digest.update(image.tobytes())
    return digest.digest()
