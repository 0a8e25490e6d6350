"""Find plugins, ask them what they bring, open a backend when it is chosen.

The only user of pluggy. A plugin can break only itself: each is asked by itself, one that raises or
gives what it should not is left out of that answer, and `problems` remembers why. A name that two
plugins bring belongs to neither of them, except that what comes with omnipersona keeps its name.
Whatever a person sees is sorted by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import pluggy

from omnipersona_cli import hookspecs
from omnipersona_cli.backend import Backend, BackendInfo, Opening, Work
from omnipersona_cli.errors import MissingError, ResourceError, UsageError, memory_ran_out, nearest
from omnipersona_cli.hookspecs import (
    CommandInfo,
    DatasetInfo,
    ImporterInfo,
    JudgeInfo,
    Progress,
    Region,
)

if TYPE_CHECKING:
    from PIL.Image import Image

GROUP = "omnipersona"
"""The entry-point group, pluggy's project name, and the distribution whose plugins are built in."""

DISABLE = "OMNIPERSONA_DISABLE"
"""The variable that switches plugins off: their names with commas between them."""

DEFAULT_BACKEND = "nano"
"""What a verb uses when neither ``-b`` nor a pack says otherwise."""


class Named(Protocol):
    """Every description that a hook returns carries its name."""

    @property
    def name(self) -> str: ...


N = TypeVar("N", bound=Named)
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why something of a plugin is left out: ``message`` on one line, what was asked in ``where``
    (a hook, or "loading"), and the ``name`` that was refused where it is only that."""

    plugin: str
    where: str
    message: str
    name: str = ""


@dataclass(frozen=True, kw_only=True)
class _Loaded:
    """Every plugin that works, and what is known of the rest."""

    manager: pluggy.PluginManager
    built_in: frozenset[str]
    disabled: tuple[str, ...]
    problems: dict[Problem, None] = field(default_factory=dict)

    def remember(self, plugin: str, where: str, message: str, *, name: str = "") -> None:
        """Keep a problem; the same one is kept once, however often it is met."""
        line = " ".join(message.split())
        self.problems[Problem(plugin=plugin, where=where, message=line, name=name)] = None


def plugin_manager() -> pluggy.PluginManager:
    """The plugin manager, with every installed plugin registered; made once."""
    return _loaded().manager


def problems() -> list[Problem]:
    """What was left out so far: plugins that cannot be loaded, hooks that failed, names that two
    plugins bring."""
    return list(_loaded().problems)


def problems_so_far() -> list[Problem]:
    """As `problems`, and nothing where no plugin has been asked anything: loads none."""
    return problems() if _loaded.cache_info().currsize else []


def disabled_plugins() -> tuple[str, ...]:
    """Names that `DISABLE` switches off, installed or not."""
    return _loaded().disabled


def forget() -> None:
    """Look for plugins again at the next question: for tests, and after an installation."""
    _loaded.cache_clear()


def plugins() -> list[str]:
    """Names of the plugins that work."""
    return sorted(name for name, plugin in plugin_manager().list_name_plugin() if plugin)


@cache
def _loaded() -> _Loaded:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    names = (name.strip() for name in os.environ.get(DISABLE, "").split(","))
    disabled = tuple(sorted({name for name in names if name}))
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    built_in = frozenset(entry.name for entry in entries if _is_built_in(entry))
    loaded = _Loaded(manager=manager, built_in=built_in, disabled=disabled)
    for entry in entries:
        if entry.name in disabled:
            continue
        try:
            manager.register(entry.load(), name=entry.name)
        except (Exception, SystemExit) as error:  # a stranger's code; some modules end in exit()
            loaded.remember(entry.name, "loading", _said(error))
    while True:
        try:
            manager.check_pending()  # a hook we do not have: misspelt, or made for a newer op
            return loaded
        except pluggy.PluginValidationError as error:
            name = manager.get_name(error.plugin) or repr(error.plugin)
            loaded.remember(name, "loading", _said(error))
            manager.unregister(error.plugin)


def backends() -> dict[str, BackendInfo]:
    """Installed backends by name. Imports no model code."""
    return _described("op_backends", BackendInfo, "backend")


def commands(reserved: Collection[str] = ()) -> dict[str, CommandInfo]:
    """Commands that plugins add, by name; ``reserved`` are names that they cannot have."""
    return _described("op_commands", CommandInfo, "command", reserved)


def judges() -> dict[str, JudgeInfo]:
    """Judges that plugins bring, by name."""
    return _described("op_judges", JudgeInfo, "judge")


def datasets() -> dict[str, DatasetInfo]:
    """Benchmarks that plugins can draw, by name."""
    return _described("op_datasets", DatasetInfo, "dataset")


def importers() -> dict[str, ImporterInfo]:
    """Readers of what other programs saved, by the program's name."""
    return _described("op_importers", ImporterInfo, "importer")


