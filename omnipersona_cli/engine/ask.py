"""Answer questions about a picture, or from memory alone.

Presence ("is <bo> here?") is answered from calibrated scores, with "not sure" as a third answer.
What a fact says is answered by the fact; all else by the model, with the facts that may matter
quoted before the question.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL.Image import Image

from omnipersona_cli.backend import Backend
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.mentions import to_turn
from omnipersona_cli.data.facts import CLASS_ATTRIBUTE, answers_of, parse_fact
from omnipersona_cli.engine.calibrate import Verdict, sigmoid
from omnipersona_cli.engine.gen import tell
from omnipersona_cli.engine.recognise import presence
from omnipersona_cli.engine.references import (
    KnownFact,
    attribute_key,
    find_references,
    known_facts,
)
from omnipersona_cli.engine.request import (
    ANY,
    OnProgress,
    Opening,
    Request,
    checked_picture,
    memory_errors,
    open_request,
)
from omnipersona_cli.errors import UsageError

AnswerSource = Literal["score", "facts", "tokens", "model"]

MOST_FACTS = 8
"""The most sentences that are quoted before a question."""

_PRESENCE = re.compile(
    r"(?:is|are)\s+(?:this|that|it|these|those)\s+(?:a |the |an )?"
    r"(?:photo |picture |image )?(?:of )?"
    r"{m}(?:\s+(?:and|or)\s+{m})*"
    r"|(?:is|are)\s+(?:there\s+)?{m}(?:\s+(?:and|or)\s+{m})*(?:\s+(?:both|also))?{where}"
    r"|(?:do|can|could) you (?:see|find|spot|recogni[sz]e) {m}(?:\s+(?:and|or)\s+{m})*{where}"
    r"|does (?:this|the|it)(?: \w+)? (?:show|contain|have) {m}(?:\s+(?:and|or)\s+{m})*".replace(
        "{where}",
        r"(?:\s+(?:here|there|present|visible|shown"
        r"|(?:in|on)\s+(?:this|the|that)\s+(?:photo|photograph|picture|image|scene)))*",
    ).replace("{m}", r"<[A-Za-z][A-Za-z0-9_-]*>"),
    re.IGNORECASE,
)
_OPENERS = re.compile(r"^(?:what|where|who|which|how|when|tell me|name)\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was answered, and on what grounds.

    ``verdict`` and ``probabilities`` (concept -> p(yes)) are there for questions of presence;
    ``facts`` are the sentences that were used. ``source``: "score" (calibrated recognition),
    "facts" (the answer is a fact's own value), "tokens" (the model, with learned tokens), "model"
    (the model, no concept).
    """

    text: str
    source: AnswerSource
    verdict: Verdict | None = None
    probabilities: Mapping[str, float] = field(default_factory=dict)
    facts: tuple[str, ...] = ()
    backend: str = ""

    @property
    def probability(self) -> float | None:
        """p(yes) that all the concepts asked for are there."""
        return min(self.probabilities.values()) if self.probabilities else None


