"""Hints can be pasted: what they name is quoted for a shell, and is there."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from omnipersona_cli.cli.main import cli
from omnipersona_cli.errors import shell_word
from omnipersona_cli.reading import where_to_look

PATHS = {"path", "paths", "folder", "file", "root", "target", "there", "source", "beside", "state"}
"""What a variable is called that holds a path."""
SENTENCES = ("see {path}", "the items belong in ")
"""How hints begin that are no commands."""


def test_paths_in_hints_are_quoted(root: Path) -> None:
    places = ("omnipersona_cli", "plugins", "backends")
    files = [file for place in places for file in (root / place).rglob("*.py")]
    loose = [
        f"{file.relative_to(root)}:{hint.lineno}: {ast.unparse(hint)}"
        for file in files
        for hint in _hints(ast.parse(file.read_text(encoding="utf-8")))
        if _names_a_path(hint) and not ast.unparse(hint)[2:].startswith(SENTENCES)
    ]
    assert loose == [], "write shell_word(path)"


def _hints(tree: ast.Module) -> Iterator[ast.JoinedStr]:
    for call in ast.walk(tree):
        if isinstance(call, ast.Call):
            for keyword in call.keywords:
                if keyword.arg == "hint":
                    yield from _texts(keyword.value)


def _texts(node: ast.AST) -> Iterator[ast.JoinedStr]:
    """The f-strings of an expression, without those that a call is given."""
    if isinstance(node, ast.JoinedStr):
        yield node
    elif not isinstance(node, ast.Call):
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


def _names_a_path(hint: ast.JoinedStr) -> bool:
    values = [part.value for part in hint.values if isinstance(part, ast.FormattedValue)]
    return any(
        isinstance(name, ast.Name) and name.id in PATHS
        for value in values
        if not isinstance(value, ast.Call)
        for name in ast.walk(value)
    )


NAMES = [
    "a b",
    "a  b",
    "it's",
    "a;b",
    "$(x)",
    "`x`",
    "tab\there",
    "line\nbreak",
    "bo\udcff",
    "日本",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_word_comes_out_of_the_shell_as_it_went_in(name: str) -> None:
    pasted = " ".join(f"printf %s {shell_word(name)}".split())
    shown = subprocess.run(["bash", "-c", pasted], capture_output=True, check=True)
    assert shown.stdout.decode("utf-8", "surrogateescape") == name


def test_what_is_not_there_is_looked_for_beside_it(tmp_path: Path) -> None:
    (tmp_path / "my photo.png").touch()
    near = shell_word(tmp_path / "my photo.png")
    assert where_to_look(tmp_path / "my foto.png") == f"did you mean {near}?"
    assert where_to_look(tmp_path / "no" / "such" / "x.png") == f"ls {shell_word(tmp_path)}"
    assert "curl -LO 'https://example.org/a%20b.png?c=1'" in where_to_look(
        Path("https://example.org/a%20b.png?c=1")
    )
    assert str(Path.home() / "photos") in where_to_look("~/photos")


@pytest.mark.parametrize(
    "words",
    [
        ["ask", "https://example.org/a.png", "what?"],
        ["learn", "https://example.org/photos", "--name", "bo"],
        ["edit", "~/no.png", "make it blue"],
        ["concepts", "import", "~/no.opconcept"],
    ],
)
def test_an_address_or_a_tilde_is_told_from_a_file(words: list[str]) -> None:
    result = CliRunner().invoke(cli, words)
    assert result.exit_code in (1, 3)
    assert "curl -LO" in result.stderr or str(Path.home()) in result.stderr
