"""`op doctor`: what is installed, what this machine can do, and where every setting came from."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from omnipersona_cli import __version__, config, registry
from omnipersona_cli.cli import options, output, settings
from omnipersona_cli.errors import UsageError

PACKAGES = (
    "torch",
    "numpy",
    "pillow",
    "safetensors",
    "opencv-python-headless",
    "click",
    "pluggy",
    "tqdm",
)


@click.command(epilog="\b\nExamples:\n  op doctor\n  op doctor --json")
@options.opening
@options.seed
@options.as_json
@click.pass_context
def command(ctx: click.Context, /, as_json: bool, **_: Any) -> None:
    """Show versions, devices, plugins, folders and settings, for a report or a hunt."""
    settings = {name: value for name, value in ctx.params.items() if name != "as_json"}
    settings["offline"] = bool(_forbidden())
    stored, broken = _weights()
    found = {
        "omnipersona": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "memory_gb": _memory_gb(),
        "devices": _devices(),
        "backends": [
            {"name": info.name, "pictures": info.pictures, "needs_gb": info.memory_gb}
            for info in registry.backends().values()
        ],
        "weights": stored,
        "plugins": registry.plugins(),
        "disabled_plugins": list(registry.disabled_plugins()),
        "broken_plugins": _plugin_problems(ctx),
        "folders": {
            "config": _folder(config.config_folder()),
            "data": _folder(config.data_folder()),
            "cache": _folder(config.cache_folder()),
        },
        "settings": [
            {"name": name, "value": value, "source": _source(ctx, name)}
            for name, value in settings.items()
        ],
        "settings_error": str(ctx.meta.get(options.SETTINGS_ERROR, "")) or broken or None,
    }
    if as_json:
        output.answer_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    say = output.answer
    say(f"omnipersona {found['omnipersona']}, Python {found['python']}, {found['platform']}")
    versions = (f"{name} {version or 'missing'}" for name, version in found["packages"].items())
    say("packages   " + ", ".join(versions))
    memory = found["memory_gb"]
    say(f"memory     {memory:.1f} GB" if memory else "memory     unknown")
    for device in found["devices"]:
        amount = f", {device['memory_gb']:.1f} GB" if device["memory_gb"] else ""
        say(f"device     {device['name']}: {device['summary']}{amount}")
    for backend in found["backends"]:
        say(
            f"backend    {backend['name']}: {backend['pictures']}, needs {backend['needs_gb']:g} GB"
        )
    for weights in found["weights"]:
        say(f"weights    {weights['repo']}: {weights['gb']:.1f} GB in {weights['path']}")
    say("plugins    " + ", ".join(found["plugins"]))
    if found["disabled_plugins"]:
        say(f"disabled   {', '.join(found['disabled_plugins'])} ({registry.DISABLE})")
    for plugin in found["broken_plugins"]:
        say(f"skipped    {plugin['name']} ({plugin['where']}): {plugin['error']}")
    for name, folder in found["folders"].items():
        remark = "" if folder["writable"] else " (cannot be written)"
        say(f"{name:<10} {folder['path']}{remark}")
    for setting in found["settings"]:
        value = "-" if setting["value"] is None else setting["value"]
        say(f"setting    {setting['name']} = {value} ({setting['source']})")
    if found["settings_error"]:
        say(f"settings   {found['settings_error']}")


def _weights() -> tuple[list[dict[str, Any]], str]:
    """What was fetched for any backend, each repository once; and why that cannot be told."""
    from omnipersona_cli.family.weights import on_disk

    try:
        found = {one.repo: one for info in registry.backends().values() for one in on_disk(info)}
    except UsageError as error:
        return [], str(error)
    stored = [
        {"repo": repo, "path": str(one.folder), "gb": one.size / 1e9}
        for repo, one in sorted(found.items())
    ]
    return stored, ""


def _plugin_problems(ctx: click.Context) -> list[dict[str, str]]:
    """What is left out of plugins, after every hook that describes something was asked."""
    for ask in (registry.backends, registry.judges, registry.datasets, registry.importers):
        ask()
    root = ctx.find_root()
    if isinstance(root.command, click.Group):
        root.command.list_commands(root)
    return [
        {"name": problem.plugin, "where": problem.where, "error": problem.message}
        for problem in registry.problems()
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _memory_gb() -> float | None:
    """The machine's memory; None where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def _devices() -> list[dict[str, Any]]:
    """What torch can compute on; a torch that cannot be imported is told, not raised."""
    cpu: dict[str, Any] = {"name": "cpu", "summary": f"{os.cpu_count()} cores", "memory_gb": None}
    output.note("loading torch ...")
    try:
        import torch
    except (ImportError, OSError) as error:
        return [cpu, {"name": "none", "summary": f"torch is broken: {error}", "memory_gb": None}]
    devices = [cpu]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": f"cuda:{index}",
                "summary": found.name,
                "memory_gb": found.total_memory / 2**30,
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "summary": "Apple GPU", "memory_gb": None})
    return devices


def _folder(path: Path) -> dict[str, Any]:
    """Where it is, and whether something could be written there; nothing is created."""
    nearest_real = next((place for place in (path, *path.parents) if place.exists()), path)
    writable = nearest_real.is_dir() and os.access(nearest_real, os.W_OK)
    return {"path": str(path), "exists": path.is_dir(), "writable": writable}


def _source(ctx: click.Context, name: str) -> str:
    source = ctx.get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        return "flag"
    if source is ParameterSource.ENVIRONMENT:
        own = settings.variable("doctor", name)
        return own if os.environ.get(own) else settings.variable(name)
    found = settings.place(ctx, name) if source is ParameterSource.DEFAULT_MAP else None
    if found:
        return f"{found[0]}, line {found[1]}"
    return (name == "offline" and _forbidden()) or "default"


def _forbidden() -> str:
    """The variable that forbids the network."""
    from omnipersona_cli.family.weights import offline

    return offline()