def ask(
    question: str,
    *,
    image: Image | None = None,
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
    """Answer ``question``, about ``image`` where there is one.

    ``earlier`` are questions and answers of the same talk. ``on_text`` receives the answer piece
    by piece. Raises what `open_request` raises.
    """
    if max_tokens < 1:
        raise UsageError(f"{max_tokens} tokens are no answer", hint="--max-tokens takes 1 or more")
    picture = None if image is None else checked_picture(image)
    request = open_request(
        question,
        concepts=concepts,
        backend=backend,
        opening=opening,
        library=library,
        task="understand",
        picture=picture,
        on_progress=on_progress,
    )
    tell(on_progress, request.notes)
    answer = _from_score(request, picture) or _from_facts(request, picture)
    if answer is not None:
        if on_text is not None:
            on_text(answer.text)
        return answer
    facts = relevant_facts(request, with_picture=picture is not None)
    turns = [turn for pair in earlier for turn in map(to_turn, pair)]
    turns += [to_turn(quoted(name, texts)) for name, texts in facts.items()]
    pieces = []
    with memory_errors(request.backend.info.name):
        for piece in request.backend.say(
            request.prompt(request.text, earlier=turns),
            image=picture,
            max_tokens=max_tokens,
            seed=seed,
        ):
            pieces.append(piece)
            if on_text is not None:
                on_text(piece)
    return Answer(
        text="".join(pieces).strip(),
        source="tokens" if request.concepts else "model",
        facts=tuple(text for texts in facts.values() for text in texts),
        backend=request.backend.info.name,
    )


def asks_presence(question: str) -> bool:
    """True for "is <bo> here?" in one of its phrasings, and for nothing more than that."""
    return bool(_PRESENCE.fullmatch(question.strip().rstrip("?!. ")))


def quoted(name: str, texts: Sequence[str]) -> str:
    """Facts as a context turn: plain sentences, quoted, because they may be a stranger's."""
    sentences = []
    for text in texts:
        parsed = parse_fact(text, name)
        said = f"<{name}>'s {parsed.attribute} is {parsed.value}" if parsed else text
        if parsed is not None and parsed.attribute == CLASS_ATTRIBUTE:
            said = f"<{name}> is {parsed.value}"
        sentences.append('"' + said.replace('"', "'").rstrip(". ") + '."')
    return " ".join(sentences)


def relevant_facts(request: Request, *, with_picture: bool) -> dict[str, tuple[str, ...]]:
    """For each concept the sentences that share a word with the question; with no picture to look
    at, and nothing shared, the first few of all."""
    asked = _content_words(request.text)
    chosen: dict[str, tuple[str, ...]] = {}
    for name, texts in request.facts.items():
        shared = [text for text in texts if asked & _fact_words(text, name)]
        picked = shared or ([] if with_picture else list(texts))
        if picked:
            chosen[name] = tuple(picked[:MOST_FACTS])
    return chosen


def _from_score(request: Request, picture: Image | None) -> Answer | None:
    """Yes, no or not sure, for a question of presence about a picture."""
    if picture is None or not request.concepts or not asks_presence(request.text):
        return None
    asked = request.prompt(request.text).concepts or request.concepts
    verdicts: list[Verdict] = []
    probabilities = {}
    for tokens in asked:
        verdict, odds = presence(request, tokens, picture)
        verdicts.append(verdict)
        probabilities[tokens.name] = round(sigmoid(odds), 4)
    either = re.search(r">\s+or\s+<", request.text, re.IGNORECASE)
    verdict = _either(verdicts) if either else _all(verdicts)
    return Answer(
        text=verdict,
        source="score",
        verdict=verdict,
        probabilities=probabilities,
        backend=request.backend.info.name,
    )


def _from_facts(request: Request, picture: Image | None) -> Answer | None:
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
    if (
        found
        and _OPENERS.match(asked)
        and not _leftover(asked, [(r.start, r.end) for r in references])
    ):
        owners = {name for name, _ in found}
        parts = [fact.value for _, fact in found]
        if len(owners) > 1 or len(found) > 1:
            parts = [f"<{name}>'s {fact.attribute} is {fact.value}" for name, fact in found]
        return _fact_answer(request, "; ".join(parts), [t for _, fact in found for t in fact.texts])
    if picture is None:
        for name in names:
            facts = request.facts.get(name, ())
            for phrasing, value in answers_of(facts, name).items():
                if _plain(phrasing) == _plain(asked):
                    used = [t for t in facts if (p := parse_fact(t, name)) and p.value in value]
                    return _fact_answer(request, value, used)
    return None


def _fact_answer(request: Request, text: str, facts: Sequence[str]) -> Answer:
    return Answer(
        text=text,
        source="facts",
        facts=tuple(dict.fromkeys(facts)),
        backend=request.backend.info.name,
    )


def _leftover(text: str, spans: Sequence[tuple[int, int]]) -> bool:
    """True where a question has content besides the references in it."""
    for start, end in sorted(set(spans), reverse=True):
        text = text[:start] + " " + text[end:]
    rest = _OPENERS.sub("", text)
    words = set(re.findall(r"[a-z']+", rest.lower()))
    return bool(words - set("is are was were me the and what 's do you know please".split()))


def _content_words(text: str) -> set[str]:
    words = re.findall(r"[a-z]{3,}", re.sub(r"<[^>]*>", " ", text.lower()))
    common = "the and what where who which does how its his her their this that with for are can"
    return {attribute_key(word) for word in words} - set(common.split()) - {""}


def _fact_words(text: str, name: str) -> set[str]:
    parsed = parse_fact(text, name)
    words = f"{text} {parsed.attribute} {' '.join(parsed.asked)}" if parsed else text
    return _content_words(words.replace("{name}", " "))


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[\w<>'-]+", text.lower().replace("\u2019", "'")))


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    if "no" in verdicts:
        return "no"
    return "not sure" if "not sure" in verdicts else "yes"


def _either(verdicts: Sequence[Verdict]) -> Verdict:
    if "yes" in verdicts:
        return "yes"
    return "not sure" if "not sure" in verdicts else "no"
