"""Who may import whom, imports inside functions included, and where heavy packages may be."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CORE = "omnipersona_cli"
CONTRACT = {f"{CORE}.{name}" for name in ("backend", "hookspecs", "errors", "reading")}
FILETYPES = {f"{CORE}.filetypes"}
LANGUAGE = {f"{CORE}.{name}" for name in ("language", "backend", "errors", "reading")}
CONCEPTS = {f"{CORE}.concepts", f"{CORE}.config", *FILETYPES, *LANGUAGE}
DATA = {f"{CORE}.data", *FILETYPES, *LANGUAGE, *CONTRACT}
REGISTRY = {f"{CORE}.registry", *CONTRACT}
ROOM = {f"{CORE}.family.{name}" for name in ("room", "weights")}
ENGINE = (
    LANGUAGE
    | FILETYPES
    | {f"{CORE}.{name}" for name in ("engine", "concepts", "data", "registry", "config")}
)
MAY = {  # files -> what of ours they may import; an op_* package may always import itself
    f"{CORE}/cli/*.py": {CORE, *(f"{CORE}.{n}" for n in ("cli", "bench", "family"))}
    | ENGINE
    | CONTRACT,
    f"{CORE}/bench/*.py": {CORE, *(f"{CORE}.{n}" for n in ("bench", "engine", "concepts", "data"))}
    | LANGUAGE
    | REGISTRY,
    f"{CORE}/engine/*.py": ENGINE | CONTRACT | {CORE},
    f"{CORE}/language/*.py": LANGUAGE,
    f"{CORE}/concepts/*.py": CONCEPTS | {CORE},
    f"{CORE}/data/*.py": DATA,
    f"{CORE}/backend.py": CONTRACT,
    f"{CORE}/hookspecs.py": CONTRACT,
    f"{CORE}/errors.py": set(),
    f"{CORE}/reading.py": {f"{CORE}.errors"},
    f"{CORE}/filetypes.py": set(),
    f"{CORE}/config.py": {f"{CORE}.errors", f"{CORE}.reading"},
    f"{CORE}/registry.py": CONTRACT | ROOM,  # what is known before a backend is imported
    f"{CORE}/family/*.py": CONTRACT | {f"{CORE}.family"},
    f"{CORE}/testing/*.py": CONTRACT | ENGINE | {f"{CORE}.family", f"{CORE}.testing"},
    f"{CORE}/__main__.py": {f"{CORE}.cli"},
    f"{CORE}/__init__.py": set(),
    "backends/op_*/*.py": CONTRACT | {f"{CORE}.family"},
    "plugins/op_toy/*.py": CONTRACT | {"op_nano"},
    "plugins/op_serve/*.py": CONTRACT | ENGINE | {CORE},  # it keeps files of its own
    "plugins/op_*/*.py": CONTRACT
    | {f"{CORE}.{n}" for n in ("engine", "concepts", "data")}
    | LANGUAGE
    | REGISTRY,
    "pretraining/*.py": CONTRACT
    | {f"{CORE}.bench", "op_bagel", "op_nano", "op_toy", "pretraining"},
}
HEAVY = {"torch", "transformers", "peft", "numpy", "PIL", "safetensors", "tqdm", "cv2"}
MAY_BE_HEAVY = tuple(f"{CORE}/{name}/" for name in ("engine", "family", "bench", "data", "testing"))
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc", "base"}
ROOMS = (CORE, "backends", "plugins", "pretraining")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
IMAGE_TOKENIZERS = {
    "backends/op_bagel/vae.py",
    "backends/op_lance/vae.py",
    "backends/op_showo/magvit.py",
}
SAME_MEANING = {  # public class names that several files define, each for its own family
    **dict.fromkeys(
        (
            "AutoEncoder",
            "Encoder",
            "Decoder",
            "AttnBlock",
            "Level",
            "Middle",
            "Downsample",
            "Upsample",
        ),
        IMAGE_TOKENIZERS,  # the parts of an image tokenizer, named as in the released code
    ),
    "DecoderConfig": {"backends/op_bagel/config.py", "backends/op_showo/config.py"},
    "PreparedLesson": {  # what `Backend.prepare` of the family makes of a lesson
        "backends/op_bagel/lineage.py",
        "backends/op_showo/backend.py",
        "omnipersona_cli/family/language.py",
    },
}


def rule(path: Path) -> str | None:
    """The first line of MAY that speaks of this file."""
    return next((pattern for pattern in MAY if path.relative_to(ROOT).match(pattern)), None)


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names that a piece of code imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "relative imports are banned"
            if node.module == CORE:
                yield from (
                    f"{CORE}.{name.name}"
                    if (ROOT / CORE / name.name).exists()
                    or (ROOT / CORE / f"{name.name}.py").exists()
                    else CORE
                    for name in node.names
                )
            else:
                yield node.module


def forbidden_imports(source: str, may: set[str], own: str) -> list[str]:
    """Imports of ours that the rule does not allow."""
    allowed = may | {own}
    return [
        name
        for name in imported(ast.parse(source))
        if (name.split(".")[0] in (CORE, "pretraining") or name.startswith("op_"))
        and not any(name == ok or (name.startswith(ok + ".") and ok != CORE) for ok in allowed)
    ]


def lineage(folder: Path) -> set[str]:
    """The other backends that a backend imports, provided that they come from nobody else."""
    names = {
        name.split(".")[0]
        for path in folder.rglob("*.py")
        for name in imported(ast.parse(path.read_text(encoding="utf-8")))
    }
    others = {path.name for path in (ROOT / "backends").iterdir()} - {folder.name}
    return {name for name in names & others if not lineage(ROOT / "backends" / name)}


def heavy_at_import_time(source: str) -> list[str]:
    """Heavy packages that run when the file is imported; type-checking blocks do not run."""
    found = []

    def visit(statements: list[ast.stmt]) -> None:
        for node in statements:
            if isinstance(node, ast.Import):
                found.extend(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.append(node.module or "")
            elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                visit(node.orelse)
            elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While | ast.ClassDef):
                for part in ("body", "orelse", "finalbody"):
                    visit(getattr(node, part, []))
                for handler in getattr(node, "handlers", []):
                    visit(handler.body)

    visit(ast.parse(source).body)
    return [name for name in found if name.split(".")[0] in HEAVY]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_imports_only_what_its_place_allows(path: Path) -> None:
    pattern = rule(path)
    assert pattern, f"no rule speaks of {path.relative_to(ROOT)}: add one to MAY"
    own = path.relative_to(ROOT).parts[1] if pattern.startswith(("backends", "plugins")) else ""
    parents = lineage(path.parent) if pattern.startswith("backends") else set()
    assert len(parents) <= 1, f"{own} imports more than the one backend its family comes from"
    assert forbidden_imports(path.read_text(encoding="utf-8"), MAY[pattern] | parents, own) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_packages_are_imported_late_where_start_up_must_be_light(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    heavy_file = place.startswith(("backends", "plugins")) and path.name != "__init__.py"
    heavy_file |= place.startswith("pretraining")
    if not heavy_file and not place.startswith(MAY_BE_HEAVY):
        assert heavy_at_import_time(path.read_text(encoding="utf-8")) == []


def picture_openings(source: str) -> list[int]:
    """Lines that open a picture file with Pillow."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "PIL"
        for alias in node.names
        if alias.name == "Image"
    }
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr == "open"
        and ast.unparse(node.value) in {*names, "PIL.Image"}
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pictures_come_in_through_one_door(path: Path) -> None:
    if path != ROOT / CORE / "data" / "decode.py":
        assert picture_openings(path.read_text(encoding="utf-8")) == []


