"""`op concepts`: what has been taught; show, state facts, share, rename, remove, look after."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from omnipersona_cli.backend import DEEP
from omnipersona_cli.cli import facts, options, output, upkeep
from omnipersona_cli.concepts.card import card_lines
from omnipersona_cli.concepts.container import FILE_LIMIT
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import (
    SUFFIX,
    PackHeader,
    age_note,
    read_header,
    verify_bytes,
)
from omnipersona_cli.concepts.pack import verify as problems_of
from omnipersona_cli.errors import PackError, PersonaError, UsageError
from omnipersona_cli.language.mentions import check_name

ROWS, COLUMN, BRIEF = 40, 24, 200
"""Of a stranger's pack: the most rows that are shown, and characters of a name and of a value."""

_name = click.argument("name", shell_complete=options.complete_concepts)


@click.group(
    invoke_without_command=True,
    epilog="Examples:  op concepts  |  op concepts show bo  |  op concepts export bo",
)
@options.as_json
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the concepts that were taught, or work with one."""
    if ctx.invoked_subcommand is None:
        _list(as_json)
    elif as_json:  # `op concepts --json show bo` is `op concepts show bo --json`
        settings = ctx.default_map or {}
        verb = ctx.invoked_subcommand
        ctx.default_map = {**settings, verb: {**settings.get(verb, {}), "as_json": True}}


command.add_command(facts.command, "facts")
for _verb in upkeep.VERBS:
    command.add_command(_verb)


@command.command("list", epilog="Example:  op concepts list --json")
@options.as_json
def list_concepts(as_json: bool) -> None:
    """List the concepts of the library."""
    _list(as_json)


@command.command(epilog='Example:  op concepts show bo  |  op concepts show "<bo>" --json')
@_name
@click.option("--probe", is_flag=True, help="Ask the tokens, without the facts, what they know.")
@options.as_json
def show(name: str, probe: bool, as_json: bool) -> None:
    """Show all that is known of one concept."""
    library = Library()
    header = library.header(name)
    if probe:
        _probe(name, as_json)
        return
    path = library.path(name)
    _tell_age(header)
    if as_json:
        output.answer_json(_as_data(header, path))
        return
    article = "an" if header.class_word[:1].lower() in tuple("aeiou") else "a"
    what = f", {article} {header.class_word}" if header.class_word else ""
    output.answer_line(f"<{header.name}>{what}")
    _answer_rows(
        [
            ("kind", header.kind),
            ("aliases", _brief(list(header.aliases))),
            *(("fact", f"{n}  {facts.told(fact)}") for n, fact in enumerate(header.facts, 1)),
        ]
    )
    for slot in header.slots:
        _answer_slot(header, slot)
    _answer_rows(
        [
            ("photos", _brief(header.provenance.get("photos", ""))),
            ("date", header.date),
            ("licence", header.licence),
            ("extras", _brief(list(header.extra_tensors))),
            ("size", _size(header.size)),
            ("hash", header.hash),
            ("file", str(path)),
        ]
    )


def _probe(name: str, as_json: bool) -> None:
    """What the tokens say about every fact, and whether it is right."""
    from omnipersona_cli.engine.probe import probe_tokens

    with output.progress() as on_progress:
        found = probe_tokens(name, on_progress=on_progress)
    if as_json:
        output.answer_json([vars(answer) for answer in found])
        return
    if not found:
        output.note(f"<{check_name(name)}> has no facts that could be asked")
        output.hint(f'op concepts facts {check_name(name)} add "its toy is a red ball"')
    rows = [(one.attribute, one.value, one.answer or "-", one.knowledge) for one in found]
    output.answer_table(("attribute", "fact", "tokens say", ""), rows)


@command.command(
    "import",
    epilog="\b\nExamples:\n  op concepts import bo.opconcept --name rex\n"
    "  op concepts import saves/bo/stage_2 --from unictokens",
)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--name", help="Keep it under another name.")
@click.option(
    "--from",
    "source",
    metavar="PROGRAM",
    shell_complete=options.complete_importers,
    help="FILE is what another program saved; `op backends show` names those that are read.",
)
@click.option(
    "--epoch",
    type=click.IntRange(0),
    metavar="N",
    help="Of several saved states, which one.  [default: the latest]",
)
@click.option("--force", is_flag=True, help="Replace a concept of that name.")
@options.model
@options.device
@options.dtype
@options.offline
@options.as_json
def import_concept(
    file: Path,
    name: str | None,
    source: str | None,
    epoch: int | None,
    force: bool,
    model: str | None,
    device: str,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Take a pack into the library; FILE may be - for stdin.

    With --from, FILE is what another program saved. The weights that it was learned on must be
    here, because a concept is bound to them: --model names others than the usual ones. Files are
    read as numbers alone, and nothing in them is run.
    """
    if source is not None:
        _import_foreign(file, source, name, epoch, force, model, device, dtype, as_json)
        return
    if epoch is not None:
        raise UsageError("a pack has no epochs", hint="--epoch goes with --from")
    library = Library()
    if str(file) == "-":
        path = library.add_bytes(_read_stdin(), name, force=force)
    elif file.is_dir():
        raise PackError(
            f"{file} is a folder",
            hint="name an .opconcept file, or the program that saved it: --from unictokens",
        )
    else:
        path = library.add_file(file, name, force=force)
    kept = read_header(path)
    output.note(f"<{kept.name}> is in the library")
    _answer_place(kept.name, path, as_json)