def find_subject(photo: Image, kind: str) -> Region | None:
    """Where the subject of ``photo`` is, from the first finder that knows."""

    def one(answer: object) -> Region | None:
        if answer is not None and not isinstance(answer, Region):
            raise TypeError(f"a Region or None was asked for, not {type(answer).__name__}")
        return answer

    asked = _asked("op_find_subject", one, photo=photo, kind=kind)
    return next((found for _, found in asked if found is not None), None)


def negatives(
    kind: str, count: int, seed: int, photos: Sequence[Image], backend: str
) -> list[Image]:
    """At most ``count`` pictures that are not the concept, from all plugins in turn."""
    from PIL.Image import Image

    asked = _asked(
        "op_negatives",
        lambda answer: _all_of(answer, Image),
        kind=kind,
        count=count,
        seed=seed,
        photos=photos,
        backend=backend,
    )
    return [picture for _, pictures in asked for picture in pictures][:count]


def load(entry: str) -> Any:
    """What ``"module:name"`` points at, imported now."""
    module, _, name = entry.partition(":")
    return getattr(import_module(module), name)


def backend_info(name: str) -> BackendInfo:
    """The description of the backend called ``name``.

    Raises MissingError when there is none, UsageError when two plugins bring one.
    """
    known = backends()
    if name not in known:
        _check_contested("op_backends", name)
        guess = nearest(name, known)
        if name in disabled_plugins():
            raise MissingError(
                f"the plugin {name} is switched off by {DISABLE}", hint=f"unset {DISABLE}"
            )
        raise MissingError(
            f"there is no backend called {name!r}",
            hint=f"did you mean {guess}? See `op backends`" if guess else "see `op backends`",
        )
    return known[name]


def importer_info(name: str) -> ImporterInfo:
    """The importer called ``name``.

    Raises MissingError when there is none, UsageError when two plugins bring one.
    """
    known = importers()
    if name not in known:
        _check_contested("op_importers", name)
        guess = nearest(name, known)
        raise MissingError(
            f"nothing here reads concepts of {name!r}",
            hint=f"did you mean {guess}?" if guess else f"--from takes {' | '.join(known)}",
        )
    return known[name]


def fitted(opening: Opening, work: Work) -> tuple[Opening, str]:
    """How to open so that ``work`` keeps to the memory there is, or to ``opening.memory``, and a
    note where that is not as asked; `open_backend` does it, and a server before it opens for many.

    Raises ResourceError where it does not fit, with the flags that would.
    """
    from omnipersona_cli.family.room import fitted as with_means

    return with_means(backend_info(opening.backend or DEFAULT_BACKEND), opening, work)


