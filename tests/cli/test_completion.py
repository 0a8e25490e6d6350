"""`op completion`."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from omnipersona_cli.cli.main import cli


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_calls_op_back(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="op")
    assert (result.exit_code, result.stderr) == (0, "")
    assert f"_OP_COMPLETE={shell}_complete" in result.stdout


def test_second_name_gets_its_own_script() -> None:
    result = CliRunner().invoke(cli, ["completion", "bash"], prog_name="omnipersona")
    assert "_OMNIPERSONA_COMPLETE=bash_complete" in result.stdout


def test_unknown_shell_is_wrong_usage() -> None:
    assert CliRunner().invoke(cli, ["completion", "csh"], prog_name="op").exit_code == 2


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_bash_reads_the_script(tmp_path: Path) -> None:
    script = tmp_path / "op.bash"
    result = CliRunner().invoke(cli, ["completion", "bash"], prog_name="op")
    script.write_text(result.stdout)
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0


def test_commands_and_backends_complete() -> None:
    answers = CliRunner().invoke(
        cli,
        [],
        prog_name="op",
        env={"_OP_COMPLETE": "bash_complete", "COMP_WORDS": "op back", "COMP_CWORD": "1"},
    )
    assert answers.stdout == "plain,backends\n"
