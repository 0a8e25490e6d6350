"""`op learn`: photos and facts in, a pack out."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnipersona_cli.backend import Opening
from omnipersona_cli.cli import options, output
from omnipersona_cli.errors import MissingError, PersonaError

if TYPE_CHECKING:
    from omnipersona_cli.engine import Keeping, Learned, Plan, Settings, Subject


def _subject(
    *, stated: tuple[str, ...], facts_file: Path | None = None, kind: str, **given: Any
) -> Subject:
    """What is learned, with the pictures that the options name."""
    with output.starting():
        from omnipersona_cli import engine
    from omnipersona_cli.data.facts import FactSheet, read_facts
    from omnipersona_cli.data.lessons import load_triplets
    from omnipersona_cli.data.photos import open_pictures

    if facts_file is not None and not facts_file.exists():
        raise MissingError(f"there is no {facts_file}", hint='or say it: --fact "..."')
    sheet = read_facts(facts_file) if facts_file is not None else FactSheet()
    if "negatives" in given:
        given["negatives"] = open_pictures(given["negatives"])
    if "edits" in given:
        given["triplets"] = load_triplets(given.pop("edits"))
    return engine.Subject(
        class_word=kind or sheet.class_word,
        kind=kind or sheet.kind,
        facts=(*stated, *sheet.facts),
        **given,
    )


def _settings(*, rate: float | None = None, **given: Any) -> Settings:
    """How it is learned."""
    from omnipersona_cli import engine

    return engine.Settings(learning_rate=rate, **given)


def _keeping(**given: Any) -> Keeping:
    """Where it is kept."""
    from omnipersona_cli import engine

    return engine.Keeping(header=click.get_current_context().meta.get(_HEADER), **given)


_HEADER = "omnipersona.header"
"""The header of the concept as it was when the command began, in ``meta``."""


def _as_it_is(context: click.Context, _: click.Parameter, name: str) -> str:
    """Reads the header now: importing torch takes seconds, in which facts may be added."""
    from omnipersona_cli.concepts.library import Library

    with suppress(PersonaError):
        context.meta[_HEADER] = Library().header(name)
    return name


_subject_options = options.together(
    "subject",
    _subject,
    click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path)),
    click.option(
        "--name",
        required=True,
        metavar="NAME",
        callback=_as_it_is,
        help="What to call it: bo, or <bo>.",
    ),
    click.option("--kind", default="", metavar="WORD", help="What it is: dog, person, mug."),
    click.option("--fact", "stated", multiple=True, metavar="TEXT", help="A fact; repeatable."),
    click.option(
        "--facts",
        "facts_file",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="A file of facts, one a line, or YAML.",
    ),
    click.option(
        "--negatives",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Pictures of other things, best of similar ones.",
    ),
    click.option(
        "--edits",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Examples of edits, listed in triplets.json.",
    ),
)
_opening_options = options.together(
    "opening",
    Opening,
    *options.OPENING,
    click.option(
        "--activation-checkpointing",
        is_flag=True,
        help="Learn in a fraction of the memory, half as long again; the result is the same.",
    ),
    click.option(
        "--size",
        "lesson_size",
        type=click.IntRange(min=0),
        default=0,
        metavar="N",
        help="Learn from pictures of N pixels a side instead of the backend's own: less memory.",
    ),
)
_settings_options = options.together(
    "settings",
    _settings,
    click.option(
        "--steps",
        type=int,
        help="Steps of learning; the backend knows how many, and 0 keep the start, at once.",
    ),
    click.option("--batch-size", type=int, help="Lessons in each step."),
    click.option(
        "--lessons-at-once",
        type=int,
        metavar="N",
        help="Cut each step into pieces of N lessons: less memory, the same result.",
    ),
    click.option("--rate", type=float, help="Learning rate."),
    click.option(
        "--understand-tokens",
        type=int,
        default=16,
        show_default=True,
        help="Tokens to understand by.",
    ),
    click.option(
        "--generate-tokens", type=int, default=16, show_default=True, help="Tokens to paint by."
    ),
    click.option(
        "--lambda-image", type=float, default=1.0, show_default=True, help="Weight of depiction."
    ),
    click.option(
        "--lambda-edit", type=float, default=1.0, show_default=True, help="Weight of edits."
    ),
    click.option(
        "--experts",
        type=click.Choice(("none", "lora")),
        default="none",
        show_default=True,
        help="Learn a low-rank expert for each task, where the backend offers them.",
    ),
    click.option(
        "--depth",
        type=int,
        metavar="K",
        help="Learn tokens for K layers after the first, too; the backend knows how many.",
    ),
    options.fixed_seed,
)
_keeping_options = options.together(
    "keeping",
    _keeping,
    click.option(
        "--previews",
        type=click.Path(path_type=Path, file_okay=False),
        metavar="DIR",
        help="Paint a picture there at every check, at a fixed seed.",
    ),
    click.option(
        "--samples",
        type=int,
        help="Pictures painted for the report card, 0 to 4. [default: 4; with --steps 0 none]",
    ),
    click.option(
        "--report",
        "page",
        type=options.NewFile(path_type=Path),
        metavar="FILE",
        help="Write the report card as an HTML page, with your photos in it.",
    ),
    click.option(
        "-o",
        "--out",
        type=options.NewFile(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Write the pack there instead of into the library.",
    ),
    click.option("--more", is_flag=True, help="Go on from the concept of that name."),
    click.option("--resume", is_flag=True, help="Continue where Ctrl-C or a crash left off."),
    click.option("--force", is_flag=True, help="Replace a concept of that name, and files."),
)


@click.command(
    epilog="\b\nExamples:\n  op learn photos/ --name bo\n"
    '  op learn photos/ --name bo --kind dog --fact "<bo>\'s toy is a red ball"\n'
    "  op learn photos/ --name bo --resume  |  op learn photos/ --name bo --report bo.html\n"
    "  op learn photos/ --name bo --steps 0  |  op learn photos/ --name bo --more"
)
@_subject_options
@_opening_options
@_settings_options
@_keeping_options
@click.option("--dry-run", is_flag=True, help="Say what would be learned from, and stop.")
@options.as_json
def command(
    subject: Subject,
    opening: Opening,
    settings: Settings,
    keeping: Keeping,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Learn a concept from PHOTOS (folders or files, five to ten are good) and facts about it.

    The model stays as it is; what is learned is one small file, the pack. Ctrl-C leaves the
    library as it was, and --resume goes on from there. Facts may also lie beside the photos, in
    facts.yaml. The pack's path is printed on stdout, the report card on stderr; --report writes it
    as a page, the only file that shows the photos.
    """
    from omnipersona_cli import engine

    if dry_run:
        show_plan(engine.plan(subject, settings, opening, keeping), as_json=as_json)
        return
    click.get_current_context().meta[output.WHEN_INTERRUPTED] = (
        "the same command with --resume goes on from the last checkpoint"
    )
    with output.progress() as on_progress:
        learned = engine.learn(subject, settings, keeping, opening=opening, on_progress=on_progress)
    if as_json:
        output.answer_json(as_data(learned))
    else:
        output.answer(learned.path)
    show_report(learned, in_library=keeping.out is None)
    if keeping.page is not None:
        output.note(f"the report card with the photos in it: {keeping.page}")


