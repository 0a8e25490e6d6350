"""The plugin of the page answers every hook, and the page speaks of every hook."""

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from omnipersona_cli import hookspecs, registry
from omnipersona_cli.bench.dataset import read_dataset
from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts.library import Library

PAGE = (Path(__file__).parent.parent.parent / "docs" / "write-a-plugin.md").read_text("utf-8")
COMMANDS = re.findall(r"^\$ op (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Result]]:
    """Runs `op` in an empty folder, with the page's plugin installed."""
    files: dict[str, str] = {}
    for name, body in re.findall(r'^```python title="([^"]+)"\n(.*?)^```$', PAGE, re.M | re.S):
        files[name] = f"{files[name].rstrip()}\n\n\n{body}" if name in files else body
    (tmp_path / "site" / "op_stripes").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / "site" / name).write_text(text, encoding="utf-8")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    real = registry.entry_points
    entry = EntryPoint(name="stripes", value="op_stripes", group=registry.GROUP)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: EntryPoints([*real(group=group), entry])
    )
    registry.forget()
    yield lambda *words: CliRunner().invoke(cli, list(words), prog_name="op")
    registry.forget()
    for name in ("op_stripes", "op_stripes.stripes"):
        sys.modules.pop(name, None)


def test_every_hook_has_a_section_with_its_arguments() -> None:
    hooks = {
        f"{name}({', '.join(inspect.signature(hook).parameters)})"
        for name, hook in inspect.getmembers(hookspecs, inspect.isfunction)
        if name.startswith("op_")
    }
    assert set(re.findall(r"^## (op_.*)$", PAGE, re.MULTILINE)) == hooks


@pytest.mark.slow
def test_the_commands_of_the_page_work(op: Callable[..., Result]) -> None:
    width = registry.open_backend(registry.Opening(backend="nano", device="cpu")).width
    rows = {part: np.full((count, width), 0.01) for part, count in (("id", 1), ("und", 4))}
    np.savez("bo.npz", gen=np.full((3, width), 0.01), **rows)
    said = {}
    for line in COMMANDS:
        done = op(*shlex.split(line))
        assert done.exit_code == 0, f"{line}\n{done.output}"
        said[" ".join(line.split()[:2])] = done.output
    assert Image.open("stripes.png").size == (128, 128)
    assert "Compares mean colours." in said["bench judges"]
    assert "stripes" in said["doctor"] and "broken" not in said["doctor"]
    assert "bo" in Library().names()
    drawn = read_dataset(Path("striped"))
    assert [one.name for one in drawn.concepts] == ["stripe0", "stripe1"]


def test_the_other_hooks_of_the_page_answer(op: Callable[..., Result]) -> None:
    photo = Image.new("RGB", (64, 64), "white")
    photo.paste("black", (8, 16, 40, 48))
    region = registry.find_subject(photo, "stripes")
    assert region is not None and region.box == (8, 16, 40, 48)
    others = registry.negatives("stripes", 5, 0, [photo], "any")
    assert len(others) == 5 and others[0].tobytes() != others[1].tobytes()
    judge = registry.load(registry.judges()["stripes"].judge)()
    item = hookspecs.JudgeItem(kind="image-image", images=(photo,), references=(photo,))
    assert judge.score(item).score == 1.0
    assert judge.score(hookspecs.JudgeItem(kind="image-image")).failed


def test_it_can_be_switched_off(op: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.DISABLE, "stripes,other")
    registry.forget()
    assert op("stripes", "stripes.png").exit_code == 2
    assert "disabled   other, stripes" in op("doctor").output
