"""`op concepts undo, forget, fsck, gc`: what looks after the library as a whole."""

from __future__ import annotations

import sys

import click

from omnipersona_cli.cli import options, output
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.upkeep import (
    KEPT_DAYS,
    check_library,
    forget,
    mentioned_by,
    sweep,
)
from omnipersona_cli.errors import MissingError, PersonaError, UsageError
from omnipersona_cli.language.mentions import check_name


@click.command("undo", epilog="Examples:  op concepts undo  |  op concepts undo bo")
@click.argument("name", required=False)
@options.as_json
def undo_change(name: str | None, as_json: bool) -> None:
    """Take back the last change of the library, or the last one of NAME.

    The last version of every concept that was replaced, renamed or removed is kept for this. Done
    again it brings the newer version back.
    """
    changed, done = Library().undo(name or "")
    output.note(done)
    if as_json:
        output.answer_json({"name": changed, "done": done})


@click.command("forget", epilog="Examples:  op concepts forget bo  |  op concepts forget bo --yes")
@click.argument("names", metavar="NAME...", nargs=-1, shell_complete=options.complete_concepts)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@options.as_json
def forget_concepts(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove concepts and every copy, for good.

    Pack, undo copies and checkpoints go, and it cannot be undone.
    What `op serve` kept to teach them goes too: photos, previews, report cards. Files that you made
    yourself stay: photos, exported packs, pictures, pages.
    """
    if not names:
        raise UsageError("forget needs a name", hint="op concepts forget NAME")
    chosen = list(dict.fromkeys(check_name(name) for name in names))
    confirm("forget", chosen, yes=yes)
    library = Library()
    gone: dict[str, list[str]] = {}
    missing: MissingError | None = None
    for name in chosen:
        try:
            gone[name] = list(forget(library, name))
            output.note(f"forgot <{name}>: {', '.join(gone[name])}")
        except MissingError as error:
            missing = error
            output.note(str(error))
        for other in mentioned_by(library, name):
            output.note(f"a fact of <{other}> mentions <{name}>: op concepts facts {other}")
    if as_json:
        output.answer_json({"forgotten": gone})
    if missing is not None and not gone:
        raise missing


@click.command("fsck", epilog="Examples:  op concepts fsck  |  op concepts fsck --repair")
@click.option("--repair", is_flag=True, help="Mend what can be mended without loss.")
@options.as_json
def fsck(repair: bool, as_json: bool) -> None:
    """Check the whole library.

    Packs, undo copies, half-written files and unfinished runs are looked at.
    Exit 1 when something should not stay as it is. --repair removes half-written files, writes
    packs of format 1.0 anew, and puts the undo copy in the place of a broken pack.
    """
    library = Library()
    found = check_library(library, repair=repair)
    bad = [finding for finding in found if finding.bad and not finding.mended]
    if as_json:
        output.answer_json({"sound": not bad, "findings": [vars(finding) for finding in found]})
    else:
        for finding in found:
            output.answer_line(f"{finding.what}{f' ({finding.mended})' if finding.mended else ''}")
        if not bad:
            count = len(library.names())
            output.answer_line(f"sound: {count} concept{'' if count == 1 else 's'}")
    if bad:
        raise PersonaError(
            "1 thing in the library is not as it should be"
            if len(bad) == 1
            else f"{len(bad)} things in the library are not as they should be",
            hint="op concepts rm NAME takes a broken one away"
            if repair
            else "op concepts fsck --repair",
        )


@click.command("gc", epilog="Examples:  op concepts gc  |  op concepts gc --days 0")
@click.option(
    "--days",
    type=click.FloatRange(0),
    default=KEPT_DAYS,
    show_default=True,
    help="Keep what is younger.",
)
@options.as_json
def gc(days: float, as_json: bool) -> None:
    """Sweep out what is old and unfinished.

    Half-written files, old undo copies and old unfinished runs go. No concept goes.
    """
    gone = sweep(Library(), days=days)
    if as_json:
        output.answer_json({"removed": list(gone)})
        return
    for what in gone:
        output.note(f"removed {what}")
    if not gone:
        output.note("there is nothing to sweep out")


def confirm(verb: str, names: list[str], *, yes: bool) -> None:
    """Ask a person before concepts go; without a terminal --yes is needed. Raises click.Abort."""
    if yes:
        return
    which = ", ".join(f"<{name}>" for name in names)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        short = {"delete": "rm"}.get(verb, verb)
        raise UsageError(
            f"to {verb} {which} needs your word",
            hint=f"op concepts {short} {' '.join(names)} --yes",
        )
    click.confirm(f"{verb.capitalize()} {which}?", abort=True, err=True)


VERBS = (undo_change, forget_concepts, fsck, gc)
