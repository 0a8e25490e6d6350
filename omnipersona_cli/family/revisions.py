"""Revisions of repositories: which one is here, and whether its files are what the hub has.

The hub names a state of a repository by its commit, and each file by its size and a digest: large
files by their sha256, small ones as git does (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from hashlib import sha1, sha256
from pathlib import Path
from typing import Any

from omnipersona_cli.backend import OnStep
from omnipersona_cli.errors import MissingError

COMMIT = r"[0-9a-f]{40}"
"""The name of a revision."""

MEGABYTE = 10**6
PIECE = 16 * MEGABYTE
"""Bytes that are read at a time."""


def revision_of(folder: Path) -> str:
    """The revision whose files a folder of the hub's cache holds; "" for any other folder."""
    inside = folder.parent.name == "snapshots" and re.fullmatch(COMMIT, folder.name)
    return folder.name if inside else ""


def check_files(
    repo: str,
    folder: Path,
    wanted: Sequence[str],
    *,
    again: str,
    tell: Callable[[str], None],
    on_step: OnStep,
) -> int:
    """Compare the files in ``folder``, of a revision in the hub's cache, with what the hub says of
    them: size and digest of each that matches a pattern of ``wanted``. Returns how many;
    ``on_step`` counts the megabytes that were read.

    What differs is removed, so that it is fetched again; a link that leads out of the cache is, but
    not the file at its end. Raises MissingError that names it, with the command ``again``; and what
    the hub's client raises.
    """
    from huggingface_hub import HfApi

    revision = revision_of(folder)
    tree: Any = HfApi().list_repo_tree(repo, revision=revision, recursive=True)
    files = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
    names = [name for name in files if any(fnmatch(name, pattern) for pattern in wanted)]
    size = sum(files[name].size for name in names)
    tell(f"checking {len(names)} files of {repo}, {size / 1e9:.1f} GB, revision {revision[:12]} …")
    done = 0

    def read(count: int) -> None:
        nonlocal done
        done += count
        on_step(done // MEGABYTE, size // MEGABYTE)

    broken = [name for name in names if (folder / name).is_file()]
    broken = [name for name in broken if not _is_whole(folder / name, files[name], read)]
    own = [
        it.resolve() for it in (folder.parents[1], folder.parents[1] / "blobs", folder.parents[2])
    ]
    for name in broken:
        blob = (folder / name).resolve()
        if any(blob.is_relative_to(place) for place in own):
            blob.unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
    if broken:
        raise MissingError(
            f"{broken[0]} of {repo} is not what the hub has at revision {revision[:12]}: "
            "its size or digest differs; it was removed",
            hint=again,
        )
    return len(names)


def _is_whole(path: Path, entry: Any, read: Callable[[int], None]) -> bool:
    """True where a file has the size and the digest of its entry; ``read`` is told of the bytes of
    each full piece."""
    if path.stat().st_size != entry.size:
        return False
    start = sha1(f"blob {entry.size}\0".encode(), usedforsecurity=False)
    digest, wanted = (sha256(), entry.lfs.sha256) if entry.lfs else (start, entry.blob_id)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            if len(piece) == PIECE:
                read(PIECE)
    return bool(digest.hexdigest() == wanted)
