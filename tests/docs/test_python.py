"""The examples of the Python page run as they stand, in their order."""

import re
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from omnipersona_cli import engine
from omnipersona_cli.cli.main import cli

PAGE = (Path(__file__).parent.parent.parent / "docs" / "python.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', PAGE, re.M | re.S))


def test_each_verb_has_an_example_of_about_ten_lines() -> None:
    assert list(EXAMPLES) == ["learn.py", "gen.py", "ask.py", "edit.py"]
    for name, code in EXAMPLES.items():
        assert len([line for line in code.splitlines() if line.strip()]) <= 12
        assert f"engine.{name.removesuffix('.py')}(" in code


@pytest.mark.slow
def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(cli, ["toy", "photos", "photos", "--seed", "7"]).exit_code == 0
    monkeypatch.setattr(engine, "Settings", partial(engine.Settings, steps=4))
    monkeypatch.setattr(engine, "gen", partial(engine.gen, steps=2))
    monkeypatch.setattr(engine, "edit", partial(engine.edit, steps=2))
    for name, code in EXAMPLES.items():
        exec(compile(code, name, "exec"), {"__name__": "example"})
    said = capsys.readouterr().out
    assert "10 photos" in said and "bo.opconcept" in said and "green frog" in said
    assert "[facts]" in said
    for name in ("bo-0.png", "bo-1.png", "added.png", "removed.png"):
        assert Path(name).stat().st_size > 0