@command.command(
    epilog="Examples:  op concepts export bo  |  op concepts export bo -o - > bo.opconcept"
)
@_name
@click.option(
    "-o",
    "--output",
    "to",
    type=click.Path(allow_dash=True),
    help="File or folder to write to, - for stdout.  [default: the current folder]",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@options.as_json
def export(name: str, to: str | None, force: bool, as_json: bool) -> None:
    """Copy a concept out of the library, to keep or to share."""
    library = Library()
    if to == "-":
        if as_json:
            raise UsageError("--json and -o - cannot share stdout", hint="name a file: -o FILE")
        if sys.stdout.isatty():
            raise UsageError("a pack cannot be shown in a terminal", hint="name a file: -o FILE")
        output.answer_bytes(library.read_bytes(name))
        return
    place = None if to is None else Path(to)
    if place is not None and options.is_folders_name(str(to)):
        place /= f"{check_name(name)}{SUFFIX}"
    _answer_place(check_name(name), library.export(name, place, force=force), as_json)


@command.command(epilog="Example:  op concepts rename bo rex")
@click.argument("old", shell_complete=options.complete_concepts)
@click.argument("new")
@options.as_json
def rename(old: str, new: str, as_json: bool) -> None:
    """Give a concept another name."""
    path = Library().rename(old, new)
    output.note(f"<{check_name(old)}> is <{check_name(new)}> now")
    if as_json:
        output.answer_json({"name": check_name(new), "path": str(path)})


@command.command(epilog="Examples:  op concepts rm bo  |  op concepts rm bo mam --yes")
@click.argument("names", metavar="NAME...", nargs=-1, shell_complete=options.complete_concepts)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@options.as_json
def rm(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Take concepts out of the library.

    `op concepts undo` brings the last one back; `op concepts forget` leaves no copy.
    """
    if not names:
        raise UsageError("rm needs a name", hint="op concepts rm NAME")
    library = Library()
    chosen = list(dict.fromkeys(check_name(name) for name in names))
    gone = [name for name in chosen if library.was_removed(name)]  # a run that was cut goes on
    doomed = [name for name in chosen if name not in gone]
    for name in doomed:
        library.path(name)  # all must be here before one goes
    if doomed:
        upkeep.confirm("delete", doomed, yes=yes)
    for name in doomed:
        library.remove(name)
        output.note(f"deleted <{name}>")
    for name in gone:
        output.note(f"<{name}> is deleted already")
    for name in doomed:
        output.hint(f"op concepts undo {name}")
    if as_json:
        output.answer_json({"removed": chosen})


@command.command(epilog="Examples:  op concepts verify bo.opconcept  |  op concepts verify bo")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@options.as_json
def verify(file: Path, as_json: bool) -> None:
    """Check a pack for damage and tricks; exit 1 when it has any.

    FILE may be - for stdin, or the name of a concept in the library.
    """
    library = Library()
    if str(file) == "-":
        problems = verify_bytes(_read_stdin())
    else:
        if not os.path.exists(file) and str(file) in library.names():
            file = library.path(str(file))
        problems = problems_of(file)
    if as_json:
        output.answer_json({"file": str(file), "sound": not problems, "problems": problems})
    else:
        for line in problems or ["sound"]:
            output.answer_line(line)
    if problems:
        raise PackError(
            f"{file.name} should not be used",
            hint="get it again, or teach it anew: op learn --help",
        )


def _import_foreign(
    path: Path,
    source: str,
    name: str | None,
    epoch: int | None,
    force: bool,
    model: str | None,
    device: str,
    dtype: str | None,
    as_json: bool,
) -> None:
    """Read what another program saved, and say what was understood."""
    from omnipersona_cli.engine import Opening
    from omnipersona_cli.engine.foreign import take_in

    with output.progress() as on_progress:
        taken = take_in(
            path,
            source,
            name=name or "",
            epoch=epoch,
            force=force,
            opening=Opening(model=model, device=device, dtype=dtype),
            on_progress=on_progress,
        )
    kept = taken.pack.name
    output.note(f"<{kept}> is in the library")
    output.hint(f'op concepts facts {kept} add "WHAT IS TRUE OF IT"')
    if as_json:
        understood = dict(taken.foreign.understood)
        output.answer_json({"name": kept, "path": str(taken.path), "understood": understood})
    else:
        output.answer(taken.path)


def _list(as_json: bool) -> None:
    library = Library()
    headers: list[PackHeader] = []
    broken: list[PersonaError] = []
    for name in library.names():
        try:
            headers.append(library.header(name))
        except PersonaError as error:
            broken.append(error)
    if as_json:
        output.answer_json([_summary(header) for header in headers])
    else:
        output.answer_table(
            ("name", "what", "learned on", "facts", "date"),
            [
                (
                    f"<{header.name}>",
                    header.class_word or header.kind or "-",
                    ", ".join(_on(header, slot) for slot in header.slots) or "-",
                    len(header.facts),
                    header.date[:10] or "-",
                )
                for header in headers
            ],
        )
        if not headers and not broken:
            output.note("no concepts yet")
            output.hint("op learn PHOTOS --name bo")
    for problem in broken:
        output.warn(f"skipped: {problem}")


def _read_stdin() -> bytes:
    return sys.stdin.buffer.read(FILE_LIMIT + 1)


def _answer_place(name: str, path: Path, as_json: bool) -> None:
    if as_json:
        output.answer_json({"name": name, "path": str(path)})
    else:
        output.answer(path)


def _summary(header: PackHeader) -> dict[str, Any]:
    return {
        "name": header.name,
        "class_word": header.class_word,
        "kind": header.kind,
        "slots": list(header.slots),
        "facts": len(header.facts),
        "date": header.date,
        "hash": header.hash,
    }


def _as_data(header: PackHeader, path: Path) -> dict[str, Any]:
    return {
        "name": header.name,
        "aliases": list(header.aliases),
        "class_word": header.class_word,
        "kind": header.kind,
        "facts": [facts.as_data(fact) for fact in header.facts],
        "slots": {
            name: {
                "tensors": {key: list(tensor.shape) for key, tensor in slot.tensors.items()},
                "about": slot.about,
                "hash": slot.hash,
            }
            for name, slot in header.slots.items()
        },
        "eval": header.evals,
        "provenance": header.provenance,
        "licence": header.licence,
        "date": header.date,
        "format": header.format,
        "hash": header.hash,
        "size": header.size,
        "path": str(path),
    }


def _answer_slot(header: PackHeader, name: str) -> None:
    """What was learned on one backbone, and how well."""
    slot = header.slots[name]
    counts = [f"{slot.tensors[key].shape[0]} {key}" for key in ("id", "und", "gen")]
    layers = {found[1] for key in slot.tensors if (found := DEEP.fullmatch(key))}
    deep = f", at {len(layers)} more {'layer' if len(layers) == 1 else 'layers'}" if layers else ""
    output.answer(f"learned on {_on(header, name)}")
    found = header.evals.get(name)
    scores = dict(found) if isinstance(found, dict) else {}
    card = scores.pop("card", None)
    if isinstance(card, dict):
        for line in card_lines(card):
            output.answer(f"  {line}")
        scores = {}  # all of them are on the card
    first = [key for key in ("verdict", "threshold") if key in scores]
    rest = [key for key in sorted(scores) if key not in first]
    about = sorted(slot.about)
    _answer_rows(
        [
            *((key, _brief(scores[key])) for key in (first + rest)[:ROWS]),
            ("tokens", f"{', '.join(counts)} of width {slot.tensors['id'].shape[1]}{deep}"),
            *((key, _brief(slot.about[key])) for key in about[:ROWS]),
        ]
    )
    if left := max(len(scores) - ROWS, 0) + max(len(about) - ROWS, 0):
        output.answer_line(f"  and {left} more, which --json shows")


def _on(header: PackHeader, slot: str) -> str:
    """The slot, and whether it is an instant concept's."""
    recipe = header.slots[slot].about.get("recipe")
    instant = isinstance(recipe, dict) and recipe.get("instant") is True
    return f"{slot} (instant)" if instant else slot


def _answer_rows(rows: Sequence[tuple[str, str]]) -> None:
    shown = [(_cut(key, COLUMN), value) for key, value in rows if value]
    width = max([11, *(len(key) for key, _ in shown)])
    for key, value in shown:
        output.answer_line(f"  {key:<{width}} {value}")


def _brief(value: object) -> str:
    """A value of the header on one line, cut where it is long."""
    if isinstance(value, dict):
        pairs = list(value.items())[:BRIEF]
        text = ", ".join(f"{_cut(str(key), COLUMN)} {_brief(part)}" for key, part in pairs)
    elif isinstance(value, list):
        text = ", ".join(_brief(part) for part in value[:BRIEF])
    else:
        text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return _cut(text, BRIEF)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _tell_age(header: PackHeader) -> None:
    if note := age_note(header):
        output.note(note)


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1_000_000 else f"{size / 1e3:.0f} kB"
