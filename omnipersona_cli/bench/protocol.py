"""What each task asks of a method, and how the answer is scored.

A *strict* score is ours: the calibrated verdict or the first whole word, test photos for likeness,
and a judge that failed counts as nothing right. *Compat* follows the released evaluators where they
are described: "yes" anywhere in the answer, training photos, failures dropped. Scores that could
not be taken are None; the report says how many.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import torch
from PIL.Image import Image

from omnipersona_cli import engine
from omnipersona_cli.backend import Backend, Prompt, Turn
from omnipersona_cli.bench.dataset import BenchTask, Concept, Item
from omnipersona_cli.bench.judging import Panel
from omnipersona_cli.bench.methods import (
    BenchMethod,
    beside,
    described,
    description,
    facts_in_context,
)
from omnipersona_cli.bench.metrics import (
    Profile,
    bleu,
    contains,
    exact,
    outside,
    said_yes,
    ssim,
)
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.data.decode import open_photo
from omnipersona_cli.engine.tokens import from_slot
from omnipersona_cli.hookspecs import JudgeKind
from omnipersona_cli.language.mentions import to_turn

LOOKS_OF_EDITS = ("add", "replace", "background", "accessory")
"""Edits after which the concept is in the picture and should look like itself."""

PEOPLE = frozenset({"person", "man", "woman", "boy", "girl", "child", "baby", "people"})
"""Class words of those whose faces are compared."""

MEASURES: Mapping[str, tuple[str, str]] = {
    "clip": ("clip-i", "clip-i-train"),
    "dino": ("dino", "dino-train"),
}
"""What likeness to test photos, and to those that were learned from, is called by each judge."""

OTHER_MEASURES = ("likeness", "memorisation")

MOST_TOKENS = 100
"""The longest answer, as UniCTokens takes it."""

_PORTRAIT = re.compile(r"an? (?:photo|picture|image) of an? \w+", re.IGNORECASE)
"""The plain picture, which alone is asked for a face."""

PROBE, PROBE_QUESTION = "a picture of a cat", "what is it?"

NEEDS: Mapping[BenchTask, str] = {
    "recognition": "understand",
    "vqa": "understand",
    "qa": "understand",
    "generation": "generate",
    "parg": "generate",
    "editing": "edit",
    "forgetting": "generate",
}
"""What a backend must do for a task."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """All that is the same for every item of one concept, method and seed. ``library`` holds the
    learned tokens; None where the method learns none. ``bare`` is what `probe` gave before anything
    was learned."""

    concept: Concept
    method: BenchMethod
    backend: Backend
    library: Library | None
    panel: Panel
    profile: Profile
    seed: int
    bare: str = ""


@dataclass(kw_only=True)
class Outcome:
    """What came back. ``scores`` are 0 to 1 by name; ``failed`` names the scores that a judge
    could not give; ``judges`` say who gave which, and ``details`` what they said."""

    answer: str = ""
    rewritten: str = ""
    trace: list[dict[str, str]] = field(default_factory=list)
    probability: float | None = None
    image: Image | None = None
    seed: int = 0
    scores: dict[str, float | None] = field(default_factory=dict)
    judges: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def asked_of(method: BenchMethod, backend: Backend, items: Sequence[Item]) -> list[Item]:
    """The items that a method can be asked: the backend does the task and takes such tokens, and a
    method without tokens has a way to do it."""
    if method.recipe == "deep" and not backend.info.deep_layers:
        return []
    return [
        item
        for item in items
        if NEEDS[item.task] in backend.info.tasks
        and not (method.context == "pictures" and NEEDS[item.task] == "edit")
    ]


def run_item(setup: Setup, item: Item, paint_seed: int) -> Outcome:
    """Ask, and score the answer. Everything follows from the seeds."""
    outcome = Outcome(seed=paint_seed)
    if item.task == "forgetting":
        found = probe(setup.backend, setup.concept, setup.library)
        outcome.scores["unchanged"] = float(found == setup.bare)
        return outcome
    if item.task in ("recognition", "vqa", "qa"):
        _ask(setup, item, outcome)
    elif item.task == "editing":
        _edit(setup, item, outcome)
    else:
        _paint(setup, item, outcome)
    _score(setup, item, outcome)
    return outcome


def forgetting_probe(concept: Concept) -> Item:
    """The item that asks whether anything changed where the concept is not mentioned."""
    return Item(
        concept=concept.name,
        task="forgetting",
        id="forgetting-000",
        kind="probe",
        prompt=PROBE,
        gold="as before",
    )


def probe(backend: Backend, concept: Concept, library: Library | None) -> str:
    """sha256 of an answer and a picture without a concept: straight from the backbone, or through
    the engine with the concept's library at hand. The two must be equal to the bit."""
    answer, painted = "", b""
    image = open_photo((concept.test_photos or concept.photos)[0])
    if "understand" in backend.info.tasks and library is not None:
        answer = engine.ask(PROBE_QUESTION, image=image, backend=backend, library=library).text
    elif "understand" in backend.info.tasks:
        turns = (Turn(text=PROBE_QUESTION),)
        answer = "".join(backend.say(Prompt(turns=turns), image=image, max_tokens=MOST_TOKENS))
    if "generate" in backend.info.tasks and library is not None:
        (made,) = engine.gen(PROBE, seed=1, steps=2, backend=backend, library=library)
        painted = made.image.convert("RGB").tobytes()
    elif "generate" in backend.info.tasks:
        images = backend.gen(
            Prompt(turns=(Turn(text=PROBE),)), size=None, steps=2, guidance=None, seeds=(1,)
        )
        painted = next(iter(images)).convert("RGB").tobytes()
    return sha256(answer.strip().encode() + b"\0" + painted).hexdigest()


