"""`--memory`: what will not fit is refused before a weight is read, with what would."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_janus import write

from omnipersona_cli.cli.main import cli
from omnipersona_cli.testing import drawing


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Janus whose weights end after their header: reading them would fail in another way."""
    folder = write(tmp_path_factory.mktemp("janus") / "tiny")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: 8 + int.from_bytes(data[:8], "little")])
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> str:
    drawing("red", 1).save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


def op(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(cli, words, prog_name="op", env=variables)


def test_every_verb_refuses_before_weights_are_read(cut: Path, photo: str) -> None:
    here = ("-b", "janus", "--model", str(cut), "--device", "cpu")
    for verb, words in (
        ("answer", ("ask", photo, "what is it?")),
        ("paint", ("gen", "a dog")),
        ("edit", ("edit", photo, "add a dog", "--box", "0,0,32,32")),
        ("learn", ("learn", photo, "--name", "bo")),
    ):
        result = op(*words, *here, "--memory", "300M")
        assert result.exit_code == 1, result.output
        assert f"GB to {verb}, and 0.3 GB are allowed" in result.stderr
        assert "op backends show janus" in result.stderr


def test_the_limit_is_a_setting_as_every_option(cut: Path, photo: str) -> None:
    words = ("ask", photo, "what is it?", "-b", "janus", "--model", str(cut), "--device", "cpu")
    result = op(*words, OMNIPERSONA_MEMORY="0.3")
    assert "0.3 GB are allowed" in result.stderr
    assert op(*words, "--memory", "64G").exit_code == 3, "then the weights are read, and are cut"


@pytest.mark.parametrize("amount", ["lots", "0", "-1", "12X", "1e9"])
def test_what_is_no_amount_is_refused(amount: str) -> None:
    result = op("ask", "what?", "--memory", amount)
    assert result.exit_code == 2
    assert "no amount of memory: write 12G or 800M" in result.stderr
