"""`op ask`, `gen`, `edit` and `chat` through a running server: as without it, and no model here."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from live_server import Live, neighbour, running, until
from PIL import Image

from omnipersona_cli import registry
from omnipersona_cli.backend import Backend, Opening
from omnipersona_cli.cli.main import cli
from omnipersona_cli.cli.server import server_at
from omnipersona_cli.errors import MissingError, UsageError

Run = Callable[..., Result]


@pytest.fixture
def opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands that open nano here get the same one, which saves the suite many openings."""
    monkeypatch.setattr(registry, "open_backend", lambda opening, **_: nano(opening))


@cache
def nano(opening: Opening) -> Backend:
    assert opening.backend == "nano"
    return OPEN(opening)


OPEN = registry.open_backend


@pytest.fixture
def folder(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's folder, which is the current one: a photo, a mask, a cut-out."""
    work = tmp_path / "work"
    fill(work, photos)
    monkeypatch.chdir(work)
    return work


def fill(work: Path, photos: Path) -> None:
    work.mkdir()
    (work / "bo.png").write_bytes((photos / "00.png").read_bytes())
    mask = Image.new("RGBA", (64, 64), (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    mask.save(work / "mask.png")
    cut = Image.open(photos / "01.png").convert("RGBA")
    cut.putalpha(Image.linear_gradient("L").resize(cut.size))
    cut.save(work / "cut.png")
    (work / "prompts.txt").write_text("<bo> in the snow\na forest\n")
    (work / "empty.png").write_bytes(b"")


def run(*words: str, home: Path, server: Live | None = None, stdin: Any = None) -> Result:
    env = {"OMNIPERSONA_HOME": str(home)}
    if server is not None:
        env["OMNIPERSONA_SERVER"] = f"{server.url}/?token={server.token}"
    return CliRunner().invoke(cli, list(words), input=stdin, env=env)


def files(work: Path) -> dict[str, bytes]:
    return {str(it.relative_to(work)): it.read_bytes() for it in work.rglob("*") if it.is_file()}


FEW = ("--steps", "2", "--seed", "7")
ALIKE: dict[str, tuple[tuple[str, ...], str | None]] = {
    "a fact": (("ask", "what is <bo>'s toy?"), None),
    "a verdict": (("ask", "bo.png", "is <bo> here?", "--json"), None),
    "no": (("ask", "bo.png", "is <bo> in the sea here?", "--exit-code"), None),
    "words of the model": (("ask", "cut.png", "what is this?", "--max-tokens", "5"), None),
    "a bare name": (("ask", "what is bo's toy?", "--max-tokens", "5"), None),
    "a concept beside": (("ask", "what is its toy?", "--concept", "bo"), None),
    "nobody": (("ask", "is <mam> here?"), None),
    "too long": (("ask", "what " * 500), None),
    "no such picture": (("ask", "bo.jpg", "is <bo> here?"), None),
    "no picture": (("ask", "empty.png", "is <bo> here?"), None),
    "a talk": (("chat", "bo.png"), "is <bo> here?\nwhat is its toy?\n"),
    "a talk as JSON": (("chat", "--json", "--concept", "bo"), "what is its toy?\n"),
    "pictures": (("gen", "<bo> with its toy", "-n", "2", "--explain", *FEW), None),
    "pictures as JSON": (("gen", "<bo> with its toy", "--json", "--explain", *FEW), None),
    "little metadata": (("gen", "<bo>", "--metadata", "minimal", "-o", "a/b.png", *FEW), None),
    "a list of prompts": (("gen", "--prompts", "prompts.txt", "--concept", "bo", *FEW), None),
    "the best of two": (("gen", "<bo>", "--tries", "2", "--no-replay", *FEW), None),
    "fast": (("gen", "<bo>", "--fast", "--seed", "7"), None),
    "a fast edit": (
        ("edit", "bo.png", "add <bo>", "--fast", "--tries", "1", "--seed", "7"),
        None,
    ),
    "another size": (("gen", "<bo>", "--size", "63x63", *FEW), None),
    "a taken name": (("gen", "<bo>", "-o", "bo.png", *FEW), None),
    "an edit": (("edit", "bo.png", "add <bo>", "--box", "8,8,20,30", "--tries", "2", *FEW), None),
    "an edit as JSON": (
        ("edit", "bo.png", "remove <bo>", "--strength", "0.5", "--json", *FEW),
        None,
    ),
    "a cut-out": (
        ("edit", "cut.png", "add <bo>", "--tries", "1", "-o", "cut.png", "--force", *FEW),
        None,
    ),
    "a mask": (
        ("edit", "bo.png", "add <bo>", "--mask", "mask.png", "--mask-means", "transparent", *FEW),
        None,
    ),
    "a mask that does not say": (("edit", "bo.png", "add <bo>", "--mask", "mask.png", *FEW), None),
}


@pytest.mark.parametrize("what", ALIKE)
def test_a_command_gives_through_a_server_what_it_gives_without(
    what: str,
    live: Live,
    bo_home: Path,
    folder: Path,
    photos: Path,
    tmp_path: Path,
    opened_once: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, stdin = ALIKE[what]
    here = run(*words, home=bo_home, stdin=stdin)
    other = tmp_path / "other"
    fill(other, photos)
    monkeypatch.chdir(other)
    there = run(*words, home=tmp_path / "nothing", server=live, stdin=stdin)
    assert there.exit_code == here.exit_code, there.stderr
    assert there.stdout == here.stdout
    assert files(other) == files(folder)
    for line in here.stderr.splitlines():
        if line.startswith(("Error:", "seed", "question:", "answer:", "rewrite:", "mask:")):
            assert line in there.stderr or what == "nobody"


def test_a_picture_comes_and_goes_through_pipes_and_is_made_again(
    live: Live, folder: Path, tmp_path: Path
) -> None:
    home = tmp_path / "nothing"
    painted = run("gen", "<bo> here", "-o", "-", *FEW, home=home, server=live)
    again = run("gen", "--like", "first.png", "-o", "-", home=home, server=live)
    assert again.exit_code == 3  # no such file
    Path("first.png").write_bytes(painted.stdout_bytes)
    again = run("gen", "--like", "first.png", "-o", "-", home=home, server=live)
    assert again.stdout_bytes == painted.stdout_bytes
    asked = run("ask", "-", "is <bo> here?", home=home, server=live, stdin=painted.stdout_bytes)
    assert asked.stdout.strip() in ("yes", "no", "not sure")


def test_nothing_heavy_is_loaded(live: Live, folder: Path) -> None:
    """One process for all verbs; torch would be there if any of them had opened a model."""
    code = """
import sys
from omnipersona_cli.cli.main import cli
for words in (["ask", "bo.png", "is <bo> here?"], ["gen", "<bo>", "--steps", "1"],
              ["edit", "bo.png", "add <bo>", "--steps", "1", "--tries", "1"]):
    cli(words, standalone_mode=False)
heavy = {"torch", "transformers", "peft"} & set(sys.modules)
assert not heavy, heavy
"""
    address = f"{live.url}/v1?token={live.token}"
    env = {"OMNIPERSONA_SERVER": address, "OMNIPERSONA_HOME": str(folder), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def narrow(bo_home: Path) -> Iterator[Live]:
    """A server that serves nobody, and says little."""
    with running(bo_home, only=frozenset(), metadata="minimal") as server:
        yield server


def test_a_concept_that_the_server_lacks_is_told_with_how_to_bring_it(
    narrow: Live, bo_home: Path, folder: Path
) -> None:
    done = run("gen", "<bo>", *FEW, home=bo_home, server=narrow)
    assert done.exit_code == 3 and not done.stdout
    assert "Error: the server has no concept <bo> in its library" in done.stderr
    assert "--data-binary @bo.opconcept" in done.stderr and narrow.token not in done.stderr


def test_a_server_that_keeps_metadata_back_says_so(
    narrow: Live, folder: Path, tmp_path: Path
) -> None:
    done = run("gen", "a forest", "-o", "a.png", *FEW, home=tmp_path, server=narrow)
    assert done.exit_code == 0 and "keeps metadata to minimal" in done.stderr
    with Image.open("a.png") as image:
        assert "omnipersona" not in image.info and "Software" in image.info


@pytest.mark.parametrize(
    ("address", "words", "code", "message"),
    [
        ("http://127.0.0.1:9", (), 3, "no server answers at http://127.0.0.1:9"),
        ("{neighbour}", (), 3, "is no op serve"),
        ("{url}", (), 2, "wants its token"),
        ("{url}?token=wrong", (), 2, "does not take this token"),
        ("{whole}", ("-b", "bagel"), 3, "the server has nano open, not bagel"),
        ("{whole}", ("--model", "somebody/else"), 3, "not somebody/else"),
        ("{whole}", ("--device", "cpu"), 2, "--device says how to open a model"),
        ("{whole}", ("--memory", "12G"), 2, "--memory says how to open a model"),
        ("http://192.0.2.7:8765", (), 2, "plain http to 192.0.2.7"),
        ("https://192.0.2.7", ("--offline",), 3, "cannot be asked offline"),
        ("ftp://127.0.0.1", (), 2, "does not begin with http://HOST"),
        ("http://me:secret@127.0.0.1", (), 2, "does not begin with http://HOST"),
        ("http://127.0.0.1:port", (), 2, "address is none"),
        ("{url}?token=x&next=y", (), 2, "holds more than a token"),
    ],
)
def test_a_server_that_cannot_answer_is_told_in_a_line_with_a_hint(
    address: str,
    words: tuple[str, ...],
    code: int,
    message: str,
    live: Live,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    with neighbour() as (url, _):
        place = address.format(neighbour=url, url=live.url, whole=f"{live.url}/?token={live.token}")
        done = run("ask", "what is <bo>?", *words, "--server", place, home=tmp_path)
    assert done.exit_code == code, done.stderr
    assert message in done.stderr and done.stdout == ""
    assert [line.partition(" ")[0] for line in done.stderr.splitlines()] == ["Error:", "Hint:"]
    assert live.token not in done.stderr and "secret" not in done.stderr


def test_a_server_of_another_version_is_not_asked(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omnipersona_cli.cli.server.__version__", "0.0.1")
    done = run("ask", "what is <bo>?", home=tmp_path, server=live)
    assert done.exit_code == 3 and "this is 0.0.1" in done.stderr


def test_a_server_that_ends_meanwhile_is_told(bo_home: Path, tmp_path: Path, folder: Path) -> None:
    with running(bo_home) as live:

        def end() -> None:
            until(lambda: live.served.worker.running)
            live.served.worker.end()

        ending = threading.Thread(target=end)
        ending.start()
        done = run("gen", "<bo>", "--steps", "1000", home=tmp_path, server=live)
        ending.join()
    assert done.exit_code == 1 and not done.stdout
    assert "this was stopped before it was done" in done.stderr and "Hint:" in done.stderr


def test_a_settings_file_cannot_name_a_server(live: Live, tmp_path: Path, folder: Path) -> None:
    Path("omnipersona.yaml").write_text(f"ask:\n  server: {live.url}\n")
    done = run("ask", "what is <bo>?", home=tmp_path)
    assert done.exit_code == 2 and "only you may do" in done.stderr


def test_an_address_is_taken_as_op_serve_prints_it() -> None:
    for address, url in (
        ("http://127.0.0.1:8765/?token=a", "http://127.0.0.1:8765"),
        ("http://localhost:8765/v1?token=a", "http://localhost:8765"),
        ("http://[::1]:8765?token=a", "http://[::1]:8765"),
        ("https://op.example/studio/?token=a", "https://op.example/studio"),
    ):
        server = server_at(address, {})
        assert server.url == url and server.token == "a" and "'a'" not in repr(server)
    assert server_at("http://127.0.0.1", {"OMNIPERSONA_TOKEN": "b"}).token == "b"
    with pytest.raises(UsageError):
        server_at("http://127.0.0.1", {"OMNIPERSONA_TOKEN": "ü"})
    with pytest.raises(MissingError):
        server_at("https://op.example", {"HF_HUB_OFFLINE": "1"})


def test_the_commands_of_the_documentation_run(live: Live, folder: Path, tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serve.md").read_text(encoding="utf-8")
    section = page.partition("### With `op` itself")[2]
    export, *commands = section.partition("```sh\n")[2].partition("```")[0].splitlines()
    assert export == "export OMNIPERSONA_SERVER='http://127.0.0.1:8765/?token=TOKEN'"
    assert len(commands) == 2
    (folder / "bo.png").rename("beach.png")
    for command in commands:
        done = run(*shlex.split(command)[1:], home=tmp_path, server=live)
        assert done.exit_code == 0, done.stderr
    assert (folder / "bo.png").read_bytes().startswith(b"\x89PNG")