# -- asking ------------------------------------------------------------------------------------


def _ask(setup: Setup, item: Item, outcome: Outcome) -> None:
    image = None if item.image is None else open_photo(item.image)
    if setup.method.context != "tokens":
        prompt, shown = _in_context(setup, item.prompt, image)
        pieces = setup.backend.say(prompt, image=shown, max_tokens=MOST_TOKENS)
        outcome.answer = "".join(pieces).strip()
        outcome.rewritten = prompt.text
        return
    answer = engine.ask(
        item.prompt,
        image=image,
        concepts=(setup.concept.name,),
        max_tokens=MOST_TOKENS,
        backend=setup.backend,
        library=setup.library,
    )
    outcome.answer, outcome.probability = answer.text, answer.probability
    outcome.rewritten = item.prompt
    if item.task == "recognition" and image is not None:
        outcome.scores["raw"] = _raw(setup, item, image)
        if answer.probability is not None:
            outcome.scores["threshold"] = float((answer.probability >= 0.5) == _present(item))


@torch.no_grad()
def _raw(setup: Setup, item: Item, image: Image) -> float:
    """Whether the uncalibrated answer is right: "yes" likelier than "no", or not."""
    assert setup.library is not None  # a method with tokens has a library
    pack = setup.library.load(setup.concept.name)
    prompt = Prompt(turns=(to_turn(item.prompt),), concepts=(from_slot(pack, setup.backend),))
    yes, no = setup.backend.score(prompt, ("yes", "no"), image=image).tolist()
    return float((yes >= no) == _present(item))


def _in_context(setup: Setup, text: str, image: Image | None) -> tuple[Prompt, Image | None]:
    """The request of a method without tokens, and what it is shown."""
    concept = setup.concept
    if setup.method.context == "text":
        facts = facts_in_context(concept.name, concept.facts)
        request = described(text, concept.name, concept.info, concept.class_word)
        turns = (*((Turn(text=facts),) if facts else ()), Turn(text=request))
        return Prompt(turns=turns), image
    reference = open_photo(concept.photos[0])
    kind = concept.class_word or "subject"
    referent = f"the {kind} on the left" if image is not None else "it"
    shown = reference if image is None else beside(reference, image)
    request = described(text, concept.name, referent, kind)
    return Prompt(turns=(Turn(text=request),)), shown


