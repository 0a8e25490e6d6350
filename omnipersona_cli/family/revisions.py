"""Revisions of repositories: which one is here, and whether its files are what the hub has.

The hub names a state of a repository by its commit, and each file by its size and a digest: large
files by their sha256, small ones as git does (https://git-scm.com/book/en/v2/Git-Internals-Git-Objects).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from hashlib import file_digest, sha1
from pathlib import Path
from typing import Any

from omnipersona_cli.errors import MissingError

COMMIT = r"[0-9a-f]{40}"
"""The name of a revision."""


def revision_of(folder: Path) -> str:
    """The revision whose files a folder of the hub's cache holds; "" for any other folder."""
    inside = folder.parent.name == "snapshots" and re.fullmatch(COMMIT, folder.name)
    return folder.name if inside else ""


def check_files(
    repo: str, folder: Path, wanted: Sequence[str], *, again: str, tell: Callable[[str], None]
) -> int:
    """Compare the files in ``folder``, of a revision in the hub's cache, with what the hub says of
    them: size and digest of each that matches a pattern of ``wanted``. Returns how many.

    What differs is removed, so that it is fetched again. Raises MissingError that names it, with
    the command ``again``; and what the hub's client raises.
    """
    from huggingface_hub import HfApi

    revision = revision_of(folder)
    tree: Any = HfApi().list_repo_tree(repo, revision=revision, recursive=True)
    files = {entry.path: entry for entry in tree if hasattr(entry, "blob_id")}
    names = [name for name in files if any(fnmatch(name, pattern) for pattern in wanted)]
    size = sum(files[name].size for name in names)
    tell(f"checking {len(names)} files of {repo}, {size / 1e9:.1f} GB, revision {revision[:12]} …")
    broken = [name for name in names if (folder / name).is_file()]
    broken = [name for name in broken if not _is_whole(folder / name, files[name])]
    for name in broken:
        (folder / name).resolve().unlink(missing_ok=True)
        (folder / name).unlink(missing_ok=True)
    if broken:
        raise MissingError(
            f"{broken[0]} of {repo} is not what the hub has at revision {revision[:12]}: "
            "its size or digest differs; it was removed",
            hint=again,
        )
    return len(names)


def _is_whole(path: Path, entry: Any) -> bool:
    """True where a file has the size and the digest of its entry."""
    if path.stat().st_size != entry.size:
        return False
    with path.open("rb") as file:
        if entry.lfs is not None:
            return bool(file_digest(file, "sha256").hexdigest() == entry.lfs.sha256)
        start = sha1(f"blob {entry.size}\0".encode(), usedforsecurity=False)
        return bool(file_digest(file, lambda: start).hexdigest() == entry.blob_id)
