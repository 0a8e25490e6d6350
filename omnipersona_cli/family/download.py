"""A large file from the hub, so that what was brought before an interruption is not brought again.

The hub's client writes every file under a name of its process alone, and begins it anew in the next
one. Here a file has one name until it is whole, beside the client's own, and under the client's own
lock.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import urlsplit

LARGE = 8 << 20
"""Bytes from which on a file is brought in this way."""

PART = ".op.incomplete"
"""How a file ends that is not whole yet; the hub's own tools know the last word."""

EVERY = 1.0
"""Seconds between two looks at a file that grows."""

_DIGEST = r"[0-9a-f]{40}|[0-9a-f]{64}"


def is_resumable(size: int) -> bool:
    """Whether a file of ``size`` bytes is brought by `fetch_file`; the hub gives the largest to its
    own client only."""
    from huggingface_hub import constants

    return LARGE <= size <= constants.MAX_HTTP_DOWNLOAD_SIZE


def brought(repo: str, names: Iterable[str], revision: str, *, folder: Path) -> int:
    """Bytes that ``folder``, as in `fetch_file`, has of files that are not whole yet. What it has
    of other revisions' files counts for nothing: it is of no use to these.

    Raises what the hub's client raises.
    """
    if not any((folder / "blobs").glob(f"*{PART}")):
        return 0
    found = (_described(repo, name, revision) for name in names)
    parts = [folder / "blobs" / (about.etag + PART) for about in found if about is not None]
    return sum(part.stat().st_size for part in parts if part.exists())


def fetch_file(
    repo: str, name: str, revision: str, *, folder: Path, on_size: Callable[[int], None]
) -> None:
    """Bring the file ``name`` of a commit into ``folder``, that of ``repo`` in the hub's cache,
    where the hub's client finds it. Its digest is not compared. ``on_size`` is told how many bytes
    of it are here, once a second, by another thread.

    Raises what the hub's client raises; the part that was brought stays.
    """
    from huggingface_hub import constants, utils
    from huggingface_hub.file_download import http_get

    untyped: Any = utils
    about = _described(repo, name, revision)
    if about is None:
        return
    headers = untyped.build_hf_headers()
    if urlsplit(about.location).netloc != urlsplit(constants.ENDPOINT).netloc:
        headers.pop("authorization", None)
    blob = folder / "blobs" / about.etag
    lock = folder.parent / ".locks" / folder.name / f"{about.etag}.lock"
    for place in (blob.parent, lock.parent):
        place.mkdir(parents=True, exist_ok=True)
    with untyped.WeakFileLock(lock):
        if blob.exists():
            return
        part = blob.with_name(about.etag + PART)
        if part.exists() and part.stat().st_size > about.size:
            part.unlink()
        with part.open("ab") as file, _watched(part, on_size):
            http_get(
                about.location,
                file,
                resume_size=file.tell(),
                headers=headers,
                expected_size=about.size,
                displayed_filename=name,
            )
        part.replace(blob)


@contextmanager
def _watched(part: Path, on_size: Callable[[int], None]) -> Iterator[None]:
    """Tell how large a file is while it grows."""
    whole = Event()

    def watch() -> None:
        while not whole.wait(EVERY):
            on_size(part.stat().st_size)

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        whole.set()
        watcher.join()


def _described(repo: str, name: str, revision: str) -> Any:
    """What the hub says of a file: ``etag``, ``size`` and ``location``; None where it has no digest
    or no size."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, name, revision=revision, endpoint=constants.ENDPOINT)
    about = get_hf_file_metadata(url)
    if about.etag is None or not re.fullmatch(_DIGEST, about.etag) or about.size is None:
        return None
    return about