def _paint(setup: Setup, item: Item, outcome: Outcome) -> None:
    backend, method = setup.backend, setup.method
    if method.context == "tokens":
        (made,) = engine.gen(
            item.prompt,
            seed=outcome.seed,
            replayed=method.replayed,
            backend=backend,
            library=setup.library,
        )
        _told(made, outcome)
        return
    prompt, shown = _in_context(setup, item.prompt, None)
    outcome.rewritten = " ".join(turn.text for turn in prompt.turns)
    if shown is None:
        images = backend.gen(prompt, size=None, steps=None, guidance=None, seeds=(outcome.seed,))
    else:
        images = backend.edit(
            shown, prompt, mask=None, steps=None, guidance=None, seeds=(outcome.seed,)
        )
    outcome.image = next(iter(images)).convert("RGB")


def _edit(setup: Setup, item: Item, outcome: Outcome) -> None:
    source = open_photo(_must(item))
    if setup.method.context == "tokens":
        (made,) = engine.edit(
            source,
            item.prompt,
            seed=outcome.seed,
            replayed=setup.method.replayed,
            backend=setup.backend,
            library=setup.library,
        )
        _told(made, outcome)
        recognised = made.about.get("recognised", {}).get(setup.concept.name)
        if recognised is not None and item.kind in ("add", "replace", "remove"):
            there = float(recognised >= 0.5)
            outcome.scores["self-presence"] = 1 - there if item.kind == "remove" else there
        return
    prompt, _ = _in_context(setup, item.prompt, source)
    outcome.rewritten = " ".join(turn.text for turn in prompt.turns)
    images = setup.backend.edit(
        source, prompt, mask=None, steps=None, guidance=None, seeds=(outcome.seed,)
    )
    outcome.image = next(iter(images)).convert("RGB")


def _told(made: engine.Picture, outcome: Outcome) -> None:
    """A picture of the engine and its story."""
    outcome.image, outcome.rewritten = made.image.convert("RGB"), made.trace.rewritten
    outcome.trace = [
        {"stage": step.stage, "prompt": step.prompt, "answer": step.answer, "source": step.source}
        for step in made.trace.steps
    ]


# -- scoring -----------------------------------------------------------------------------------


def _score(setup: Setup, item: Item, outcome: Outcome) -> None:
    if item.task == "recognition":
        verdict = said_yes(outcome.answer, setup.profile)
        outcome.scores["rec"] = float(verdict is not None and verdict == _present(item))
    elif item.task in ("vqa", "qa"):
        _score_answer(setup, item, outcome)
    elif item.task == "editing":
        _score_edit(setup, item, outcome)
    else:
        _score_picture(setup, item, outcome)


def _score_answer(setup: Setup, item: Item, outcome: Outcome) -> None:
    if item.choice:
        outcome.scores["choice"] = contains(item.gold, outcome.answer)
        return
    name = item.task
    outcome.scores[f"{name}-exact"] = exact(item.gold, outcome.answer)
    outcome.scores[f"{name}-bleu"] = bleu(item.gold, outcome.answer, words=False)
    if setup.profile == "strict":
        outcome.scores[f"{name}-bleu-words"] = bleu(item.gold, outcome.answer, words=True)
    _judge(
        setup, outcome, f"{name}-judge", "answer",
        prompt=item.prompt, answer=outcome.answer, gold=item.gold,
    )  # fmt: skip


def _score_picture(setup: Setup, item: Item, outcome: Outcome) -> None:
    image = outcome.image
    if image is None:
        return
    if item.task == "parg":
        _judge(
            setup, outcome, "parg", "parg",
            images=(image,), prompt=item.prompt, facts=_record(setup.concept), truth=item.truth,
        )  # fmt: skip
        return
    text = described(
        item.prompt, setup.concept.name, f"a {setup.concept.class_word or 'subject'}", ""
    )
    _likeness(setup, outcome, image, text)
    if item.truth:
        looks = {
            k: v for k, v in item.truth.items() if k in setup.concept.truth.get("attributes", {})
        }
        around = {k: v for k, v in item.truth.items() if k not in looks}
        _judge(setup, outcome, "identity", "attributes", images=(image,), truth=looks)
        if around:
            _judge(setup, outcome, "following", "attributes", images=(image,), truth=around)