def test_the_rule_sees_every_way_of_opening_a_picture() -> None:
    assert picture_openings("from PIL import Image\nImage.open(path)") == [2]
    assert picture_openings("def f():\n    from PIL import Image as i\n    i.open(path)") == [3]
    assert picture_openings("import PIL.Image\nPIL.Image.open(path)") == [2]
    assert picture_openings("path.open()") == []


def readings(source: str) -> list[int]:
    """Lines that read JSON or YAML; what was written in the same breath is not read."""
    tree = ast.parse(source)
    names = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        called = names.get(called, called)
        own = bool(node.args) and ast.unparse(node.args[0]).startswith("json.dumps(")
        if re.fullmatch(r"json\.loads?|yaml\.\w*(load|parse|compose|scan)\w*", called) and not own:
            found.append(node.lineno)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_json_and_yaml_come_in_through_one_door(path: Path) -> None:
    """`config` composes the nodes of text that was read there already, for their lines."""
    own = (ROOT / CORE / "reading.py", ROOT / CORE / "config.py")
    if path not in own and not path.is_relative_to(ROOT / "pretraining"):
        assert readings(path.read_text(encoding="utf-8")) == []


def test_the_rule_sees_every_way_of_reading() -> None:
    assert readings("import json\njson.loads(text)") == [2]
    assert readings("from json import load as read\nread(file)") == [2]
    assert readings("import yaml\nyaml.safe_load(text)") == [2]
    assert readings("json.loads(json.dumps(value))") == []
    assert readings("parse_json(text, origin)") == []


def test_a_public_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(path.relative_to(ROOT).as_posix())
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert {n: f for n, f in twice.items() if not set(f) <= SAME_MEANING.get(n, set())} == {}
    assert SAME_MEANING.keys() <= twice.keys(), "no longer defined twice: take it off the list"


def test_no_dumping_ground() -> None:
    places = [place for room in ROOMS for place in (ROOT / room).rglob("*")]
    assert [p for p in places if p.stem.lower() in FORBIDDEN_NAMES] == []


def test_packages_are_one_folder_deep() -> None:
    deep = [path.relative_to(ROOT) for path in FILES if len(path.relative_to(ROOT).parts) > 3]
    assert deep == []


def test_the_rule_sees_imports_inside_functions() -> None:
    source = f"def late():\n    from {CORE}.engine import learn\n"
    assert forbidden_imports(source, CONTRACT, "op_x") == [f"{CORE}.engine"]
    assert forbidden_imports("import op_bagel.model", CONTRACT, "op_x") == ["op_bagel.model"]
    assert forbidden_imports("import op_x.model", CONTRACT, "op_x") == []
    assert forbidden_imports(f"from {CORE} import registry", CONTRACT, "") == [f"{CORE}.registry"]


def test_the_rule_sees_heavy_imports_that_run() -> None:
    assert heavy_at_import_time("try:\n    import torch.nn\nexcept ImportError: pass") == [
        "torch.nn"
    ]
    assert heavy_at_import_time("if TYPE_CHECKING:\n    import torch") == []
    assert heavy_at_import_time("def late():\n    import torch") == []
