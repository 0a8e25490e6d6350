"""Settings and where files live.

A setting is looked for in this order: flag, ``OMNIPERSONA_*`` variable, ``./omnipersona.yaml``, the
user's ``config.yaml``, default. click does the first two and the last; this module reads the files.

A file holds settings for every command at the top, and a section for each command that differs.
Keys are the commands' long options::

    backend: nano
    gen:
      steps: 24
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from omnipersona_cli.errors import ResourceError, UsageError

if TYPE_CHECKING:  # files are rare, and `op --help` reads none
    from omnipersona_cli.reading import Origin, Tree

HOME = "OMNIPERSONA_HOME"
"""The variable that puts configuration, data and downloads under one folder."""

PROJECT_FILE = "omnipersona.yaml"


def config_folder() -> Path:
    """Where ``config.yaml`` lives. Not created here."""
    return _home() or _platform_folder("config")


def data_folder() -> Path:
    """Where packs live (in ``concepts``). Not created here."""
    home = _home()
    return home / "data" if home else _platform_folder("data")


def cache_folder() -> Path:
    """Where checkpoints and other things that may be deleted live. Not created here."""
    home = _home()
    return home / "cache" if home else _platform_folder("cache")


def config_files() -> tuple[Path, ...]:
    """The files that may hold settings, the stronger first; they need not exist."""
    return Path(PROJECT_FILE), config_folder() / "config.yaml"


def load_config() -> dict[str, Tree]:
    """The settings of all files merged; a key with a mapping is a command's section.

    Raises UsageError for a file that cannot be read, is not YAML or not a mapping.
    """
    merged: dict[str, Tree] = {}
    for path in reversed(config_files()):
        merged = _over(merged, read_settings(path))
    return merged


def read_settings(path: Path) -> dict[str, Tree]:
    """The settings in one file, every value as it is written, with ``_`` in keys read as ``-``;
    empty when there is no file."""
    text = _text_of(path)
    if not text:
        return {}
    from omnipersona_cli.reading import parse_yaml

    content = parse_yaml(text, _origin(path))
    if content == "":
        return {}
    if not isinstance(content, dict):
        raise UsageError(
            f"the settings file {path} holds no settings",
            hint="write lines such as `backend: nano`; see `op help config`",
        )
    return _with_dashes(content)


def place_of(*keys: str) -> tuple[Path, int] | None:
    """The file that decides the setting at ``keys`` ("gen", "steps") and its line there, counted
    from 1; None when no file names it."""
    for path in config_files():
        line = _line_of(_text_of(path), keys)
        if line is not None:
            return path, line
    return None


def _over(below: dict[str, Tree], above: dict[str, Tree]) -> dict[str, Tree]:
    """``above``, and what only ``below`` says."""
    merged = {**below, **above}
    for key, value in above.items():
        lower = below.get(key)
        if isinstance(value, dict) and isinstance(lower, dict):
            merged[key] = _over(lower, value)
    return merged


def _line_of(text: str, keys: tuple[str, ...]) -> int | None:
    """The line of ``keys`` in text that `read_settings` has accepted."""
    if not text:
        return None
    import yaml

    node = yaml.compose(text, Loader=yaml.SafeLoader)
    line = None
    for wanted in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = [pair for pair in pairs if _with_dash(pair[0].value) == wanted]
        if not found:
            return None
        key, node = found[-1]
        line = int(key.start_mark.line) + 1
    return line


def _text_of(path: Path) -> str:
    if not path.exists():
        return ""
    from omnipersona_cli.reading import read_text

    return read_text(path, _origin(path))


def _origin(path: Path) -> Origin:
    from omnipersona_cli.reading import Origin

    return Origin(
        name=f"the settings file {path}",
        hint="mend or remove it; `op help config` shows what it may hold",
    )


def _with_dash(key: str) -> str:
    return key.replace("_", "-")


def _with_dashes(settings: dict[str, Tree]) -> dict[str, Tree]:
    return {
        _with_dash(key): _with_dashes(value) if isinstance(value, dict) else value
        for key, value in settings.items()
    }


def _home() -> Path | None:
    value = os.environ.get(HOME)
    return Path(os.path.expanduser(value)) if value else None


def _platform_folder(what: str) -> Path:
    import platformdirs

    of = {
        "config": platformdirs.user_config_path,
        "data": platformdirs.user_data_path,
        "cache": platformdirs.user_cache_path,
    }
    try:
        return of[what]("omnipersona", appauthor=False)
    except RuntimeError as error:  # no HOME, and nobody of that number in the list of users
        raise ResourceError(
            "no home folder is known for this user", hint=f"export {HOME}=/tmp/omnipersona"
        ) from error
