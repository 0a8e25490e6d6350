"""Answer questions about a picture, or from memory alone.

Presence ("is <bo> here?") is answered from calibrated scores, with "not sure" as a third answer.
What a fact says is answered by the fact; what no fact says by the learned tokens where they are
sure, else with "I do not know"; all else by the model, with the facts quoted before the question
and without the tokens that were taught facts: looks are answered worse with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from PIL.Image import Image

from omnipersona_cli.backend import Backend, ComparingBackend, Prompt
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine.calibrate import Verdict, sigmoid
from omnipersona_cli.engine.memory import recall
from omnipersona_cli.engine.progress import OnProgress, begin, done, tell
from omnipersona_cli.engine.recognise import presence
from omnipersona_cli.engine.replay import surety_of
from omnipersona_cli.engine.request import (
    ANY,
    Opening,
    Request,
    check_images,
    checked_picture,
    memory_errors,
    open_request,
)
from omnipersona_cli.errors import UsageError
from omnipersona_cli.language.attributes import attribute_key
from omnipersona_cli.language.captions import with_article
from omnipersona_cli.language.facts import (
    answers_of,
    parse_facts,
    quoted,
    reversed_questions,
    split_sentences,
    stated,
)
from omnipersona_cli.language.mentions import attach, to_turn
from omnipersona_cli.language.questions import (
    asked_about,
    asked_of_owner,
    asks_for_all,
    asks_for_either,
    asks_for_kind,
    asks_more,
    asks_presence,
    content_words,
    fact_words,
    is_open,
    is_opener,
    is_yes_or_no,
    plain_words,
    told,
)
from omnipersona_cli.language.references import (
    KnownFact,
    find_references,
    is_look,
    known_facts,
)

AnswerSource = Literal["score", "facts", "tokens", "model", "unknown"]

UNKNOWN = "I do not know"
"""What is answered where nobody told, and the tokens are not sure."""

MOST_FACTS = 8
"""The most sentences that are quoted before a question."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was answered, and on what grounds.

    ``verdict`` and ``probabilities`` (concept -> p(yes)) are there for questions of presence;
    ``facts`` are the sentences that were used. ``source``: "score" (calibrated recognition),
    "facts" (the answer is a fact's own value), "tokens" (the model, with learned tokens), "model"
    (the model, no concept), "unknown" (nobody told; ``missing`` is the concept and attribute).
    ``either`` is true where one of several concepts was enough.
    """

    text: str
    source: AnswerSource
    verdict: Verdict | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    missing: tuple[str, str] | None = None
    backend: str = ""
    either: bool = False

    @property
    def probability(self) -> float | None:
        """p(yes): of the concept that is least likely there, or, where one is enough, most."""
        chosen = max if self.either else min
        return chosen(self.probabilities.values()) if self.probabilities else None

    def to_dict(self, question: str) -> dict[str, Any]:
        """Plain values, under the keys of `op ask --json` and of the server."""
        missing = self.missing and dict(zip(("concept", "attribute"), self.missing, strict=True))
        return {
            "question": question,
            "answer": self.text,
            "source": self.source,
            "verdict": self.verdict,
            "probability": self.probability,
            "concepts": dict(self.probabilities),
            "facts": list(self.facts),
            "missing": missing,
            "backend": self.backend,
        }


def ask(
    question: str,
    *,
    image: Image | Sequence[Image] | None = None,
    concepts: Sequence[str] = (),
    earlier: Sequence[tuple[str, str]] = (),
    max_tokens: int = 100,
    seed: int = 0,
    backend: Backend | None = None,
    opening: Opening = ANY,
    library: Library | None = None,
    on_progress: OnProgress | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answer ``question``, about ``image`` where there is one, or about several in their order
    where the backend looks at so many (``info.most_images``).

    ``earlier`` are questions and answers of the same talk. ``on_text`` receives the answer piece
    by piece. Raises what `open_request` and `check_images` raise.
    """
    if max_tokens < 1:
        raise UsageError(
            f"an answer has at least 1 token, not {max_tokens}", hint="--max-tokens takes 1 or more"
        )
    given = () if image is None else (image,) if isinstance(image, Image) else image
    info = None if backend is None else backend.info
    check_images(
        question, len(given), concepts=concepts, info=info, opening=opening, library=library
    )
    pictures = tuple(map(checked_picture, given))
    request = open_request(
        question,
        concepts=concepts,
        backend=backend,
        opening=opening,
        library=library,
        task="understand",
        pictures=pictures,
        on_progress=on_progress,
    )
    tell(on_progress, request.notes)
    answer = _from_score(request, pictures, on_progress)
    answer = answer or _from_facts(request, with_picture=bool(pictures))
    if answer is None:
        with memory_errors(request.backend.info.name):
            answer = _from_tokens(request, with_picture=bool(pictures))
    if answer is not None:
        if on_text is not None:
            on_text(answer.text)
        return answer
    facts = relevant_facts(request)
    turns = [turn for pair in earlier for turn in map(to_turn, pair)]
    turns += [to_turn(quoted(name, texts)) for name, texts in facts.items()]
    prompt = request.prompt(request.text, earlier=turns)
    prompt = replace(prompt, concepts=tuple(tokens.of_looks() for tokens in prompt.concepts))
    pieces: list[str] = []
    held = is_open(request.text) and request.backend.info.replay_leads != "model"
    begin(on_progress, "reading the question")
    with memory_errors(request.backend.info.name):
        for piece in _said(
            request.backend,
            prompt,
            pictures,
            max_tokens=max_tokens,
            seed=seed,
        ):
            if not pieces:
                done(on_progress)
            pieces.append(piece)
            if on_text is not None and not held:
                on_text(piece)
    text = "".join(pieces).strip()
    beside = held and is_yes_or_no(text)  # which does not say how old <bo> is
    text = UNKNOWN if beside else text
    if on_text is not None and held:
        on_text(text)
    return Answer(
        text=text,
        source="unknown" if beside else "tokens" if request.concepts else "model",
        missing=asked_about(request.text) if beside else None,
        facts=tuple(text for texts in facts.values() for text in texts),
        backend=request.backend.info.name,
    )


def _said(
    backend: Backend, prompt: Prompt, pictures: Sequence[Image], *, max_tokens: int, seed: int
) -> Iterator[str]:
    """`Backend.say`, or that of a `ComparingBackend` where there are several pictures."""
    image, *more = pictures or (None,)
    if not more:
        return backend.say(prompt, image=image, max_tokens=max_tokens, seed=seed)
    able = cast(ComparingBackend, backend)
    others = [one for one in more if one is not None]
    return able.say(prompt, image=image, more=others, max_tokens=max_tokens, seed=seed)


def relevant_facts(request: Request) -> dict[str, tuple[str, ...]]:
    """For each concept its sentences, those first that share a word with the question; the first
    few. A model that does not lead is shown those alone: what it cannot use only distracts it."""
    asked = content_words(request.text)
    leads = request.backend.info.replay_leads == "model"
    chosen: dict[str, tuple[str, ...]] = {}
    for name, texts in request.facts.items():
        shared = [text for text in texts if asked & fact_words(text, name)]
        rest = [text for text in texts if text not in shared]
        picked = [*shared, *rest] if leads else shared
        if picked:
            chosen[name] = tuple(picked[:MOST_FACTS])
    return chosen


def _from_score(
    request: Request, pictures: Sequence[Image], on_progress: OnProgress | None
) -> Answer | None:
    """Yes, no or not sure, for a question of presence about a picture."""
    if not pictures or not request.concepts or not asks_presence(request.text):
        return None
    (picture,) = pictures  # `check_images` refused several
    asked = request.prompt(request.text).concepts or request.concepts
    verdicts: list[Verdict] = []
    probabilities = {}
    begin(on_progress, "looking")
    for tokens in asked:
        verdict, odds = presence(request, tokens, picture)
        verdicts.append(verdict)
        probabilities[tokens.name] = round(sigmoid(odds), 4)
    done(on_progress)
    either = asks_for_either(request.text)
    verdict = _either(verdicts) if either else _all(verdicts)
    return Answer(
        text=verdict,
        source="score",
        verdict=verdict,
        probabilities=probabilities,
        backend=request.backend.info.name,
        either=either,
    )


def _from_facts(request: Request, *, with_picture: bool) -> Answer | None:
    """The value of the fact that the question asks for, where it asks for nothing else.

    With a picture only the plain possessive counts: "what does <bo> wear?" is then about what can
    be seen.
    """
    names = [tokens.name for tokens in request.concepts]
    known = known_facts({name: request.facts.get(name, ()) for name in names})
    asked = request.text.rstrip("?!. ")
    references = find_references(asked, names, known)
    found: list[tuple[str, KnownFact]] = []
    for reference in references:
        fact = known[reference.concept].get(attribute_key(reference.attribute))
        if fact is None:
            return None
        found.append((reference.concept, fact))
    if found and is_opener(asked) and not asks_more(asked, [(r.start, r.end) for r in references]):
        owners = {name for name, _ in found}
        parts = [fact.value for _, fact in found]
        if len(owners) > 1 or len(found) > 1:
            parts = [f"<{name}>'s {fact.attribute} is {fact.value}" for name, fact in found]
        return _fact_answer(request, "; ".join(parts), [t for _, fact in found for t in fact.texts])
    if not with_picture:
        for name in names:
            facts = request.facts.get(name, ())
            for phrasing, value in answers_of(facts, name).items():
                if plain_words(phrasing) == plain_words(asked):
                    used = [t for t in facts if any(p.value in value for p in parse_facts(t, name))]
                    return _fact_answer(request, value, used)
        return _from_owners(request) or _from_all_facts(request)
    return None


def _from_owners(request: Request) -> Answer | None:
    """Whose something is ("whose toy is the red ball?"), where a fact says so."""
    asked = plain_words(request.text)
    found = {
        name: [text for text in texts if asked in _reversed(text, name)]
        for name, texts in request.facts.items()
    }
    owners = [name for name, texts in found.items() if texts]
    if not owners:
        return None
    used = [text for name in owners for text in found[name]]
    return _fact_answer(request, " and ".join(f"<{name}>" for name in owners), used)


def _reversed(text: str, name: str) -> set[str]:
    """The plain words of every question that a fact answers with the name, by each attribute."""
    return {
        plain_words(question)
        for fact in parse_facts(text, name)
        for attribute in (fact.attribute, *fact.also)
        for question, _ in reversed_questions(replace(fact, attribute=attribute))
    }


def _from_all_facts(request: Request) -> Answer | None:
    """What kind of thing it is, where that was told and is asked; all that was told, where a model
    that does not lead is asked to tell about it."""
    if len(request.concepts) != 1:
        return None
    name = request.concepts[0].name
    facts, word = request.facts[name], request.packs[name].class_word
    if word and asks_for_kind(request.text):
        return _fact_answer(request, with_article(word), ())
    if request.backend.info.replay_leads == "model" or not asks_for_all(request.text):
        return None
    told = [f"<{name}> is {with_article(word)}"] if word else []
    told += [stated(part, name).rstrip(". ") for fact in facts for part in split_sentences(fact)]
    return _fact_answer(request, ". ".join(told) + ".", facts) if told else None


def _from_tokens(request: Request, *, with_picture: bool) -> Answer | None:
    """What the tokens say about the one attribute that the question asks for, where it is no look
    and no fact could help; "I do not know" where they are not sure.

    A fact with some words of the attribute (a home, where the home town is asked for) is left to
    a model that leads; another, and its tokens, would take the one for the other. With a picture
    only the plain possessive counts, and only where the model does not lead: it would make up what
    no picture shows.
    """
    leads = request.backend.info.replay_leads == "model"
    if with_picture and leads:
        return None
    names = [tokens.name for tokens in request.concepts]
    text = attach(request.text, names, "understand") if len(names) == 1 else request.text
    asked = asked_of_owner(text) if with_picture else asked_about(text)
    if asked is None or asked[0] not in names or is_look(asked[1]):
        return None
    name, attribute = asked
    near = told(attribute, request.facts[name], name)
    if near == "all" or (near == "some" and leads):
        return None
    value = ""
    if near == "none" and not is_look(attribute.split()[-1]):  # no "favourite colour" from it
        tokens = next(one for one in request.concepts if one.name == name)
        value = recall(request.backend, tokens, attribute, threshold=surety_of(request)[name])
    return Answer(
        text=value or UNKNOWN,
        source="tokens" if value else "unknown",
        missing=None if value else asked,
        backend=request.backend.info.name,
    )


def _fact_answer(request: Request, text: str, facts: Sequence[str]) -> Answer:
    return Answer(
        text=text,
        source="facts",
        facts=tuple(dict.fromkeys(facts)),
        backend=request.backend.info.name,
    )


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if "no" in verdicts:
        return "no"
    return "not sure" if "not sure" in verdicts else "yes"


def _either(verdicts: Sequence[Verdict]) -> Verdict:
    if "yes" in verdicts:
        return "yes"
    return "not sure" if "not sure" in verdicts else "no"
