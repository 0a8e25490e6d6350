"""What stops a fetch, sorted by its cause: a line and a hint for each."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from json import JSONDecodeError

from omnipersona_cli.errors import MissingError, PersonaError, ResourceError, UsageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.EIO,
)


def hub_error(error: BaseException, repo: str, *, again: str) -> PersonaError:
    """What a failure of the hub's client means to a person; ``again`` is the command to repeat.

    The client wraps causes in errors of other kinds, so that the whole chain is searched: first for
    a full disk, then for the hub's answer, then for a transfer that broke off, and at last for what
    was never sent.
    """
    from huggingface_hub.errors import HfHubHTTPError

    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return ResourceError(
                f"{repo} does not fit on the disk: {_first_line(cause)}",
                hint=f"make room on the disk, or set {cache_variable()} to a folder on another one",
            )
        if isinstance(cause, OSError) and cause.errno in _UNWRITABLE:
            return ResourceError(
                f"{repo} could not be written: {_first_line(cause)}",
                hint=f"set {cache_variable()} to a folder that you may write to",
            )
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            answer = cause.response
            return _answered(
                answer.status_code, answer.headers.get("X-Error-Code", ""), repo, again
            )
    if any("consistency check" in str(cause).lower() or _cut(cause) for cause in chain):
        return MissingError(f"the download of {repo} broke off", hint=f"it goes on with: {again}")
    if not isinstance(error, OSError) and isinstance(error, (ValueError, ImportError)):
        return _unsent(error, repo, again)
    if type(error).__name__ == "InvalidURL":
        return _unsent(error, repo, again)
    return MissingError(
        f"the hub cannot be reached to fetch {repo}: {_first_line(chain[-1])}",
        hint=f"check {' and '.join(['the network', *_proxies()])}, then: {again}",
    )


def _unsent(error: BaseException, repo: str, again: str) -> PersonaError:
    """What is wrong where nothing was asked of the hub, or something else has answered."""
    from huggingface_hub.errors import HFValidationError

    line = _first_line(error)
    if isinstance(error, HFValidationError):
        return UsageError(f"{repo} is no name that the hub knows: {line}", hint="check the name")
    if isinstance(error, JSONDecodeError):
        return MissingError(
            f"what answers when {repo} is fetched is not the hub: it is no JSON",
            hint=f"log in to the network in a browser, where it asks for that, then: {again}",
        )
    if isinstance(error, UnicodeError):
        return MissingError(
            f"the token for {repo} cannot be sent: {line}",
            hint=f"hf auth login, or unset HF_TOKEN, then: {again}",
        )
    if isinstance(error, ImportError):
        return MissingError(
            f"the proxy to fetch {repo} through needs the Python package 'socksio'",
            hint=f"pip install socksio, or unset {' and '.join(_proxies())}, then: {again}",
        )
    return MissingError(
        f"the address to fetch {repo} from, or that of a proxy, is none: {line}",
        hint=f"check {' and '.join(['HF_ENDPOINT', *_proxies()])}, then: {again}",
    )


def _proxies() -> list[str]:
    """The variables that name a proxy."""
    names = ("https_proxy", "http_proxy", "all_proxy")
    return [one for name in names for one in (name.upper(), name) if os.environ.get(one)]


def cache_variable() -> str:
    """The variable that says where the hub's cache is."""
    return next(
        (it for it in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE") if it in os.environ), "HF_HOME"
    )


def _answered(status: int, code: str, repo: str, again: str) -> PersonaError:
    """The hub's answer ``status``, with what it calls the error in ``code``."""
    page = f"https://huggingface.co/{repo}"
    if code == "RevisionNotFound":
        return MissingError(
            f"the hub has no such revision of {repo} ({status})",
            hint=f"the newest: {again.partition(' --revision ')[0]}",
        )
    if status == 407:
        return MissingError(
            f"the proxy to fetch {repo} through wants a name and a password (407)",
            hint=f"export HTTPS_PROXY=http://NAME:PASSWORD@HOST:PORT, then: {again}",
        )
    if status == 403 or code == "GatedRepo":
        return MissingError(
            f"{repo} is gated: the hub gives it to those who accepted its licence ({status})",
            hint=f"accept it at {page}, then: hf auth login, and: {again}",
        )
    if status == 401 and code != "RepoNotFound":
        return MissingError(
            f"the hub wants to know who asks for {repo} (401)",
            hint=f"hf auth login, then: {again}",
        )
    if status in (401, 404):
        return MissingError(
            f"the hub has no repository {repo}, or shows it to others only ({status})",
            hint=f"check the name at {page}; for a private one: hf auth login, then: {again}",
        )
    if status == 429:
        return MissingError(
            f"the hub has had too many requests from here, {repo} has to wait (429)",
            hint=f"wait some minutes, or hf auth login, then: {again}",
        )
    if status >= 500:
        return MissingError(
            f"the hub is out of order and does not give {repo} ({status})",
            hint=f"wait some minutes, then: {again}",
        )
    return MissingError(f"the hub does not give {repo} ({status})", hint=f"see {page}")


def _cut(cause: BaseException) -> bool:
    """Whether a transfer ended before its end, by the names that HTTP libraries have for it."""
    return type(cause).__name__ in ("RemoteProtocolError", "ReadError", "IncompleteRead")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that led to it."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
