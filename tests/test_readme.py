"""The README is an executed document: its `op` commands run in order, in one folder.

A block is skipped only where the line before it says ``<!-- not executed -->``. Learning and
painting take few steps here, through the settings that a person would use for that.
"""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from omnipersona_cli.cli.main import cli

ROOT = Path(__file__).parent.parent
NOT_EXECUTED = "<!-- not executed -->"
PAGES = ("README.md", "backends/README.md", "plugins/README.md")


def commands(text: str) -> list[str]:
    """The lines after "$ " in the console and bash blocks that are executed."""
    found = []
    for skipped, block in re.findall(
        rf"({re.escape(NOT_EXECUTED)}\n)?```(?:console|bash)\n(.*?)```", text, re.DOTALL
    ):
        if not skipped:
            found += re.findall(r"^\$ (.*)$", block, re.MULTILINE)
    return found


README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_commands_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for setting, value in {"LEARN_STEPS": "4", "GEN_STEPS": "2", "EDIT_STEPS": "2"}.items():
        monkeypatch.setenv(f"OMNIPERSONA_{setting}", value)
    ran = []
    for line in commands(README):
        program, *words = shlex.split(line)
        if program == "op":
            result = CliRunner().invoke(cli, words, prog_name="op")
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
            ran.append(words[0])
            for path in re.findall(r"-o (\S+)", line):
                assert Path(path).stat().st_size > 0
    assert {"learn", "ask", "gen", "edit", "concepts", "toy"} <= set(ran)


def test_other_commands_of_the_readme_are_targets_of_make() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    others = [line.split() for line in commands(README) if not line.startswith("op ")]
    assert others
    assert all(words[0] == "make" and words[1] in targets for words in others)


def test_skipped_blocks_are_skipped_and_others_found() -> None:
    text = f"{NOT_EXECUTED}\n```console\n$ op a\n```\n\n```console\n$ op b\nout\n```\n"
    assert commands(text) == ["op b"]


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_python_in_the_pages_for_authors_is_valid() -> None:
    for page in PAGES[1:]:
        blocks = re.findall(
            r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
        )
        assert blocks
        for block in blocks:
            exec(compile(block, page, "exec"), {"__name__": "example"})


def test_backends_of_the_table_are_the_ones_installed() -> None:
    from omnipersona_cli import registry

    assert set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == set(registry.backends())


def test_changelog_has_unreleased_on_top_and_only_known_headings() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    headings = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert headings <= {"Added", "Changed", "Fixed", "Removed", "Pack format"}
