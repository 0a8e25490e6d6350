"""`op concepts facts`: what is known of a concept in words; a change needs no new learning."""

from __future__ import annotations

import click

from omnipersona_cli.cli import options, output
from omnipersona_cli.concepts.facts import Fact, new_fact, with_fact
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import PackHeader
from omnipersona_cli.errors import MissingError, UsageError, nearest


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

    No learning is needed after a change, but tokens that learned a fact go on telling it after it
    is removed. TEXT of a fact to remove may be its number.
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
        changed = with_fact(known, fact, name=header.name)
        if changed == known:
            output.note(f"<{header.name}> has that fact already")
        return changed

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
    if _taught(header):
        output.note("tokens that have learned it go on telling it until it is learned anew")
        output.hint(f"op learn PHOTOS --name {header.name} --force")
    return changed.facts


def _taught(header: PackHeader) -> bool:
    """Whether there are tokens that were taught facts, and are believed where they are sure."""
    figures = [one for one in header.evals.values() if isinstance(one, dict)]
    memories = [one.get("memory") for one in figures]
    return any(isinstance(one, dict) and one.get("threshold") is not None for one in memories)


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
