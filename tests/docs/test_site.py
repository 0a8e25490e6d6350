"""The pages build without a warning, work offline, and say nothing that the code does not."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
ELSEWHERE = re.compile(r"^(?:https?:)?//")


class Fetched(HTMLParser):
    """What a page fetches by itself: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        wanted = {"script": "src", "img": "src", "iframe": "src", "source": "src"}
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("stylesheet", "preload", "preconnect", "icon"):
            self.found.append(values.get("href") or "")
        self.found.append(values.get(wanted.get(tag, "")) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=DOCS.parent, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_pages_build_without_a_warning_and_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.glob("*.html"))
    assert len(pages) >= 10
    for page in pages:
        reader = Fetched()
        reader.feed(page.read_text(encoding="utf-8"))
        assert any(reader.found)
        assert [place for place in reader.found if ELSEWHERE.match(place)] == [], page.name
    for style in site.rglob("*.css"):
        said = style.read_text(encoding="utf-8")
        assert not re.search(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//", said), style.name


@pytest.mark.slow
def test_generated_parts_equations_and_drawings_are_in_the_pages(site: Path) -> None:
    text = {page.stem: page.read_text(encoding="utf-8") for page in site.glob("*.html")}
    assert not [name for name, page in text.items() if "<!-- generated" in page]
    assert not [name for name, page in text.items() if re.search(r"held\d+back", page)]
    assert text["how-it-works"].count("<math") > 10 and "<svg" in text["how-it-works"]
    assert 'id="op-learn"' in text["commands"] and 'id="packerror"' in text["errors"]


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules that generate parts of pages, as MkDocs finds them."""
    monkeypatch.syspath_prepend(str(DOCS / "hooks"))


@pytest.mark.usefixtures("parts")
def test_every_error_of_the_source_is_on_the_page() -> None:
    said = list(import_module("error_part").collect())
    modules = {one.module for one in said}
    assert {"omnipersona_cli.concepts.header", "omnipersona_cli.cli.learn", "op_janus.loading"} <= (
        modules
    )
    page = import_module("error_part").errors()
    assert all(one.message in page and one.hint in page for one in said)
    assert "it was written by a newer op" in page  # one that is raised itself
    assert "its concept has no proper name" in page  # one that a function raises for others


@pytest.mark.usefixtures("parts")
def test_exit_codes_on_the_page_are_those_of_the_errors() -> None:
    from omnipersona_cli import errors

    page = import_module("error_part").exit_codes()
    for name, code in re.findall(r"^\| (\d+) \| \[`(\w+)`\]", page, re.MULTILINE):
        assert getattr(errors, code).exit_code == int(name)


@pytest.mark.usefixtures("parts")
def test_every_command_and_option_is_on_the_page() -> None:
    import click

    from omnipersona_cli.cli.main import cli

    page = import_module("command_part").commands()
    waiting: list[tuple[str, click.Command]] = [("op", cli)]
    while waiting:
        path, command = waiting.pop()
        if isinstance(command, click.Group):
            context = click.Context(command, info_name=path)
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                assert f"# `{path} {name}`" in page
                waiting.append((f"{path} {name}", inner))
        for parameter in command.params if path != "op" else ():
            if isinstance(parameter, click.Option) and not parameter.hidden:
                assert parameter.opts[0] in page, f"{path} {parameter.opts[0]}"


def test_every_symbol_of_the_glossary_exists() -> None:
    page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    symbols = re.findall(r"`([\w.]+):([\w.]+)` \|$", page, re.MULTILINE)
    rows = re.findall(r"^\| (?!term|---)", page, re.MULTILINE)
    assert len(symbols) == len(rows) > 40
    for module, path in symbols:
        value: object = import_module(module)
        for name in path.split("."):
            fields = getattr(value, "__annotations__", {})
            assert hasattr(value, name) or name in fields, f"{module}:{path}"
            value = getattr(value, name, None)


def test_terms_of_the_glossary_are_told_once() -> None:
    page = (DOCS / "glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| (?!term|---)(.*?) \|", page, re.MULTILINE)
    assert len(terms) == len(set(terms))


def test_every_promise_names_a_test_that_is_there() -> None:
    page = (DOCS / "promises.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| `(.+)::(test_\w+)` \|$", page, re.MULTILINE)
    assert len(rows) == page.count("\n| ") - 2, "every row names one"
    for file, name in rows:
        code = (DOCS.parent / file).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(", code, re.MULTILINE), f"{file}::{name}"
