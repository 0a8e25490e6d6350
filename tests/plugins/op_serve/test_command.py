"""`op serve` as a person starts it, and what its documentation shows."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from click.testing import CliRunner
from live_server import Live, opened, until

from omnipersona_cli.cli.main import cli
from omnipersona_cli.errors import MissingError
from op_serve.needs import is_here, need
from op_serve.running import listening

PAGE = Path(__file__).parents[3] / "docs" / "serve.md"


def test_op_serve_prints_its_address_serves_and_stops(bo_home: Path) -> None:
    environment = {**os.environ, "OMNIPERSONA_HOME": str(bo_home)}
    command = [sys.executable, "-m", "omnipersona_cli", "serve", "-b", "nano", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            match = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/\?token=(\S{20,})", address)
            assert match is not None, address
            url, token = match.groups()
            with httpx2.Client(timeout=60) as client:
                until(lambda: client.get(f"{url}/health").status_code == 200)
                page = client.get(address, follow_redirects=True)
                client.cookies.clear()
                models = client.get(
                    f"{url}/v1/models", headers={"authorization": f"Bearer {token}"}
                )
            assert page.status_code == 200 and "omnipersona studio" in page.text
            assert [one["id"] for one in models.json()["data"]] == ["nano", "nano/bo"]
        finally:
            server.send_signal(signal.SIGINT)
        rest, errors = server.communicate(timeout=60)
    assert rest == "" and "Traceback" not in errors and errors.endswith("stopped\n"), errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--no-token", "--host", "0.0.0.0", "--port", "0"], "everybody who reaches 0.0.0.0"),
        (["--no-token", "--token", "x"], "a token and none"),
        (["--token", ""], "the token is empty"),
        (["-b", "nanoo"], "nanoo"),
        (["--concepts", "mam", "--port", "0"], "mam"),
        (["--device", "gpu"], "cuda:1"),
        (["--memory", "lots"], "12G or 800M"),
        (["--memory", "100M", "--port", "0"], "and 0.1 GB are allowed"),
        (["--host", "203.0.113.7", "--port", "0"], "cannot be listened on"),
    ],
)
def test_what_makes_no_sense_is_refused_before_a_model_is_opened(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path))
    done = CliRunner().invoke(cli, ["serve", *arguments])
    assert done.exit_code != 0 and words in done.output + done.stderr
    assert "Hint:" in done.output + done.stderr


def test_an_agent_too_is_refused_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMNIPERSONA_HOME", str(tmp_path))
    done = CliRunner().invoke(cli, ["mcp"], env={"OMNIPERSONA_MEMORY": "0.1G"})
    assert done.exit_code == 1 and done.stdout == ""
    assert "to answer, and 0.1 GB are allowed" in done.stderr and "Hint:" in done.stderr


def test_the_body_of_an_answer_does_not_wait_for_its_head() -> None:
    """asyncio sets TCP_NODELAY only for sockets that name their protocol."""
    with listening("127.0.0.1", 0) as sock:
        assert sock.proto == socket.IPPROTO_TCP


def test_the_example_of_the_documentation_runs(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace("http://127.0.0.1:8765", live.url).replace("TOKEN", live.token)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "serve.md", "exec"), {})
    assert capsys.readouterr().out == "<bo> with a teal star\na teal star\n"
    assert opened((tmp_path / "bo.png").read_bytes()).size == (64, 64)


def test_the_pictures_of_the_documentation_are_there_and_small() -> None:
    shown = re.findall(r"\]\((images/[^)]+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(shown) >= 5
    for name in shown:
        assert 0 < (PAGE.parent / name).stat().st_size <= 150_000


def test_an_mcp_package_that_is_too_old_is_told_and_does_not_end_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "oldmcp" / "server").mkdir(parents=True)
    for folder in (tmp_path / "oldmcp", tmp_path / "oldmcp" / "server"):
        (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert is_here("oldmcp.server") and not is_here("oldmcp.server.mcpserver")
    assert not is_here("nowhere.at.all")
    with pytest.raises(MissingError, match="'oldmcp', in a newer version") as caught:
        need("mcp", "oldmcp.server.mcpserver")
    assert caught.value.hint == "pip install 'omnipersona[mcp]'"
