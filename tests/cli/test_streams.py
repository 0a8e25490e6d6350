"""No home, no streams, no Unicode: commands work, or say one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OP = [sys.executable, "-m", "omnipersona_cli"]
PAINT = ["gen", "a cat", "-b", "nano", "--steps", "1", "--seed", "1"]


def op(*words: object, shell: str = "", **changed: str) -> subprocess.CompletedProcess[bytes]:
    """Run ``op`` as a process, with redirections of a shell where they are given."""
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", *OP, *map(str, words)]
    return subprocess.run(command, capture_output=True, env=os.environ | changed, check=False)


def test_closed_streams_lead_nowhere(tmp_path: Path) -> None:
    for number, shell in enumerate(("2>&-", "<&- >&- 2>&-")):
        out = tmp_path / f"{number}.png"
        assert op(*PAINT, "-o", out, shell=shell).returncode == 0
        assert out.read_bytes().startswith(b"\x89PNG") and out.read_bytes().endswith(
            b"IEND\xaeB`\x82"
        )


def test_what_an_encoding_cannot_say_is_escaped(tmp_path: Path) -> None:
    out = tmp_path / "日本😀.png"
    result = op(*PAINT, "-o", out, "--json", PYTHONIOENCODING="latin-1")
    assert result.returncode == 0
    assert json.loads(result.stdout)["path"] == str(out)


def test_a_path_that_is_no_unicode_is_printed_as_it_is(tmp_path: Path) -> None:
    out = os.fsencode(tmp_path) + b"/\xff.png"
    result = op(*PAINT, "-o", os.fsdecode(out))
    assert result.stdout == out + b"\n"
    assert os.path.exists(out)


def test_without_a_home_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(path: str) -> str:
        return path

    import click.testing

    from omnipersona_cli.cli.main import cli

    for name in ("OMNIPERSONA_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", nobody)
    run = click.testing.CliRunner()
    told = run.invoke(cli, ["concepts"])
    assert told.exit_code == 1
    assert told.stderr.splitlines()[1] == "Hint: export OMNIPERSONA_HOME=/tmp/omnipersona"
    assert run.invoke(cli, ["help", "shell"]).exit_code == 0
