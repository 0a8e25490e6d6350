"""Tables of what is installed, from the same descriptions that `op backends` reads."""

from __future__ import annotations

from omnipersona_cli import registry


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


def judges() -> str:
    """Judges, what they need and under which licence."""
    lines = ["| judge | | needs | licence |", "| --- | --- | --- | --- |"]
    for info in registry.judges().values():
        needs = info.needs or "nothing"
        lines.append(f"| `{info.name}` | {info.summary} | {needs} | {info.licence or '—'} |")
    return "\n".join(lines)
