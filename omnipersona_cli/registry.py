"""Find plugins, ask them what they bring, open a backend when it is chosen.

The only user of pluggy: hook calls are untyped, so they hide behind the typed functions here.
Whatever a person sees is sorted by name, because pluggy calls the last registered plugin first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import pluggy

from omnipersona_cli import hookspecs
from omnipersona_cli.backend import Backend, BackendInfo
from omnipersona_cli.errors import MissingError, nearest
from omnipersona_cli.hookspecs import (
    CommandInfo,
    DatasetInfo,
    ImporterInfo,
    JudgeInfo,
    Progress,
    Subject,
)

if TYPE_CHECKING:
    from PIL.Image import Image

GROUP = "omnipersona"
"""The entry-point group, and pluggy's project name."""

DEFAULT_BACKEND = "nano"
"""What a verb uses when neither ``-b`` nor a pack says otherwise."""


class Named(Protocol):
    """Every description that a hook returns carries its name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)


def plugin_manager() -> pluggy.PluginManager:
    """The plugin manager, with every installed plugin registered; made once."""
    return _loaded()[0]


def broken_plugins() -> list[tuple[str, Exception]]:
    """Plugins that were skipped: they cannot be imported, or implement a hook we do not have."""
    return list(_loaded()[1])


def forget() -> None:
    """Look for plugins again at the next question: for tests, and after an installation."""
    _loaded.cache_clear()


def plugins() -> list[str]:
    """Names of the plugins that work."""
    return sorted(name for name, plugin in plugin_manager().list_name_plugin() if plugin)


@cache
def _loaded() -> tuple[pluggy.PluginManager, list[tuple[str, Exception]]]:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    broken: list[tuple[str, Exception]] = []
    for entry in sorted(entry_points(group=GROUP), key=lambda found: found.name):
        try:
            manager.register(entry.load(), name=entry.name)
        except Exception as error:  # a stranger's code: one broken plugin must not take `op` down
            broken.append((entry.name, error))
    while True:
        try:
            manager.check_pending()  # a hook we do not have: misspelt, or made for a newer op
            return manager, broken
        except pluggy.PluginValidationError as error:
            broken.append((manager.get_name(error.plugin) or repr(error.plugin), error))
            manager.unregister(error.plugin)


def backends() -> dict[str, BackendInfo]:
    """Installed backends by name. Imports no model code."""
    return _by_name(plugin_manager().hook.op_backends())


def commands() -> dict[str, CommandInfo]:
    """Commands that plugins add, by name."""
    return _by_name(plugin_manager().hook.op_commands())


def judges() -> dict[str, JudgeInfo]:
    """Judges that plugins bring, by name."""
    return _by_name(plugin_manager().hook.op_judges())


def datasets() -> dict[str, DatasetInfo]:
    """Benchmarks that plugins can draw, by name."""
    return _by_name(plugin_manager().hook.op_datasets())


def importers() -> dict[str, ImporterInfo]:
    """Readers of what other programs saved, by the program's name."""
    return _by_name(plugin_manager().hook.op_importers())


def find_subject(photo: Image, kind: str) -> Subject | None:
    """Where the subject of ``photo`` is, from the first finder that knows."""
    return cast("Subject | None", plugin_manager().hook.op_find_subject(photo=photo, kind=kind))


def negatives(
    kind: str, count: int, seed: int, photos: Sequence[Image], backend: str
) -> list[Image]:
    """At most ``count`` pictures that are not the concept, from all plugins in turn."""
    answers = plugin_manager().hook.op_negatives(
        kind=kind, count=count, seed=seed, photos=photos, backend=backend
    )
    return list(chain.from_iterable(answers))[:count]


def report(event: Progress) -> None:
    """Tell every listening plugin about one beat of long work."""
    plugin_manager().hook.op_progress(event=event)


def load(entry: str) -> Any:
    """What ``"module:name"`` points at, imported now."""
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)


def backend_info(name: str) -> BackendInfo:
    """The description of the backend called ``name``; MissingError when there is none."""
    known = backends()
    if name not in known:
        guess = nearest(name, known)
        raise MissingError(
            f"there is no backend called {name!r}",
            hint=f"did you mean {guess}? See `op backends`" if guess else "see `op backends`",
        )
    return known[name]


def importer_info(name: str) -> ImporterInfo:
    """The importer called ``name``; MissingError when there is none."""
    known = importers()
    if name not in known:
        guess = nearest(name, known)
        raise MissingError(
            f"nothing here reads concepts of {name!r}",
            hint=f"did you mean {guess}?" if guess else f"--from takes {' | '.join(known)}",
        )
    return known[name]


def open_backend(
    name: str, *, model: str | None = None, device: str = "auto", dtype: str | None = None
) -> Backend:
    """Import the backend called ``name`` and build its model.

    Raises MissingError for a name that is not installed and for a package that the backend needs
    and that is not here; whatever the opener raises passes through.
    """
    info = backend_info(name)
    try:
        opener = load(info.opens)
        return cast(Backend, opener(model, device, dtype))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith(("op_", "omnipersona")) or not missing:
            raise  # our own file is not there: a bug, not something to install
        raise MissingError(
            f"backend {name} needs the Python package {missing!r}, which is not installed",
            hint=f"pip install {missing}",
        ) from error


def _by_name(answers: Iterable[Iterable[N]]) -> dict[str, N]:
    return {info.name: info for info in sorted(chain(*answers), key=lambda info: info.name)}