def open_backend(
    opening: Opening,
    *,
    work: Work | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Backend:
    """Import the backend that ``opening`` names, or the default one, and build its model.

    The one place that opens. With ``work``, what that will take of memory is known before weights
    are read, and where ``opening.memory`` sets a limit, the means are chosen that keep to it.
    Reports ``Progress(phase="loading NAME")``, and how far reading is. Raises MissingError for a
    name that is not installed and for a package that the backend needs and that is not here,
    ResourceError where memory will not do or runs out; whatever else the opener raises passes
    through.

    Where ``info.threads`` says so, torch is told to use fewer processor threads. That holds for the
    whole process: torch has no narrower setting that its backward pass obeys. Setting
    OMP_NUM_THREADS keeps a person's own number.
    """
    name = opening.backend or DEFAULT_BACKEND
    info = backend_info(name)
    from omnipersona_cli.family.weights import check_endpoint, remarks

    check_lesson_size(info, opening.lesson_size)
    check_endpoint(info)
    if on_progress is not None:
        for note in remarks(info, opening):
            on_progress(Progress(phase=f"loading {name}", note=note))
    if work is not None:
        opening, note = fitted(opening, work)
        if note and on_progress is not None:
            on_progress(Progress(phase=f"loading {name}", note=note))
    on_step = None
    if on_progress is not None:
        tell, phase = on_progress, f"loading {name}"
        tell(Progress(phase=phase))

        def on_step(done: int, total: int) -> None:
            tell(Progress(phase=phase, step=done, total=total))

    try:
        opener = load(info.opens)
        with memory_errors(name):
            backend = cast(Backend, opener(replace(opening, backend=name, on_step=on_step)))
    except MissingError as error:
        from omnipersona_cli.family.weights import fetch_command

        if error.hint == fetch_command(info):  # of its own weights; these may be others
            error.hint = fetch_command(info, opening.model or "")
        raise
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith(("op_", "omnipersona")) or not missing:
            raise  # our own file is not there: a bug, not something to install
        raise MissingError(
            f"backend {name} needs the Python package {missing!r}, which is not installed",
            hint=f"pip install {missing}",
        ) from error
    if info.threads and not os.environ.get("OMP_NUM_THREADS"):
        _use_threads(info.threads)
    return backend


def check_lesson_size(info: BackendInfo, size: int) -> None:
    """UsageError where ``info`` does not learn from pictures of ``size`` pixels a side (0: its
    own)."""
    if not size:
        return
    if info.lesson_sizes is None:
        width, height = info.sizes[0]
        raise UsageError(
            f"{info.name} learns from pictures of one size, {width}x{height}",
            hint="leave out --size",
        )
    least, usual = info.lesson_sizes
    if not least <= size <= usual:
        raise UsageError(
            f"{info.name} learns from pictures of {least} to {usual} pixels a side, not of {size}",
            hint=f"--size {least if size < least else usual}",
        )


def revisions(info: BackendInfo, opening: Opening) -> dict[str, str]:
    """The revision of each of the hub's repositories that ``opening`` opens."""
    from omnipersona_cli.family.weights import revisions as of_weights

    return of_weights(info, opening)


def _use_threads(most: int) -> None:
    """At most so many threads from now on."""
    import torch

    torch.set_num_threads(min(most, torch.get_num_threads()))


@contextmanager
def memory_errors(backend: str) -> Iterator[None]:
    """Memory that runs out inside is a ResourceError with a way out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_ran_out(error):
            raise
        smaller = "" if backend == DEFAULT_BACKEND else f", or -b {DEFAULT_BACKEND}"
        raise ResourceError(
            f"{backend} ran out of memory",
            hint=f"try a smaller --size, --dtype bfloat16{smaller}; see `op doctor`",
        ) from error


def _asked(hook: str, check: Callable[[object], T], **arguments: Any) -> Iterator[tuple[str, T]]:
    """Each plugin's name and its own answer to ``hook``, as ``check`` gives it back, in pluggy's
    order; a plugin that raises, in the hook or in the check, is left out and remembered."""
    loaded = _loaded()
    for implementation in reversed(getattr(loaded.manager.hook, hook).get_hookimpls()):
        given = [arguments[name] for name in implementation.argnames]
        try:
            answer = check(implementation.function(*given))
        except (Exception, SystemExit) as error:
            loaded.remember(implementation.plugin_name, hook, _said(error))
        else:
            yield implementation.plugin_name, answer


def _described(hook: str, kind: type[N], what: str, reserved: Collection[str] = ()) -> dict[str, N]:
    """What all plugins bring, by name. A name that two bring is left out, and remembered, unless
    one of the two is built in; a reserved one is always left out."""
    loaded = _loaded()
    brought: dict[str, dict[str, N]] = {}
    for plugin, infos in _asked(hook, lambda answer: _all_of(answer, kind)):
        for info in infos:
            if info.name in reserved:
                message = f"op has a {what} called {info.name!r} of its own"
                loaded.remember(plugin, hook, message, name=info.name)
            elif plugin in brought.get(info.name, {}):
                message = f"it brings two of a {what} called {info.name!r}; the first is kept"
                loaded.remember(plugin, hook, message, name=info.name)
            else:
                brought.setdefault(info.name, {})[plugin] = info
    known = {}
    for name, infos_by_plugin in sorted(brought.items()):
        owners = sorted(infos_by_plugin)
        ours = [plugin for plugin in owners if plugin in loaded.built_in]
        keeper = ours[0] if len(ours) == 1 else owners[0] if len(owners) == 1 else None
        if keeper is not None:
            known[name] = infos_by_plugin[keeper]
        for plugin in owners:
            if plugin != keeper and len(owners) > 1:
                others = ", ".join(other for other in owners if other != plugin)
                message = f"the plugin {others} brings a {what} called {name!r} too"
                loaded.remember(plugin, hook, message, name=name)
    return known


def _check_contested(hook: str, name: str) -> None:
    """UsageError where ``name`` is known to be brought by two plugins."""
    for problem in problems():
        if problem.where == hook and problem.name == name:
            raise UsageError(
                f"the plugin {problem.plugin} brings {name!r}, but {problem.message}",
                hint=f"switch one of them off: export {DISABLE}={problem.plugin}",
            )


def _all_of(answer: object, kind: type[T]) -> list[T]:
    """``answer`` as a list of ``kind``; TypeError where it is not."""
    items = list(cast("Sequence[object]", answer))
    for item in items:
        if not isinstance(item, kind):
            raise TypeError(f"{kind.__name__} was asked for, not {type(item).__name__}")
    return cast("list[T]", items)


def _is_built_in(entry: EntryPoint) -> bool:
    return entry.dist is not None and entry.dist.name == GROUP


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
