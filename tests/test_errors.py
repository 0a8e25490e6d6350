"""Whoever is refused is told what to do next."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SHELVES = ("omnipersona_cli", "backends", "plugins", "pretraining")
HINTED = {"FieldError"}
"""Errors that know a hint of their own: a field's is where its description stands."""


def errors_of(trees: list[ast.Module]) -> set[str]:
    """The names of PersonaError and of all that come from it."""
    names, bases = {"PersonaError"}, {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).split(".")[-1] for base in node.bases}
    while more := {name for name, above in bases.items() if above & names} - names:
        names |= more
    return names


def without_hint(tree: ast.Module, errors: set[str]) -> Iterator[int]:
    """Lines that make one of ``errors`` and give it no hint, or an empty one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in errors:
            hints = [word.value for word in node.keywords if word.arg in ("hint", None)]
            texts = [part.value for hint in hints for part in branches(hint)]
            if not hints or "" in texts:
                yield node.lineno


def branches(value: ast.expr) -> Iterator[ast.Constant]:
    """The plain texts that an expression may be."""
    if isinstance(value, ast.IfExp):
        yield from (*branches(value.body), *branches(value.orelse))
    elif isinstance(value, ast.Constant):
        yield value


def test_every_error_carries_a_hint() -> None:
    trees = {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for shelf in SHELVES
        for path in sorted((ROOT / shelf).rglob("*.py"))
    }
    errors = errors_of([*trees.values()])
    assert {"PhotoError", "BusyError", "FieldError"} < errors
    bare = [
        f"{path}:{line}" for path in trees for line in without_hint(trees[path], errors - HINTED)
    ]
    assert bare == []


def test_the_rule_sees_an_error_without_a_hint() -> None:
    source = 'raise errors.NewError("x")\nNewError("x", hint="")\nNewError("x", hint="op gen")'
    assert [*without_hint(ast.parse(source), {"NewError"})] == [1, 2]
    source = 'NewError("x", hint=guess if guess else "")\nNewError("x", **more)'
    assert [*without_hint(ast.parse(source), {"NewError"})] == [1]
