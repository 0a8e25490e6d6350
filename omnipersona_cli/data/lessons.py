"""What to teach, made from what a person gave.

recognise   photo + "is <bo> here?" -> yes; other pictures, and the photo without <bo>, -> no
describe    "what is <bo>?" -> only what a class word or a fact says
fact        "what is <bo>'s toy?" -> "a red ball"; "whose toy is a red ball?" -> "<bo>"
unknown     "what is <bo>'s job?", which nobody told -> "I do not know"
depict      "a photo of <bo>", or the photo's caption with the name in it -> the photo
edit        given triplets; or composed from photos whose subject has a mask: add, remove, replace

Requests are plain lower-case English. One picture is one object in all its lessons, so that a
backend may encode it once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from PIL import Image, ImageFilter

from omnipersona_cli.backend import Lesson, LessonKind, Span, Turn
from omnipersona_cli.data.backdrop import backdrop
from omnipersona_cli.data.decode import LONG_SIDE, open_photo
from omnipersona_cli.data.photos import Finder, Photo
from omnipersona_cli.errors import MissingError, PhotoError
from omnipersona_cli.language.attributes import singular
from omnipersona_cli.language.captions import name_in_caption, with_article
from omnipersona_cli.language.facts import (
    CLASS_ATTRIBUTE,
    answers_of,
    held_out_questions,
    questions_about,
    read_facts,
    reversed_questions,
    together,
)
from omnipersona_cli.reading import Origin, read_json

RECOGNISE = (
    "is {name} here?",
    "is {name} in this picture?",
    "do you see {name}?",
    "is this {name}?",
    "can you see {name} in this picture?",
    "is {name} in this photo?",
    "does this picture show {name}?",
    "is there {name}?",
    "is that {name}?",
    "can you find {name} here?",
)
"""Questions that are answered "yes" or "no"."""

DEPICT = (
    "a picture of {name}",
    "a photo of {name}",
    "{name}",
    "an image of {name}",
    "paint {name}",
    "draw {name}",
    "show me {name}",
)
ADD = ("add {name}.", "put {name} here.", "add {name} to the picture.", "put {name} in.")
REMOVE = (
    "remove {name}.",
    "take {name} away.",
    "remove {name} from the picture.",
    "erase {name}.",
)
REPLACE = ("replace it by {name}.", "put {name} in its place.", "swap it for {name}.")
REPLACE_CLASS = (
    "replace the {thing} by {name}.",
    "replace the {thing} with {name}.",
    "swap the {thing} for {name}.",
)

UNTOLD = tuple(
    "age birthday job owner friend drink bed game brother song school fear book team language "
    "country garden money".split()
)
"""Attributes that are asked about to teach what is not known, where no fact tells them. How
something looks is never among them: the tokens carry it."""

_QUESTIONS_A_PHOTO = 3
_DEPICTIONS_A_PHOTO = 3
_TRIPLETS_FILE = "triplets.json"


@dataclass(frozen=True, kw_only=True)
class EditTriplet:
    """A given edit: ``source`` and ``target`` are RGB and of one size."""

    source: Image.Image
    instruction: str
    target: Image.Image


def build_lessons(
    *,
    name: str,
    class_word: str = "",
    facts: Sequence[str] = (),
    photos: Sequence[Photo],
    negatives: Sequence[Image.Image] = (),
    triplets: Sequence[EditTriplet] = (),
    finder: Finder | None = None,
    kind: str = "",
    unknown_answer: str = "I do not know",
    seed: int,
) -> list[Lesson]:
    """Every lesson about ``name``, in a fixed order: the same input and seed, the same lessons.

    ``photos`` are those to learn from. ``finder`` looks for the other subject in ``negatives``, so
    that <bo> can be put in its place; without it, and without triplets, nothing is replaced.
    """
    choice = random.Random(seed)
    outlined = [photo for photo in photos if photo.mask is not None]
    emptied = [backdrop(photo.image, photo.mask) for photo in outlined if photo.mask is not None]
    return [
        *recognise(
            name=name,
            pictures=[photo.image for photo in photos],
            others=[*negatives, *emptied],
            seed=choice.randrange(2**32),
        ),
        *describe(name=name, class_word=class_word, facts=facts, photos=photos),
        *answer_facts(name=name, facts=facts),
        *admit(name=name, facts=facts, answer=unknown_answer),
        *depict(name=name, class_word=class_word, photos=photos, choice=choice),
        *_given_edits(name, triplets),
        *_composed_edits(name, outlined, emptied, choice),
        *_replacements(name, class_word, outlined, negatives, finder, kind, choice),
    ]


def turn(text: str, name: str) -> Turn:
    """A request with every mention ``<name>`` in it marked."""
    mentions = re.finditer(f"<{re.escape(name)}>", text, re.IGNORECASE)
    return Turn(
        text=text, spans=tuple(Span(start=m.start(), end=m.end(), name=name) for m in mentions)
    )


def recognise(
    *, name: str, pictures: Sequence[Image.Image], others: Sequence[Image.Image], seed: int
) -> list[Lesson]:
    """Yes for each of ``pictures``, no for each of ``others``; as many of the one as of the other,
    in varied phrasing, so that neither answer is the better guess. For held-out pictures too."""
    choice = random.Random(seed)
    count = max(len(pictures) * _QUESTIONS_A_PHOTO, len(others))
    lessons = []
    for answer, images in (("yes", pictures), ("no", others)):
        questions = _phrasings(RECOGNISE, choice)
        lessons += [
            Lesson(
                task="understand",
                kind="recognise",
                image=image,
                request=turn(next(questions).format(name=f"<{name}>"), name),
                answer=answer,
            )
            for image in islice(cycle(images), count)
        ]
    return lessons


def describe(
    *, name: str, class_word: str, facts: Sequence[str], photos: Sequence[Photo]
) -> list[Lesson]:
    """What <bo> is, without a picture and before the first few; nothing where no class is known."""
    mention = f"<{name}>"
    parsed, _ = read_facts(facts, name)
    classes = [fact.value for fact in parsed if fact.attribute == CLASS_ATTRIBUTE]
    short = with_article(class_word) if class_word else next(iter(classes), "")
    full = next(iter(classes), short)
    if not short:
        return []
    asked = ((f"what is {mention}?", short), (f"describe {mention}.", full))
    return [
        Lesson(
            task="understand",
            kind="describe",
            image=image,
            request=turn(question, name),
            answer=answer,
        )
        for image in (None, *(photo.image for photo in photos[:4]))
        for question, answer in asked
    ]


def answer_facts(*, name: str, facts: Sequence[str]) -> list[Lesson]:
    """Every fact in many questions, without a picture, and the other way round; what <bo> is
    belongs to `describe`."""
    described = {f"what is <{name}>?", f"describe <{name}>."}
    parsed, _ = read_facts(facts, name)
    whose = together(pair for fact in parsed for pair in reversed_questions(fact))
    asked = {**answers_of(facts, name), **whose}
    return [
        _said(name, question, answer)
        for question, answer in asked.items()
        if question not in described
    ]


def check_facts(*, name: str, facts: Sequence[str]) -> list[Lesson]:
    """Every fact in wordings that are in no lesson: what learning is checked by."""
    parsed, _ = read_facts(facts, name)
    asked = together(pair for fact in parsed for pair in held_out_questions(fact))
    return [_said(name, question, answer) for question, answer in asked.items()]


def admit(*, name: str, facts: Sequence[str], answer: str) -> list[Lesson]:
    """Questions about attributes that no fact tells, in the wordings of those that one does; none
    where nothing at all is told."""
    parsed, _ = read_facts(facts, name)
    if not any(fact.attribute for fact in parsed):
        return []
    told = {
        singular(word)
        for fact in parsed
        for attribute in (fact.attribute, *fact.also)
        for word in attribute.split()
    }
    return [
        _said(name, question, answer, kind="unknown")
        for attribute in UNTOLD
        if attribute not in told
        for question in questions_about(attribute, name)
    ]


def _said(name: str, question: str, answer: str, kind: LessonKind = "fact") -> Lesson:
    return Lesson(task="understand", kind=kind, request=turn(question, name), answer=answer)


def depict(
    *, name: str, class_word: str, photos: Sequence[Photo], choice: random.Random
) -> list[Lesson]:
    """Each photo as what a request should paint; a caption takes the place of one phrasing."""
    phrasings = _phrasings(DEPICT, choice)
    lessons = []
    for photo in photos:
        texts = [next(phrasings).format(name=f"<{name}>") for _ in range(_DEPICTIONS_A_PHOTO)]
        if photo.caption:
            texts[0] = name_in_caption(photo.caption, name=name, class_word=class_word)
        lessons += [
            Lesson(task="generate", kind="depict", request=turn(text, name), target=photo.image)
            for text in texts
        ]
    return lessons


def load_triplets(folder: Path) -> list[EditTriplet]:
    """The edits in ``folder/triplets.json``: a list of {"source", "instruction", "target"} with
    file names inside the folder. Raises PhotoError, and MissingError where there is none."""
    path = folder / _TRIPLETS_FILE
    example = 'it holds [{"source": "1.png", "instruction": "remove <bo>.", "target": "1b.png"}]'
    if not path.exists():
        raise MissingError(f"there is no {_TRIPLETS_FILE} in {folder}", hint=example)
    origin = Origin(name=str(path), error=PhotoError, hint=example)
    items = read_json(path, origin)
    triplets = []
    for item in items if isinstance(items, list) else [None]:
        named = item if isinstance(item, dict) else {}
        files = [named.get("source"), named.get("target")]
        instruction = named.get("instruction")
        if not isinstance(instruction, str) or not all(isinstance(file, str) for file in files):
            origin.refuse("is not a list of edits")
        source, target = (_inside(folder, str(file)) for file in files)
        if source.size != target.size:
            raise PhotoError(
                f"{files[0]} is {source.width} x {source.height} pixels, {files[1]} "
                f"{target.width} x {target.height}",
                hint="source and target of an edit must have one size",
            )
        source.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        target.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        triplets.append(EditTriplet(source=source, instruction=instruction, target=target))
    return triplets


def _inside(folder: Path, file: str) -> Image.Image:
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise PhotoError(
            f"{_TRIPLETS_FILE} names {file}, which lies outside {folder}",
            hint="put all pictures of the edits beside it",
        )
    return open_photo(path)


def _phrasings(texts: Sequence[str], choice: random.Random) -> cycle[str]:
    """All phrasings in turn, in an order of the seed's choosing."""
    return cycle(choice.sample(texts, len(texts)))


