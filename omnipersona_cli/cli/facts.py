"""`op concepts facts`: what is known of a concept in words; a change needs no new learning."""

from __future__ import annotations

import click

from omnipersona_cli.cli import options, output
from omnipersona_cli.concepts.facts import Fact, new_fact
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import PackHeader
from omnipersona_cli.errors import MissingError, UsageError, nearest
from omnipersona_cli.language.contradictions import contradiction


@click.command(
    epilog='Examples:  op concepts facts bo add "the toy of <bo> is a red ball"'
    "  |  op concepts facts bo rm 1"
)
@click.argument("name", shell_complete=options.complete_concepts)
@click.argument("change", type=click.Choice(["add", "rm"]), required=False)
@click.argument("text", required=False)
@options.as_json
def command(name: str, change: str | None, text: str | None, as_json: bool) -> None:
    """List the facts of a concept, add one, or remove one.

    No learning is needed after a change. TEXT of a fact to remove may be its number.
    """
    library = Library()
    header = library.header(name)
    if change and not text:
        raise UsageError(
            f"{change} what?", hint=f'op concepts facts {header.name} {change} "TEXT OF THE FACT"'
        )
    known = header.facts
    if change == "add" and text:
        known = _add_fact(library, header, text)
    elif change == "rm" and text:
        known = _remove_fact(library, header, text)
    if as_json:
        output.answer_json([as_data(fact) for fact in known])
    elif not change:
        for number, fact in enumerate(known, 1):
            output.answer(f"{number}  {told(fact)}")
        if not known:
            output.note(f"no facts about <{header.name}> yet")
            output.hint(f'op concepts facts {header.name} add "<{header.name}> likes apples"')


def as_data(fact: Fact) -> dict[str, str]:
    """A fact as plain values."""
    return {"text": fact.text, "source": fact.source}


def told(fact: Fact) -> str:
    """A fact on one line, and where it comes from if nobody stated it."""
    return fact.text if fact.source == "user" else f"{fact.text}  (seen in the photos)"


def _add_fact(library: Library, header: PackHeader, text: str) -> tuple[Fact, ...]:
    fact = new_fact(text, name=header.name)

    def add(known: tuple[Fact, ...]) -> tuple[Fact, ...]:
        if any(other.text.casefold() == fact.text.casefold() for other in known):
            output.note(f"<{header.name}> has that fact already")
            return known
        texts = [other.text for other in known]
        both = contradiction([*texts, fact.text], header.name)
        if both and fact.text in both:
            old = next(text for text in both if text in texts)
            raise UsageError(
                f"two facts of <{header.name}> contradict each other: {both[0]!r} and {both[1]!r}",
                hint=f"if the new one is true: op concepts facts {header.name} rm "
                f"{texts.index(old) + 1}",
            )
        return (*known, fact)

    changed = library.change_facts(header.name, add)
    if len(changed.facts) > len(header.facts):
        output.note(f"added to <{header.name}>: {fact.text}")
    return changed.facts


def _remove_fact(library: Library, header: PackHeader, text: str) -> tuple[Fact, ...]:
    gone = _find_fact(header, text)
    changed = library.change_facts(
        header.name, lambda known: tuple(fact for fact in known if fact.text != gone.text)
    )
    output.note(f"removed from <{header.name}>: {gone.text}")
    return changed.facts


def _find_fact(header: PackHeader, text: str) -> Fact:
    """The fact with this text, or with this number, counted from 1."""
    texts = [fact.text.casefold() for fact in header.facts]
    wanted = " ".join(text.casefold().split())
    if wanted in texts:
        return header.facts[texts.index(wanted)]
    if wanted.isascii() and wanted.isdecimal() and 1 <= int(wanted[:9]) <= len(texts):
        return header.facts[int(wanted[:9]) - 1]
    guess = nearest(wanted, texts)
    number = f" rm {texts.index(guess) + 1}" if guess else ""
    raise MissingError(
        f"<{header.name}> has no such fact", hint=f"op concepts facts {header.name}{number}"
    )
