"""Tables of what is installed, from the same descriptions that `op backends` reads."""

from __future__ import annotations

from string import ascii_lowercase

from omnipersona_cli import registry
from omnipersona_cli.backend import Opening
from omnipersona_cli.family import room

MODELS = {"janus": ("deepseek-community/Janus-Pro-7B", "FreedomIntelligence/Janus-4o-7B")}
"""Models besides the default one that differ from it in size."""


def table() -> str:
    """Backends by the memory that they need to run."""
    lines = [
        "| backend | model | sizes | edits | memory to run | licence |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for info in sorted(registry.backends().values(), key=lambda one: one.memory_gb):
        first = "x".join(map(str, info.sizes[0]))
        sizes = first + (f" and {len(info.sizes) - 1} more" if len(info.sizes) > 1 else "")
        for model, memory in {info.default_model: info.memory_gb, **info.memory_by_model}.items():
            lines.append(
                f"| `{info.name}` | {model.replace('+', ' + ')} | {sizes} "
                f"| {info.tasks.get('edit', 'no')} | {memory:g} GB | {info.licence} |"
            )
    return "\n".join(lines)


def notes() -> str:
    """What a person should know before choosing one."""
    lines = []
    for info in registry.backends().values():
        lines += [f"- `{info.name}`: {note.rstrip('.')}." for note in info.notes]
    return "\n".join(lines)


def cards() -> str:
    """What each verb of each model takes on each card; letters stand for flags."""
    known: dict[tuple[str, ...], str] = {}
    places = [place.name for place in room.PLACES]
    lines = [f"| model and verb | {' | '.join(places)} |", "| --- " * (1 + len(places)) + "|"]
    for info in registry.backends().values():
        for model in dict.fromkeys((info.default_model, *MODELS.get(info.name, ()))):
            cells = room.table(info, Opening(backend=info.name, model=model))
            name = "" if model == "embedded" else f", {model.rpartition('/')[2]}"
            lines.append(f"| **{info.name}**{name} |{' |' * len(places)}")
            for verb in dict.fromkeys(cell.verb for cell in cells):
                shown = []
                for cell in (it for it in cells if it.verb == verb):
                    letter = ""
                    if cell.fits and cell.flags:
                        letter = known.setdefault(cell.flags, ascii_lowercase[len(known)])
                    shown.append(f"{cell.takes:.1f} {letter}".strip() if cell.fits else "-")
                lines.append(f"| {verb} | {' | '.join(shown)} |")
    lines += ["", *(f"- {letter}: `{' '.join(way)}`" for way, letter in known.items())]
    return "\n".join(lines)


def judges() -> str:
    """Judges, what they need and under which licence."""
    lines = ["| judge | | needs | licence |", "| --- | --- | --- | --- |"]
    for info in registry.judges().values():
        needs = info.needs or "nothing"
        lines.append(f"| `{info.name}` | {info.summary} | {needs} | {info.licence or '—'} |")
    return "\n".join(lines)
