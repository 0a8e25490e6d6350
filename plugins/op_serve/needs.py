"""Packages of the extras: whether they are here, in a version that has what is used of them."""

from __future__ import annotations

from importlib.util import find_spec

from omnipersona_cli.errors import MissingError


def is_here(module: str) -> bool:
    """Whether a module is installed; one of an older package may lack it."""
    try:
        return find_spec(module) is not None
    except ImportError:  # of a parent, which is imported for that
        return False


def need(extra: str, *modules: str) -> None:
    """MissingError where a package of the extra is not installed, or too old."""
    missing = [module for module in modules if not is_here(module)]
    if missing:
        package = missing[0].partition(".")[0]
        old = ", in a newer version" if is_here(package) else ""
        raise MissingError(
            f"op {extra} needs the Python package {package.replace('_', '-')!r}{old}",
            hint=f"pip install 'omnipersona[{extra}]'",
        )
