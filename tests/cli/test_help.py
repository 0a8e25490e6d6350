"""`op help`."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from omnipersona_cli import errors
from omnipersona_cli.cli import help as help_command
from omnipersona_cli.cli.main import cli


def op(*args: str) -> Result:
    return CliRunner().invoke(cli, ["help", *args], prog_name="op")


def test_help_alone_is_the_help_of_op_and_the_topics() -> None:
    text = op().stdout
    assert text.startswith("Usage: op")
    for topic, (summary, _) in help_command.TOPICS.items():
        assert re.search(rf"^  {topic} +{re.escape(summary)}$", text, re.MULTILINE)


@pytest.mark.parametrize("topic", help_command.TOPICS)
def test_topic_fits_a_terminal(topic: str) -> None:
    result = op(topic)
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= 100


def test_help_of_a_command_is_its_own() -> None:
    own = CliRunner().invoke(cli, ["backends", "show", "--help"], prog_name="op")
    assert op("backends", "show").stdout == own.stdout


def test_unknown_topic_suggests_the_nearest() -> None:
    result = op("exit-code")
    assert result.exit_code == 2
    assert "did you mean `op help exit-codes`?" in result.stderr


def test_every_exit_code_of_an_error_is_explained() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = {kind.exit_code for kind in kinds if issubclass(kind, errors.PersonaError)}
    explained = re.findall(r"^(\d+) ", op("exit-codes").stdout, re.MULTILINE)
    assert {str(code) for code in codes} | {"0", "130"} == set(explained)


def test_commands_in_the_topics_exist() -> None:
    text = "\n".join(body for _, body in help_command.TOPICS.values())
    named = set(re.findall(r"\bop ([a-z]+)", text))
    with cli.make_context("op", ["help"]) as context:
        assert named <= {*cli.list_commands(context), "is"}


def test_topics_are_for_people_not_for_one_machine(home: Path) -> None:
    assert not any(str(home) in body for _, body in help_command.TOPICS.values())


def test_the_nearest_of_a_group_can_be_pasted() -> None:
    for words in (("concepts", "shw"), ("bench", "exprt-toy"), ("concepts", "exit-code")):
        told = op(*words).stderr
        hint = re.search(r"`op help ([^`]+)`", told)
        assert hint, told
        assert op(*hint[1].split()).exit_code == 0


def test_no_summary_of_a_command_is_cut() -> None:
    for group in ((), ("backends",), ("concepts",), ("bench",)):
        text = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80).stdout
        assert not re.search(r"\.\.\.$", text.split("Commands:")[1], re.MULTILINE)