def _likeness(setup: Setup, outcome: Outcome, image: Image, text: str) -> None:
    """To test photos, beside it to those that were learned from, and to the text: by each judge
    that compares, under the name of its own measure."""
    train = [open_photo(path) for path in setup.concept.photos]
    test = [open_photo(path) for path in setup.concept.test_photos] or train
    compared = train if setup.profile == "compat" else test
    for judge in setup.panel.able("image-image"):
        name, memorised = MEASURES.get(judge, OTHER_MEASURES)
        one: dict[str, Any] = {"images": (image,), "judge": judge}
        _judge(setup, outcome, name, "image-image", references=compared, **one)
        if setup.profile == "strict":
            _judge(setup, outcome, memorised, "image-image", references=train, **one)
    if setup.concept.class_word in PEOPLE and _PORTRAIT.fullmatch(text):
        _judge(setup, outcome, "face", "face", images=(image,), references=train)
    for judge in setup.panel.able("image-text"):
        name = "clip-t" if judge == "clip" else "text-likeness"
        _judge(setup, outcome, name, "image-text", images=(image,), prompt=text, judge=judge)


def _score_edit(setup: Setup, item: Item, outcome: Outcome) -> None:
    image, concept = outcome.image, setup.concept
    if image is None:
        return
    source = open_photo(_must(item))
    if image.size != source.size:
        image = image.resize(source.size)
    common: dict[str, Any] = {"prompt": item.prompt, "truth": item.truth}
    _judge(setup, outcome, "edit-sc", "edit-sc", images=(source, image), **common)
    _judge(setup, outcome, "edit-pq", "edit-pq", images=(image,))
    if item.mask is not None:
        where = outside(open_photo(item.mask), source.size)
        outcome.scores["edit-bg"] = ssim(source, image, where)
    references = [open_photo(path) for path in concept.test_photos]
    if item.kind in LOOKS_OF_EDITS:
        _judge(setup, outcome, "edit-id", "image-image", images=(image,), references=references)
    if item.kind in ("add", "replace", "remove"):
        _judge_presence(setup, item, outcome, source, image, references)


def _judge_presence(
    setup: Setup,
    item: Item,
    outcome: Outcome,
    source: Image,
    result: Image,
    references: Sequence[Image],
) -> None:
    """Whether the concept is in the result; for a removal, that it was there and is not now."""
    about: dict[str, Any] = {
        "references": references,
        "truth": setup.concept.truth.get("attributes", {}),
        "prompt": f"<{setup.concept.name}>",
    }
    there = _judge(setup, outcome, "edit-presence", "presence", images=(result,), **about)
    if there is None or item.kind != "remove":
        return
    before = _judge(setup, outcome, "edit-presence", "presence", images=(source,), **about)
    if before is not None:
        outcome.scores["edit-presence"] = float(before >= 0.5) * (1 - there)


def _judge(
    setup: Setup,
    outcome: Outcome,
    score: str,
    kind: JudgeKind,
    *,
    images: Sequence[Image] = (),
    references: Sequence[Image] = (),
    prompt: str = "",
    answer: str = "",
    gold: str = "",
    facts: Sequence[str] = (),
    truth: Mapping[str, str] | None = None,
    judge: str = "",
) -> float | None:
    """One verdict under the name ``score``, from ``judge`` or from the first that is able; nothing
    where none is."""
    verdict = setup.panel.verdict(
        kind, images=images, references=references, prompt=prompt, answer=answer, gold=gold,
        facts=facts, truth=truth or {}, judge=judge,
    )  # fmt: skip
    if verdict is None:
        return None
    outcome.judges[score] = verdict.judge
    if verdict.failed:
        outcome.failed.append(score)
        outcome.details[score] = verdict.detail
    outcome.scores[score] = verdict.score
    return verdict.score


def _record(concept: Concept) -> tuple[str, ...]:
    """What a PARG judge reads about the concept."""
    identity = f"<{concept.name}> is {description(concept.name, concept.info, concept.class_word)}"
    return (identity, *concept.facts)


def _present(item: Item) -> bool:
    return item.gold.strip().lower().startswith("yes")


def _must(item: Item) -> Any:
    if item.image is None:
        raise RuntimeError(f"the edit {item.id} has no source")  # the reader lets none through
    return item.image
