"""What is in backends/ and plugins/ must be shipped and registered; nothing generic may be."""

import itertools
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
ENTRY_POINTS = PYPROJECT["project"]["entry-points"]["omnipersona"]
FOLDERS = sorted(
    path
    for shelf in ("backends", "plugins")
    for path in (ROOT / shelf).iterdir()
    if path.is_dir() and any(path.glob("*.py"))
)
PINS = {
    Requirement(line).name.lower(): line.split("==")[1]
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from this checkout, by the build backend itself, offline."""
    builder = pytest.importorskip("hatchling.builders.wheel")
    built = next(builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("w"))))
    return zipfile.ZipFile(built)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_folder_is_shipped_and_registered(folder: Path) -> None:
    assert folder.name.startswith("op_")
    assert folder.relative_to(ROOT).as_posix() in PACKAGES
    assert folder.name in ENTRY_POINTS.values()
    assert (folder / "__init__.py").exists()
    assert (folder / "py.typed").exists()


def test_everything_that_is_shipped_exists() -> None:
    assert [place for place in PACKAGES if not (ROOT / place / "__init__.py").exists()] == []


def test_wheel_holds_our_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    top = {name.split("/")[0] for name in wheel.namelist()}
    info = next(name for name in top if name.endswith(".dist-info"))
    assert top == {Path(place).name for place in PACKAGES} | {info}
    assert not [name for name in wheel.namelist() if name.endswith((".md", ".toml"))]


def test_wheel_holds_every_source_file_and_the_licence(wheel: zipfile.ZipFile) -> None:
    shipped = {Path(name).as_posix() for name in wheel.namelist()}
    for place in PACKAGES:
        package = ROOT / place
        for path in [*package.rglob("*.py"), package / "py.typed"]:
            assert path.relative_to(package.parent).as_posix() in shipped
    assert any(name.endswith("licenses/LICENSE") for name in shipped)


def test_wheel_holds_the_embedded_weights(wheel: zipfile.ZipFile) -> None:
    weights = sorted(ROOT.glob("*/op_*/weights/*.safetensors"))
    assert {path.stem for path in weights} == {"nano", "judge"}
    sizes = {info.filename: info.file_size for info in wheel.infolist()}
    for path in weights:
        shipped = path.relative_to(path.parents[2]).as_posix()
        assert sizes[shipped] == path.stat().st_size


def test_wheel_leaves_out_how_the_weights_are_made(wheel: zipfile.ZipFile) -> None:
    assert (ROOT / "pretraining/__main__.py").exists()
    assert [name for name in wheel.namelist() if "pretraining" in name] == []


def test_both_names_of_the_command_are_the_same_function() -> None:
    scripts = PYPROJECT["project"]["scripts"]
    assert scripts["op"] == scripts["omnipersona"]


@pytest.mark.parametrize(
    "requirement",
    [
        *PYPROJECT["project"]["dependencies"],
        *itertools.chain(*PYPROJECT["dependency-groups"].values()),
    ],
)
def test_dependency_is_pinned_within_its_range(requirement: str) -> None:
    wanted = Requirement(requirement)
    pin = PINS[wanted.name.lower()]
    assert wanted.specifier.contains(pin)


def test_the_suite_runs_with_the_pinned_versions() -> None:
    here = {name: version(name).split("+")[0] for name in ("torch", "numpy", "pillow", "click")}
    assert here == {name: PINS[name] for name in here}
