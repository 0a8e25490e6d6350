"""Where a model's files are: in a folder, in the hub's cache, or still on the hub.

One function says which files of a repository are read (`patterns`). Fetching and finding both use
it: the hub's client calls a snapshot incomplete that was fetched with other patterns than those it
is looked up with.

What a person means by a name is decided in one place, `place_of`: ``owner/name`` is the hub's
wherever the backend knows that repository or the hub's cache has it, and else a folder of that
name; ``./owner/name`` is always the folder.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from omnipersona_cli.backend import BackendInfo, OnStep, Opening, is_hub_id
from omnipersona_cli.errors import (
    MissingError,
    PersonaError,
    ResourceError,
    UsageError,
    nearest,
    shell_word,
)
from omnipersona_cli.family.download import brought, fetch_file, is_resumable
from omnipersona_cli.family.failures import cache_variable, hub_error
from omnipersona_cli.family.revisions import COMMIT, MEGABYTE, check_files, revision_of
from omnipersona_cli.hookspecs import OnProgress, Progress

EMBEDDED = "embedded"
"""The model name of a backend whose weights come with its package."""

FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken")
"""What is read of a repository where its backend says nothing else: weights that are not pickles,
configurations, tokenizers."""


def patterns(info: BackendInfo, repo: str) -> tuple[str, ...]:
    """Which files of ``repo`` the backend reads, as patterns of their paths."""
    of_components = {component.repo: component.files for component in info.components}
    return of_components.get(repo) or info.files or FILES


def repositories(info: BackendInfo, model: str) -> tuple[str, ...]:
    """The repositories that ``model`` needs: its own ("A+B" are two) and its components'."""
    known = {info.default_model, *info.models}
    components = (
        component.repo for component in info.components if model in (component.models or known)
    )
    return (*model.split("+"), *components)


def place_of(model: str, info: BackendInfo) -> Path | None:
    """The folder or file that ``model`` names; None where it names weights of the hub, or nothing
    that is here."""
    path = Path(os.path.expanduser(model))
    if not path.exists() or (is_hub_id(model) and (_is_known(model, info) or _in_cache(model))):
        return None
    return path


def locate(
    model: str,
    info: BackendInfo,
    *,
    single: bool = False,
    revisions: Mapping[str, str] = MappingProxyType({}),
) -> Path:
    """The folder of ``model``: itself where it is one, or what is in the hub's cache. With
    ``single`` it may also be one file. ``revisions`` are those that are wanted, by repository; one
    that is not here is told by `remarks`, and the one that is here is taken.

    Never downloads: `op backends fetch` does. Raises MissingError where nothing is there,
    UsageError for a file where a folder is needed and for a broken HF_ENDPOINT.
    """
    check_endpoint(info)
    path = place_of(model, info)
    if path is not None and (path.is_dir() or single):
        return path.resolve()
    if path is not None:
        raise UsageError(
            f"{model} is a file, and {info.name} reads a folder",
            hint=f"--model {shell_word(path.parent)}",
        )
    if Path(model).is_absolute() or model.startswith((".", "~")):
        raise MissingError(f"there is no folder {model}", hint=fetch_command(info, model))
    for revision in filter(None, (revisions.get(model), "main")):
        found = _snapshot(model, info, revision)
        if found is not None:
            return found
    folder = f", or take the folder that is here: --model ./{model}" if Path(model).exists() else ""
    raise MissingError(
        f"the weights {model} are not on this computer, or not all of them",
        hint=fetch_command(info, model) + folder,
    )


def check_known(info: BackendInfo, model: str) -> None:
    """Raises what `locate` does for a model that the backend does not name and that is not here."""
    if model in (info.default_model, *info.models) or place_of(model, info) is not None:
        return
    for part in model.split("+"):
        if part not in info.models:
            locate(part, info, single=True)


def folder_of(
    model: str,
    info: BackendInfo,
    *,
    single: bool = False,
    revisions: Mapping[str, str] = MappingProxyType({}),
) -> Path | None:
    """As `locate`, and None where nothing is there."""
    try:
        return locate(model, info, single=single, revisions=revisions)
    except PersonaError:
        return None


def public_name(model: str, info: BackendInfo) -> str:
    """``model`` as packs and pictures may tell it: a hub id, or the name of a folder or a file
    without the path to it, which would tell of this machine."""
    path = place_of(model, info)
    return model if path is None else path.resolve().name


def revisions(info: BackendInfo, opening: Opening) -> dict[str, str]:
    """The revision of each repository of the hub that is opened, components included."""
    found = {}
    for repo in filter(is_hub_id, repositories(info, opening.model or info.default_model)):
        folder = folder_of(repo, info, revisions=opening.revisions)
        if folder is not None and (revision := revision_of(folder)):
            found[repo] = revision
    return found


