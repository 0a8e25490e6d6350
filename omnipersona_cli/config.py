"""Settings and where files live.

A setting is looked for in this order: flag, ``OMNIPERSONA_*`` variable, ``./omnipersona.yaml``, the
user's ``config.yaml``, default. click does the first two and the last; this module reads the files.

A file holds settings for every command at the top, and a section for each command that differs::

    backend: nano
    gen:
      steps: 24
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omnipersona_cli.errors import UsageError

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


def load_config() -> dict[str, Any]:
    """The settings of all files merged; a key with a mapping is a command's section.

    Raises UsageError for a file that is not YAML or not a mapping.
    """
    merged: dict[str, Any] = {}
    for path in reversed(config_files()):
        for key, value in read_settings(path).items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key] = {**merged[key], **value}
            else:
                merged[key] = value
    return merged


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in one file, with ``-`` in keys read as ``_``; empty when there is no file."""
    if not path.is_file():
        return {}
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        at = getattr(error, "problem_mark", None)
        place = f", line {at.line + 1}" if at else ""
        raise UsageError(
            f"the settings file {path} is not YAML{place}",
            hint="mend or remove it; `op help config` shows what it may hold",
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UsageError(
            f"the settings file {path} holds no settings",
            hint="write lines such as `backend: nano`; see `op help config`",
        )
    return _with_plain_keys(content)


def file_of(setting: str, command: str = "") -> Path | None:
    """The file that decides ``setting`` for ``command``; None when no file names it."""
    for path in config_files():
        section = read_settings(path).get(command)
        if isinstance(section, dict) and setting in section:
            return path
    for path in config_files():
        if setting in read_settings(path):
            return path
    return None


def _with_plain_keys(settings: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        str(key).replace("-", "_"): _with_plain_keys(value) if isinstance(value, dict) else value
        for key, value in settings.items()
    }


def _home() -> Path | None:
    value = os.environ.get(HOME)
    return Path(value).expanduser() if value else None


def _platform_folder(what: str) -> Path:
    import platformdirs

    name = "omnipersona"
    if what == "config":
        return platformdirs.user_config_path(name, appauthor=False)
    if what == "data":
        return platformdirs.user_data_path(name, appauthor=False)
    return platformdirs.user_cache_path(name, appauthor=False)
