"""Settings named as the long options are, from files and variables, for the command that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from omnipersona_cli.cli import settings
from omnipersona_cli.cli.main import HOUSEKEEPING, VERBS, cli


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's settings file, not yet written."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "omnipersona.yaml"


def op(*words: str) -> Result:
    """Run ``op`` in this process."""
    return CliRunner().invoke(cli, words)


@pytest.mark.parametrize("name", [*VERBS, *HOUSEKEEPING])
def test_every_option_has_a_key_and_a_variable_of_its_long_name(name: str) -> None:
    def check(command: click.Command, *path: str) -> None:
        for key, option in settings.options_of(command).items():
            assert f"--{key}" in option.opts
            own = f"OMNIPERSONA_{'_'.join((*path, key)).upper().replace('-', '_')}"
            assert isinstance(option.envvar, list) and option.envvar[0] == own
        if isinstance(command, click.Group):
            for sub in command.commands:
                check(command.commands[sub], *path, sub)

    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    check(command, name)


def test_a_flag_is_set_in_a_file_and_by_a_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert op("concepts", "list").stdout == ""
    file.write_text("concepts:\n  list: {json: yes}\n")
    assert op("concepts", "list").stdout == "[]\n"
    file.unlink()
    monkeypatch.setenv("OMNIPERSONA_CONCEPTS_LIST_JSON", "1")
    assert op("concepts", "list").stdout == "[]\n"


def test_what_is_for_all_commands_reaches_subcommands_too() -> None:
    bench = cli.get_command(click.Context(cli), "bench")
    assert bench is not None
    found = settings.defaults(bench, {"backend": "nano", "bench": {"run": {"seeds": "2"}}}, "bench")
    assert (found["run"]["backend"], found["run"]["seeds"]) == ("nano", "2")


def test_one_text_is_a_list_of_one_where_an_option_is_repeatable(file: Path) -> None:
    command = click.Command("learn", params=[click.Option(["--fact", "facts"], multiple=True)])
    found = settings.defaults(command, {"learn": {"fact": "loves tuna"}}, "learn")
    assert found == {"facts": ["loves tuna"]}
    several = settings.defaults(command, {"learn": {"fact": ["a", "b"]}}, "learn")
    assert several == {"facts": ["a", "b"]}


@pytest.mark.parametrize(
    ("content", "words", "hint"),
    [
        ("gen:\n  steps: many\n", "'--steps': 'many'", "omnipersona.yaml"),
        ("gen:\n  stesp: 3\n", "unknown option 'stesp' of `op gen`", "did you mean 'steps'?"),
        ("gen:\n  steps: [1, 2]\n", "'steps'", "one line"),
        ("seed: 1\nbakend: nano\n", "unknown setting 'bakend'", "did you mean 'backend'?"),
        ("seed: 1\nsteps: 24\n", "'steps' belongs in a command's section", "`learn: {steps: 24}`"),
        ("seed: 1\nfact: [a, b]\n", "'fact' belongs in a command's section", "`learn: {fact: …}`"),
        ("seed: 1\nserver: http://x\n", "which only you may do", "export OMNIPERSONA_SERVER="),
        ("seed: 1\nserver: {port: 1}\n", "which only you may do", "take it out of the file"),
        ("seed: 1\ngne: {steps: 3}\n", "unknown command 'gne'", "did you mean 'gen'?"),
    ],
)
def test_a_bad_setting_names_file_line_and_what_to_do(
    file: Path, content: str, words: str, hint: str
) -> None:
    file.write_text(content)
    result = op("gen", "a cat")
    assert result.exit_code == 2
    assert words in result.stderr and "omnipersona.yaml, line 2" in result.stderr
    assert hint in result.stderr.partition("Hint: ")[2]


def test_a_bad_variable_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIPERSONA_GEN_STEPS", "many")
    result = op("gen", "a cat")
    assert result.exit_code == 2
    assert "'many'" in result.stderr and "(from OMNIPERSONA_GEN_STEPS)" in result.stderr
    assert "unset OMNIPERSONA_GEN_STEPS" in result.stderr


def test_a_variable_that_fills_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIPERSONA_BAKEND", "nano")
    monkeypatch.setenv("OMNIPERSONA_CONCEPTS_WHATEVER", "1")
    monkeypatch.setenv("OMNIPERSONA_CLIP", "/models/clip")  # a plugin's own
    told = op("concepts").stderr
    assert "OMNIPERSONA_BAKEND fills no option; is it OMNIPERSONA_BACKEND?" in told
    assert "OMNIPERSONA_CONCEPTS_WHATEVER fills no option" in told
    assert "OMNIPERSONA_CLIP" not in told


def test_the_hint_for_a_bad_line_works_when_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "with blank; and 'quote'"
    folder.mkdir()
    monkeypatch.setenv("OMNIPERSONA_HOME", str(folder))
    (folder / "config.yaml").write_text("gen: {steps: many}\n")
    hint = op("gen", "a cat").stderr.partition("Hint: mend that line: ")[2].strip()
    shown = subprocess.run(
        hint, shell=True, env={"EDITOR": "cat"}, capture_output=True, text=True, check=True
    )
    assert shown.stdout == "gen: {steps: many}\n"
