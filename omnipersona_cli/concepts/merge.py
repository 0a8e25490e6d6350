"""What becomes of a concept that changed while it was being learned again.

Learning takes minutes to hours, and holds no lock. In between a person may state a fact, take one
back, rename the concept or remove it. Nobody's work is lost: what was learned goes into the pack
that is there now.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from omnipersona_cli.concepts.facts import FACT_COUNT, Fact
from omnipersona_cli.concepts.pack import Pack, PackHeader
from omnipersona_cli.language.mentions import rename_mentions

T = TypeVar("T")


def merge(learned: Pack, *, before: PackHeader, now: Pack, slots: Sequence[str]) -> Pack:
    """``learned``, which was begun when the pack was as ``before``, with what changed since.

    ``now`` is the pack of today, perhaps under another name. Its facts are kept, those that it lost
    since ``before`` stay lost, and facts that learning found are added. ``slots`` are those that
    were learned; the others are those of ``now``, without any that ``learned`` replaces on purpose.
    """
    others = {
        slot
        for slot in now.slots
        if slot not in slots and (slot in learned.slots or slot not in before.slots)
    }
    facts = tuple(
        replace(fact, text=rename_mentions(fact.text, learned.name, now.name))
        for fact in merge_facts(before.facts, now.facts, learned.facts)
    )
    return replace(
        learned,
        name=now.name,
        aliases=_changed(before.aliases, now.aliases, learned.aliases),
        class_word=_changed(before.class_word, now.class_word, learned.class_word),
        kind=_changed(before.kind, now.kind, learned.kind),
        licence=_changed(before.licence, now.licence, learned.licence),
        facts=facts,
        slots={
            **{slot: now.slots[slot] for slot in others},
            **{slot: learned.slots[slot] for slot in slots},
        },
        evals={
            **{slot: now.evals[slot] for slot in others if slot in now.evals},
            **{slot: learned.evals[slot] for slot in slots if slot in learned.evals},
        },
        extra_metadata={**now.extra_metadata, **learned.extra_metadata},
        extra_tensors={**now.extra_tensors, **learned.extra_tensors},
        more={**now.more, **learned.more},
        hash="",
    )


def merge_facts(
    before: Sequence[Fact], now: Sequence[Fact], learned: Sequence[Fact]
) -> tuple[Fact, ...]:
    """Facts of ``now``, then those of ``learned`` that nobody took back, at most `FACT_COUNT`."""
    known = {_said(fact) for fact in now}
    taken_back = {_said(fact) for fact in before} - known
    added = [fact for fact in learned if _said(fact) not in known | taken_back]
    return (*now, *added)[:FACT_COUNT]


def _said(fact: Fact) -> str:
    return fact.text.casefold()


def _changed(before: T, now: T, learned: T) -> T:
    """The value that somebody changed since ``before``, else the learned one."""
    return learned if now == before else now
