"""What the learned tokens know by themselves: every fact asked of them, its text withheld."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from omnipersona_cli.backend import Backend
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.engine.memory import recall, same_value, surety_in
from omnipersona_cli.engine.progress import OnProgress
from omnipersona_cli.engine.request import ANY, Opening, memory_errors, opened_for
from omnipersona_cli.engine.tokens import from_slot, slot_name
from omnipersona_cli.language.mentions import check_name
from omnipersona_cli.language.references import known_facts

Knowledge = Literal["known", "wrong", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """One attribute: what the fact says, what the tokens say, and whether that is right."""

    attribute: str
    value: str
    answer: str
    knowledge: Knowledge


def probe_tokens(
    name: str,
    *,
    backend: Backend | None = None,
    opening: Opening = ANY,
    library: Library | None = None,
    on_progress: OnProgress | None = None,
) -> tuple[Probed, ...]:
    """Ask the tokens of ``name`` about every fact that names an attribute; facts that are no more
    than a sentence are left out. Raises what `opened_for` raises."""
    name = check_name(name)
    library = Library() if library is None else library
    if backend is None:
        backend = opened_for([name], opening, library=library, on_progress=on_progress)
    pack = library.load(name)
    tokens = from_slot(pack, backend)
    threshold = surety_in(pack.evals.get(slot_name(backend), {}))
    known = known_facts({name: tuple(fact.text for fact in pack.facts)})[name]
    with memory_errors(backend.info.name):
        asked = [
            (fact, recall(backend, tokens, fact.attribute, threshold=threshold))
            for fact in known.values()
        ]
    return tuple(
        Probed(
            attribute=fact.attribute,
            value=fact.value,
            answer=answer,
            knowledge=judged(fact.value, answer),
        )
        for fact, answer in asked
    )


def judged(value: str, answer: str) -> Knowledge:
    """Known where the words are the fact's, but for articles and for "in" before a place; unknown
    where there is no sure answer."""
    if not answer:
        return "unknown"
    return "known" if same_value(answer, value) else "wrong"
