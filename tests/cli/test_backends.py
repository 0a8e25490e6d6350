"""`op backends`."""

import json

import pytest
from click.testing import CliRunner

from omnipersona_cli.cli.main import cli

KEYS = {
    "name",
    "summary",
    "tasks",
    "default_model",
    "models",
    "sizes",
    "pictures",
    "licence",
    "memory_gb",
    "steps",
    "guidance",
    "learn_steps",
    "learn_rate",
    "batch",
}


def op(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli, ["backends", *args], prog_name="op")
    return result.exit_code, result.stdout, result.stderr


def test_list_has_one_line_per_backend() -> None:
    code, text, notes = op()
    lines = text.splitlines()
    assert (code, notes) == (0, "")
    assert lines[0].split()[0] == "name"
    assert [line.split()[0] for line in lines[1:]] == sorted(line.split()[0] for line in lines[1:])
    assert {"bagel", "nano"} <= {line.split()[0] for line in lines[1:]}


def test_json_list_has_stable_keys() -> None:
    _, text, _ = op("--json")
    infos = json.loads(text)
    assert all(info.keys() == KEYS for info in infos)
    assert [info["name"] for info in infos] == sorted(info["name"] for info in infos)


def test_show_tells_what_one_backend_does() -> None:
    code, text, _ = op("show", "nano")
    assert code == 0
    assert "cartoons" in text and "edit (native)" in text


def test_show_json_is_the_object_of_the_list() -> None:
    _, text, _ = op("show", "nano", "--json")
    _, listed, _ = op("--json")
    assert json.loads(text) in json.loads(listed)


@pytest.mark.parametrize("action", ["show", "fetch"])
def test_unknown_backend_exits_3_and_suggests(action: str) -> None:
    code, text, errors = op(action, "nan")
    assert (code, text) == (3, "")
    assert "no backend called 'nan'" in errors and "did you mean nano?" in errors


def test_fetch_of_embedded_weights_has_nothing_to_do() -> None:
    assert op("fetch", "nano") == (
        0,
        "",
        "nano: the weights are in the package, nothing to fetch.\n",
    )
    _, text, _ = op("fetch", "nano", "--json", "-q")
    assert json.loads(text) == {"backend": "nano", "model": "embedded", "fetched": False}


def test_fetch_refuses_weights_that_the_backend_does_not_know() -> None:
    code, _, errors = op("fetch", "nano", "--model", "embeded")
    assert code == 2
    assert "did you mean embedded?" in errors


def test_fetch_says_so_where_it_cannot_yet() -> None:
    code, _, errors = op("fetch", "bagel")
    assert code == 3
    assert "BAGEL-7B-MoT" in errors and "-b nano" in errors


def test_names_complete() -> None:
    from click.shell_completion import ShellComplete

    from omnipersona_cli.cli.main import cli as group

    found = ShellComplete(group, {}, "op", "_OP_COMPLETE").get_completions(
        ["backends", "show"], "n"
    )
    assert [item.value for item in found] == ["nano"]