def remarks(info: BackendInfo, opening: Opening) -> Iterator[str]:
    """What a person should know of what is opened: whether a name of two meanings is the hub's or
    the folder's, and that a wanted revision is not the one that is here."""
    for repo in filter(is_hub_id, repositories(info, opening.model or info.default_model)):
        if Path(repo).exists():
            if place_of(repo, info) is None:
                yield f"{repo} is the hub's; the folder of that name is --model ./{repo}"
            else:
                yield f"{repo} is the folder that is here, and not the hub's"
    here = revisions(info, opening)
    for repo, wanted in opening.revisions.items():
        if repo in here and here[repo] != wanted:
            yield (
                f"the concept was learned on {repo} at revision {wanted[:12]}, and here is "
                f"{here[repo][:12]}; to fetch that: {fetch_command(info, repo)} --revision {wanted}"
            )


def _is_known(repo: str, info: BackendInfo) -> bool:
    names = (info.default_model, *info.models, *(part.repo for part in info.components))
    return any(repo in name.split("+") for name in names)


def _in_cache(repo: str) -> bool:
    return _cached(repo).is_dir()


def _cached(repo: str) -> Path:
    """Where the hub's cache keeps a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _snapshot(repo: str, info: BackendInfo, revision: str) -> Path | None:
    """The folder of a revision in the hub's cache, where all of it is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = list(patterns(info, repo))
    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=wanted, local_files_only=True)
        )
    except (OSError, HFValidationError):
        return None


def fetch_command(info: BackendInfo, model: str = "") -> str:
    """The command that brings ``model``, or the backend's default where it names none. What a
    person's own folder lacks only that person can bring: the way round is said."""
    released = f"op backends fetch {info.name}"
    if not model or model == info.default_model:
        return released
    if place_of(model, info) is not None:
        folder = shell_word(model)
        return f"bring its files to {folder} anew, or leave out --model after: {released}"
    if is_hub_id(model):
        return f"op backends fetch {info.name} --model {shell_word(model)}"
    return f"--model takes a folder, or one of: {', '.join(info.models or (info.default_model,))}"


