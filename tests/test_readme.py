"""The README and the pages are executed documents: their `op` commands run in order, in one folder.

A block is skipped only where the line before it says ``<!-- not executed -->``. Learning and
painting take few steps here, through the settings that a person would use for that.
"""

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from omnipersona_cli import __version__
from omnipersona_cli.cli.main import cli

ROOT = Path(__file__).parent.parent
NOT_EXECUTED = "<!-- not executed -->"
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "backends/README.md", "plugins/README.md")
EXECUTED = {
    "README.md": {"learn", "ask", "gen", "edit", "concepts", "toy"},
    "docs/index.md": {"learn", "ask", "gen", "edit", "toy"},
    "docs/bench.md": {"bench"},
}
"""Pages whose commands are run, and commands that are among them."""
SHOWN = ("docs/photos.md",)
"""Pages whose commands need weights that are not here: their words are checked, nothing runs."""


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
@pytest.mark.parametrize("page", EXECUTED)
def test_commands_of_the_page_work(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    few = {"LEARN_STEPS": "4", "LEARN_SAMPLES": "0", "GEN_STEPS": "2", "EDIT_STEPS": "2"}
    for setting, value in few.items():
        monkeypatch.setenv(f"OMNIPERSONA_{setting}", value)
    ran = set()
    for line in commands((ROOT / page).read_text(encoding="utf-8")):
        program, *words = shlex.split(line)
        if program == "op":
            result = CliRunner().invoke(cli, words, prog_name="op")
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
            ran.add(words[0])
            for path in re.findall(r"-o (\S+)", line):
                assert Path(path).stat().st_size > 0
    assert EXECUTED[page] <= ran


@pytest.mark.parametrize("page", [*EXECUTED, "CONTRIBUTING.md"])
def test_other_commands_of_the_page_are_targets_of_make(page: str) -> None:
    targets = re.findall(
        r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    text = (ROOT / page).read_text(encoding="utf-8")
    others = [line.split() for line in commands(text) if not line.startswith("op ")]
    assert others or page == "docs/bench.md"
    assert all(words[0] == "make" and words[1] in targets for words in others)


@pytest.mark.parametrize("page", [*EXECUTED, *SHOWN])
def test_commands_that_are_only_shown_have_these_options(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace(NOT_EXECUTED, "")
    for line in commands(text):
        if not line.startswith("op "):
            continue
        words = shlex.split(line)[1:]
        context, command = click.Context(cli, info_name="op"), cli.get_command
        found = command(context, words[0])
        while isinstance(found, click.Group):
            words = words[1:]
            inner = found.get_command(context, words[0]) if words else None
            if inner is None:
                break
            found = inner
        assert found is not None, line
        known = {name for option in found.params for name in option.opts}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known, line


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_skipped_blocks_are_skipped_and_others_found() -> None:
    text = f"{NOT_EXECUTED}\n```console\n$ op a\n```\n\n```console\n$ op b\nout\n```\n"
    assert commands(text) == ["op b"]


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    path = ROOT / page
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_backends_of_the_table_are_the_ones_installed() -> None:
    from omnipersona_cli import registry

    assert set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)) == set(registry.backends())


def test_changelog_has_unreleased_on_top_and_only_known_headings() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "Unreleased"
    headings = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert headings <= {"Added", "Changed", "Fixed", "Removed", "Pack format"}
    assert any(heading.startswith(__version__) for heading in versions)


def test_the_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__ and citation["title"] == "omnipersona"
    assert "2601.06965" in citation["references"][0]["url"]


def test_hosted_tests_run_what_make_runs_on_every_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    suite = workflow["jobs"]["suite"]
    ran = [step["run"].split()[:2] for step in suite["steps"] if "run" in step]
    assert ran == [["make", "test"], ["make", "demo"]]
    assert suite["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13", "3.14"]