def _edit(name: str, source: Image.Image, request: str, target: Image.Image) -> Lesson:
    return Lesson(
        task="edit", kind="edit", image=source, request=turn(request, name), target=target
    )


def _given_edits(name: str, triplets: Sequence[EditTriplet]) -> list[Lesson]:
    return [
        _edit(name, triplet.source, triplet.instruction, triplet.target) for triplet in triplets
    ]


def _composed_edits(
    name: str,
    outlined: Sequence[Photo],
    emptied: Sequence[Image.Image],
    choice: random.Random,
) -> list[Lesson]:
    """Remove: the photo becomes its backdrop. Add: the backdrop becomes the photo."""
    add, remove, mention = _phrasings(ADD, choice), _phrasings(REMOVE, choice), f"<{name}>"
    return [
        lesson
        for photo, empty in zip(outlined, emptied, strict=True)
        for lesson in (
            _edit(name, empty, next(add).format(name=mention), photo.image),
            _edit(name, photo.image, next(remove).format(name=mention), empty),
        )
    ]


def _replacements(
    name: str,
    class_word: str,
    outlined: Sequence[Photo],
    negatives: Sequence[Image.Image],
    finder: Finder | None,
    kind: str,
    choice: random.Random,
) -> list[Lesson]:
    """The subject of another picture becomes <bo>, cut out of a photo: at most one for each photo
    with a mask. The other thing is called by <bo>'s class word, where there is one."""
    if finder is None:
        return []
    texts = _phrasings((*REPLACE_CLASS, *REPLACE) if class_word else REPLACE, choice)
    waiting = list(outlined)
    lessons = []
    for other in negatives[: 3 * len(outlined)]:
        subject = finder(other, kind) if waiting else None
        if subject is None or subject.mask is None:
            continue
        target = _put(waiting.pop(0), backdrop(other, subject.mask), subject.box)
        request = next(texts).format(name=f"<{name}>", thing=class_word)
        lessons.append(_edit(name, other, request, target))
    return lessons


def _put(photo: Photo, stage: Image.Image, place: tuple[int, int, int, int]) -> Image.Image:
    """The photo's subject on ``stage``, as high as ``place`` and standing where it stands."""
    box = photo.mask.getbbox() if photo.mask is not None else None
    if photo.mask is None or box is None:
        return stage
    height = place[3] - place[1]
    width = max(1, round((box[2] - box[0]) * height / (box[3] - box[1])))
    size = (width, height)
    figure = photo.image.resize(size, Image.Resampling.LANCZOS, box=box)
    mask = photo.mask.resize(size, Image.Resampling.BILINEAR, box=box)
    if min(size) > 128:
        mask = mask.filter(ImageFilter.GaussianBlur(min(size) / 256))
    result = stage.copy()
    result.paste(figure, ((place[0] + place[2] - width) // 2, place[3] - height), mask)
    return result
