"""The backend of the page, assembled from its snippets, is a distribution that works by itself."""

import ast
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from omnipersona_cli.testing import BackendContract

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "write-a-backend.md").read_text(encoding="utf-8")
SKETCH = ROOT / "omnipersona_cli" / "testing" / "sketch.py"


def assembled() -> dict[str, str]:
    """File -> its snippets in the order of the page, two empty lines before a class or function."""
    files: dict[str, str] = {}
    for name, body in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.M | re.S):
        files[name] = f"{files[name].rstrip()}\n\n{body}" if name in files else body
    return files


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the distribution, with an environment `venv` in which it is installed.

    The environment is new and sees what ours has: nothing is downloaded.
    """
    folder = tmp_path_factory.mktemp("op-sketchbook")
    for name, text in assembled().items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    variables = {"base": str(environment), "platbase": str(environment)}
    ours, theirs = (
        sysconfig.get_path("purelib", scheme="venv", vars=one) for one in (None, variables)
    )
    (Path(theirs) / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    run(folder, "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", ".")
    return folder


def run(folder: Path, module: str, *words: str) -> str:
    """stdout of ``python -m module words`` in the fresh environment; it has to succeed."""
    binaries = "Scripts" if os.name == "nt" else "bin"
    settings = {
        "OMNIPERSONA_HOME": str(folder / "home"),
        "OMNIPERSONA_LEARN_STEPS": "20",
        "OMNIPERSONA_LEARN_SAMPLES": "1",
    }
    done = subprocess.run(
        [folder / "venv" / binaries / "python", "-m", module, *words],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{module} {words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_page_and_the_sketch_backend_are_the_same() -> None:
    def functions(source: str) -> dict[str, str]:
        return {
            node.name: ast.dump(node)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "SketchBackend"
        }

    page = functions(assembled()["op_sketchbook/backend.py"])
    ours = functions(SKETCH.read_text(encoding="utf-8"))
    assert len(page) > 15 and page.pop("open_sketchbook")
    assert {name: code == ours[name] for name, code in page.items()} == dict.fromkeys(page, True)


@pytest.mark.slow
def test_the_four_verbs_work_on_it(fresh: Path) -> None:
    ran = set()
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE, re.M | re.S):
        for line in re.findall(r"^\$ op (.*)$", block, re.M):
            words = shlex.split(line)
            assert run(fresh, "omnipersona_cli", *words)
            ran.add(words[0])
    assert {"learn", "ask", "gen", "edit"} <= ran
    listed = run(fresh, "omnipersona_cli", "backends")
    assert "sketchbook" in listed
    for name in ("toy.png", "added.png"):
        assert (fresh / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_it_keeps_every_rule(fresh: Path) -> None:
    said = run(fresh, "pytest", "-q", "-p", "no:cacheprovider", "test_sketchbook.py")
    rules = [name for name in dir(BackendContract) if name.startswith("test_")]
    assert f"{len(rules)} passed" in said and "skipped" not in said


def test_the_example_of_a_prompt_runs() -> None:
    names: dict[str, object] = {}
    exec(compile(assembled()["prompt.py"], "prompt.py", "exec"), names)
    shape = getattr(names["read"], "shape", ())
    assert len(shape) == 2 and shape[1] == 32