def show_report(learned: Learned, *, in_library: bool) -> None:
    """The report card, on stderr: what was reached, plainly, and what to try now."""
    from omnipersona_cli.concepts.card import card_lines

    report, name = learned.report, learned.pack.name
    photos = "1 photo" if report.photos == 1 else f"{report.photos} photos"
    done, steps = "learned", f"best at step {report.best_step} of {report.steps}"
    if not report.held_out:
        steps = f"{report.steps} steps, and no photo held out to tell the best of them"
    if not report.steps:
        done, steps = "started", "instant: no step was learned"
    output.note(
        f"{done} <{name}> from {photos} in {learned.seconds:.0f} s "
        f"on {learned.backend}, seed {learned.seed}; {steps}"
    )
    for line in card_lines(report.card.to_dict(named=True)):
        output.note(line)
    if report.card.grade == "weak":
        output.warn(f"<{name}> was learned weakly; the lines above say what may help")
    if not in_library:
        output.note(f"now try:  op concepts import {learned.path}")
        return
    output.note(f'now try:  op gen "<{name}> at the beach"')
    output.note(f'          op ask PICTURE "is <{name}> here?"')
    output.note(f'          op edit PICTURE "add <{name}>"')


def show_plan(plan: Plan, *, as_json: bool) -> None:
    """What would be learned from: the answer of ``--dry-run``."""
    if as_json:
        output.answer_json(vars(plan))
        return
    for note in plan.notes:
        output.note(note)
    rows = (
        ("concept", f"<{plan.name}>" + (f", {plan.class_word}" if plan.class_word else "")),
        ("backend", plan.backend),
        ("photos", f"{plan.photos}, {plan.held_out} of them held out"),
        ("negatives", plan.negatives),
        ("facts", "; ".join(plan.facts) or "none"),
        ("lessons", ", ".join(f"{count} {group}" for group, count in plan.lessons.items())),
        (
            "learning",
            f"{plan.steps} steps of {plan.batch_size}, rate {plan.learning_rate:g}"
            + (f", from pictures of {plan.lesson_size} pixels" if plan.lesson_size else "")
            if plan.steps
            else "none: the start is kept, an instant concept",
        ),
    )
    for key, value in rows:
        output.answer(f"{key:<10} {value}")


def as_data(learned: Learned) -> dict[str, Any]:
    """The result as plain values, with stable keys."""
    return {
        "path": str(learned.path),
        "name": learned.pack.name,
        "hash": learned.pack.hash,
        "backend": learned.backend,
        "seed": learned.seed,
        "seconds": round(learned.seconds, 2),
        "resumed_from": learned.resumed_from,
        "notes": list(learned.notes),
        "report": learned.report.to_dict(),
    }
