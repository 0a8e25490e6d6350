"""`op bench`: a data set in, the paper's table out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from omnipersona_cli.backend import Opening
from omnipersona_cli.cli import options, output
from omnipersona_cli.concepts.container import write_file
from omnipersona_cli.errors import MissingError, ResourceError, UsageError


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\b\nExamples:\n  op bench export-toy toyset --concepts 4\n"
    "  op bench run toyset --judge toy -o results\n  op bench report results",
)
def command() -> None:
    """Measure a backend on a benchmark of concepts."""


@command.command(epilog="\b\nExamples:\n  op bench judges\n  op bench judges --json")
@options.as_json
def judges(as_json: bool) -> None:
    """List who can score, and what each of them needs."""
    from omnipersona_cli import registry

    known = registry.judges()
    if as_json:
        output.answer_json(
            [
                {
                    "name": judge.name,
                    "summary": judge.summary,
                    "needs": judge.needs,
                    "licence": judge.licence,
                }
                for judge in known.values()
            ]
        )
        return
    for judge in known.values():
        output.answer(f"{judge.name}: {judge.summary}")
        for key, value in (("needs", judge.needs), ("licence", judge.licence)):
            if value:
                output.answer(f"  {key:<8} {value}")


@command.command(
    "export-toy",
    epilog="\b\nExamples:\n  op bench export-toy toyset\n  op bench export-toy small --concepts 2",
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--concepts", default=20, show_default=True, type=click.IntRange(1, 1000),
    help="How many to draw.",
)  # fmt: skip
@click.option("--set", "name", default="toy", show_default=True, help="Which made-up set.")
@options.as_json
def export_toy(folder: Path, concepts: int, name: str, as_json: bool) -> None:
    """Draw a complete benchmark into FOLDER.

    What is true of each picture lies beside it.
    """
    from omnipersona_cli import registry
    from omnipersona_cli.hookspecs import Progress

    known = registry.datasets()
    if name not in known:
        raise MissingError(
            f"there is no made-up set called {name!r}",
            hint=f"there are {', '.join(known)}" if known else "install a plugin that draws one",
        )
    write = registry.load(known[name].writes)
    with output.progress() as on_progress:
        write(
            folder,
            concepts=concepts,
            on_concept=lambda drawn, total: on_progress(
                Progress(phase="drawing", step=drawn, total=total)
            ),
        )
    output.note(f"drew {concepts} concepts")
    if as_json:
        output.answer_json({"path": str(folder), "set": name, "concepts": concepts})
    else:
        output.answer(folder)


@command.command(
    epilog="\b\nExamples:\n  op bench run toyset --judge toy -o results\n"
    "  op bench run toyset --method all --workers 2 -o results\n"
    "  op bench run toyset --concepts pet00,pet01 --tasks recognition,parg --seeds 1 -o quick"
)
@click.argument("data", type=click.Path(path_type=Path))
@options.opening
@click.option("--concepts", metavar="NAMES", help="Only these, with commas between.")
@click.option("--tasks", metavar="TASKS", help="Only these: recognition, vqa, qa, generation, …")
@click.option(
    "--method", "methods", multiple=True, metavar="NAME",
    help='What to measure, repeatable; "all" for every ablation and rival. [default: full]',
)  # fmt: skip
@click.option(
    "--profile", type=click.Choice(("strict", "compat")), default="strict", show_default=True,
    help="Our scoring, or that of the released evaluators.",
)  # fmt: skip
@click.option(
    "--judge", "judges", multiple=True, metavar="NAME",
    help="Who scores what rules cannot; repeatable, the first that is able is asked. See "
    "`op bench judges`.",
)  # fmt: skip
@click.option(
    "--seeds", default=3, show_default=True, type=click.IntRange(1, 100),
    help="How often to learn and measure each concept, every time from another seed.",
)  # fmt: skip
@click.option("--steps", type=click.IntRange(1), help="Steps of learning.")
@click.option(
    "--packs", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Use these packs for the full method instead of learning.",
)  # fmt: skip
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1, 64),
    help="Processes that work at once; each opens the model.",
)  # fmt: skip
@click.option(
    "--retry-failed", is_flag=True, help="Ask again where a judge failed in an earlier run."
)
@click.option(
    "-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="Keep results there; the same command goes on with an interrupted run.",
)  # fmt: skip
@options.as_json
def run(
    data: Path,
    opening: Opening,
    concepts: str | None,
    tasks: str | None,
    methods: tuple[str, ...],
    profile: Any,
    judges: tuple[str, ...],
    seeds: int,
    steps: int | None,
    packs: Path | None,
    workers: int,
    retry_failed: bool,
    out: Path,
    as_json: bool,
) -> None:
    """Learn every concept of DATA and measure it, item by item.

    A run that was interrupted goes on with the same command and ends in the same file. Results do
    not depend on the number of workers.
    """
    from omnipersona_cli.bench import report as reporting
    from omnipersona_cli.bench.dataset import BENCH_TASKS
    from omnipersona_cli.bench.run import run as run_order
    from omnipersona_cli.bench.unit import Order

    order = Order(
        data=data,
        out=out,
        opening=opening,
        concepts=_split(concepts),
        tasks=_split(tasks) or BENCH_TASKS,  # type: ignore[arg-type]  # checked by the run
        methods=methods or ("full",),
        profile=profile,
        judges=judges,
        seeds=seeds,
        steps=steps,
        packs=packs,
        workers=workers,
        retry_failed=retry_failed,
    )
    with output.progress() as on_progress:
        run_order(order, on_progress=on_progress)
    records, setting, times = reporting.load([out])
    if as_json:
        output.answer_json(reporting.as_json(records, setting, times))
    else:
        output.answer(reporting.as_markdown(records, setting, times))


@command.command(
    epilog="\b\nExamples:\n  op bench report results\n"
    "  op bench report results --data toyset --html results.html\n"
    "  op bench report results --json"
)
@click.argument(
    "results", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False)
)
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="Also write one page with every picture in it.",
)  # fmt: skip
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
    help="The data set, for the photos and the sources of edits on the page.",
)  # fmt: skip
@options.as_json
def report(results: tuple[Path, ...], page: Path | None, data: Path | None, as_json: bool) -> None:
    """Print the table of RESULTS.

    Below it stands what the paper found, and whether it holds here.
    """
    from omnipersona_cli.bench import report as reporting

    if data is not None and not data.is_dir():
        raise UsageError(f"there is no folder {data}", hint="--data names the data set")
    records, setting, times = reporting.load(results)
    if page is not None:
        from omnipersona_cli.bench.dataset import read_dataset
        from omnipersona_cli.bench.page import as_html

        dataset = None if data is None else read_dataset(data, setting["concepts"])
        if dataset is not None and len(results) == 1 and dataset.digest() != setting["data"]:
            output.warn(f"{data} is not, or no longer, what these results were measured on")
        _write_page(page, as_html(records, setting, times, dataset))
        output.note(f"wrote {page}")
    if as_json:
        output.answer_json(reporting.as_json(records, setting, times))
    else:
        output.answer(reporting.as_markdown(records, setting, times))


def _write_page(page: Path, text: str) -> None:
    """The page, whole or not at all."""
    try:
        write_file(page, text.encode(), overwrite=True)
    except ResourceError as error:
        raise ResourceError(str(error), hint="name another file with --html") from error


def _split(words: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (words or "").split(",") if word.strip())