def fetch(
    info: BackendInfo,
    model: str,
    *,
    revision: str = "",
    bars: bool = True,
    on_progress: OnProgress | None = None,
) -> bool:
    """Bring what ``model`` needs into the hub's cache; whether anything had to be brought.

    Notes say beforehand under which licence, how much that is, and how much room there is. Pickled
    weights that the backend does not name are left behind; a download that broke off goes on where
    it did. Size and digest of every file are compared with the hub's afterwards, also of those that
    were here. ``revision`` is that of ``model``'s own repository, the newest where it is empty.
    ``bars`` are the hub client's own; without them steps say how much of the large files is here.
    Raises UsageError for weights that the backend does not know and for a revision of two
    repositories, MissingError where they cannot be had or are damaged, ResourceError where they do
    not fit on the disk.
    """
    known = {info.default_model, *info.models}
    if model not in known and (not is_hub_id(model) or known == {EMBEDDED}):
        guess = nearest(model, known)
        raise UsageError(
            f"backend {info.name} has no weights called {model!r}",
            hint=f"did you mean {guess}?" if guess else f"see `op backends show {info.name}`",
        )

    def tell(note: str) -> None:
        if on_progress is not None:
            on_progress(Progress(phase="fetching", note=f"{info.name}: {note}"))

    if revision and (model == EMBEDDED or "+" in model or not re.fullmatch(COMMIT, revision)):
        raise UsageError(
            f"{revision[:60]!a} is no revision of {model}",
            hint="40 digits of a commit, of one repository: --model OWNER/NAME --revision COMMIT",
        )
    check_endpoint(info)
    if model == EMBEDDED:
        tell("the weights are in the package, nothing to fetch.")
        return False

    def step(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(Progress(phase="checking, in MB", step=done, total=total))

    def grown(done: int, total: int) -> None:
        if on_progress is not None and not bars:
            on_progress(
                Progress(phase="fetching, in MB", step=done // MEGABYTE, total=total // MEGABYTE)
            )

    with _bars(bars):
        repos = repositories(info, model)
        own = {repos[0]: revision}
        return any([_fetch_one(info, repo, own.get(repo, ""), tell, grown, step) for repo in repos])


def offline() -> str:
    """The variable that forbids the network, in any spelling that `op`, the hub's client or
    transformers know; "" where none does."""
    own = "OMNIPERSONA_OFFLINE"  # first: where it is set, `op` sets the hub's
    for name in (own, "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        if os.environ.get(name, "").strip().lower() in ("1", "true", "t", "yes", "y", "on"):
            return name
    return ""


def check_endpoint(info: BackendInfo) -> None:
    """UsageError where HF_ENDPOINT is no web address: the hub's client breaks as it is imported,
    whoever imports it. Weights that are in the package need no hub."""
    address = os.environ.get("HF_ENDPOINT")
    if not address or info.default_model == EMBEDDED:
        return
    try:
        parts = urlsplit(address)
        found = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # brackets, or a port beyond 65535
        found = False
    if not found:
        raise UsageError(
            "HF_ENDPOINT is not the address of a hub",  # it may hold a password
            hint="unset HF_ENDPOINT, or: export HF_ENDPOINT=https://HOST",
        )


@dataclass(frozen=True, kw_only=True)
class OnDisk:
    """A repository in the hub's cache: where, and how many bytes of it."""

    repo: str
    folder: Path
    size: int


def on_disk(info: BackendInfo) -> list[OnDisk]:
    """What is in the hub's cache of the repositories that the backend names; whole or not. Raises
    UsageError for a broken HF_ENDPOINT."""
    check_endpoint(info)
    models = dict.fromkeys((info.default_model, *info.models))
    repos = dict.fromkeys(repo for model in models for repo in repositories(info, model))
    found = []
    for repo in repos:
        folder = _cached(repo)
        if folder.is_dir():
            size = sum(map(_size, (folder / "blobs").glob("*")))
            found.append(OnDisk(repo=repo, folder=folder, size=size))
    return found


def _size(path: Path) -> int:
    """Bytes of a file; none where another process took it away meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _bars(wanted: bool) -> Iterator[None]:
    """The hub client's progress bars on or off, and afterwards as they were."""
    from huggingface_hub import utils

    untyped: Any = utils
    if wanted or untyped.are_progress_bars_disabled():
        yield
        return
    untyped.disable_progress_bars()
    try:
        yield
    finally:
        untyped.enable_progress_bars()


def _fetch_one(
    info: BackendInfo,
    repo: str,
    revision: str,
    tell: Callable[[str], None],
    on_bytes: OnStep,
    on_step: OnStep,
) -> bool:
    if forbidden := offline():
        raise MissingError(
            f"{repo} cannot be fetched offline",
            hint=f"leave out --offline, {forbidden}, and the setting offline; see `op doctor`",
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # the HTTP library's own errors; which library that is varies with the hub's version
    unreachable: Any = HfHubHTTPError.__mro__[1]
    invalid: Any = getattr(import_module(unreachable.__module__), "InvalidURL", unreachable)
    wanted = list(patterns(info, repo))
    at = revision or None
    again = f"op backends fetch {info.name} --model {repo}"
    again += f" --revision {revision}" if revision else ""
    try:
        files: Any = snapshot_download(repo, revision=at, allow_patterns=wanted, dry_run=True)
        missing = [file.file_size or 0 for file in files if file.will_download]
        if not missing:
            tell(f"{repo} is here already, nothing to fetch.")
        else:
            if repo not in {component.repo for component in info.components}:
                tell(f"licence: {info.licence}")
            large = [
                file for file in files if file.will_download and is_resumable(file.file_size or 0)
            ]
            commit, names = files[0].commit_hash, [file.filename for file in large]
            there = brought(repo, names, commit, folder=_cached(repo))
            if there:
                tell(f"{there / 1e9:.1f} GB of {repo} were brought before, and are gone on with")
            _check_room(repo, sum(missing) - there, Path(constants.HF_HUB_CACHE), tell)
            whole = 0
            for file in large:
                fetch_file(
                    repo,
                    file.filename,
                    commit,
                    folder=_cached(repo),
                    on_size=partial(_tell_size, on_bytes, whole, sum(missing)),
                )
                whole += file.file_size
        folder = snapshot_download(repo, revision=at, allow_patterns=wanted)
        count = check_files(repo, Path(folder), wanted, again=again, tell=tell, on_step=on_step)
    except (OSError, ValueError, ImportError, unreachable, invalid) as error:
        raise hub_error(error, repo, again=again) from error
    tell(f"{count} files have the size and digest that the hub names; they are in {folder}")
    return bool(missing)


def _tell_size(on_bytes: OnStep, before: int, total: int, size: int) -> None:
    """How much is here, where ``before`` were and a file of ``size`` is coming."""
    on_bytes(before + size, total)


def _check_room(repo: str, size: int, cache: Path, tell: Callable[[str], None]) -> None:
    """Say how much is fetched and how much room there is; ResourceError where it does not fit."""
    from huggingface_hub import constants

    there = next(place for place in (cache, *cache.parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise ResourceError(
            f"{repo} takes {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free at {cache}",
            hint=f"make room on the disk, or set {cache_variable()} to a folder on another one",
        )
    host = constants.ENDPOINT.partition("://")[2]
    tell(f"fetching {repo} from {host}, {size / 1e9:.1f} GB; {free / 1e9:.0f} GB are free …")
