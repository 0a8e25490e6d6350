"""Nothing is for CUDA alone: the source is read for what Apple's GPUs do not do.

No Apple computer runs this suite. These are the traps that other projects stepped into: Metal has
no 64-bit floats and no complex numbers, generators of random numbers give other ones there than on
a processor, and what asks for "cuda" by name passes Apple by.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHELVES = ("omnipersona_cli", "backends", "plugins")
FILES = sorted(path for shelf in SHELVES for path in (ROOT / shelf).rglob("*.py"))
WIDE = {"float64", "double", "complex64", "complex128", "cfloat", "cdouble"}
STAYS = {  # what is never anywhere but on the processor
    "backends/op_bagel/pictures.py:waves": "position tables, made once and given back in float32",
    "backends/op_showo/loading.py:fill": "ends of tensors, for the fingerprint",
    "omnipersona_cli/family/tensors.py:": "names of dtypes in files",
}
ASKS = {  # torch.cuda where it is asked whether there is one, or how much memory it has
    "omnipersona_cli/bench/unit.py",
    "omnipersona_cli/cli/doctor.py",
    "omnipersona_cli/family/device.py",
    "omnipersona_cli/family/pieces.py",
    "omnipersona_cli/family/room.py",
    "plugins/op_serve/worker.py",
}


def traps(source: str) -> Iterator[tuple[str, str]]:
    """What would not run on Apple's GPUs, and the function in which it stands."""

    def visit(node: ast.AST, inside: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.FunctionDef):
            inside = node.name
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if node.attr in WIDE and owner not in ("np", "numpy"):
                yield f"64 bits: {node.attr}", inside
            if node.attr == "is_cuda" or (node.attr == "cuda" and owner != "torch"):
                yield f"CUDA alone: .{node.attr}", inside
            if node.attr == "cuda" and owner == "torch":
                yield "torch.cuda", inside
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            values = [*node.args, *(word.value for word in node.keywords)]
            text = [it.value for it in values if isinstance(it, ast.Constant)]
            if called in ("autocast", "to", "device") and any(str(it)[:4] == "cuda" for it in text):
                yield f"CUDA alone: {called}('cuda')", inside
            named = {word.arg for word in node.keywords}
            if called == "Generator" and (node.args or "device" in named):
                yield "random numbers drawn on the device", inside
            if called == "interpolate" and "antialias" in named:
                yield "interpolate with antialias", inside
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), "")


@pytest.mark.parametrize(
    "line",
    [
        "model.cuda()",
        "torch.autocast('cuda')",
        "x.to('cuda:1')",
        "x.to(device='cuda')",
        "x.double()",
        "x.to(torch.float64)",
        "torch.Generator(device=x.device)",
        "if q.is_cuda: pass",
        "torch.cuda.synchronize()",
    ],
)
def test_a_trap_is_found(line: str) -> None:
    assert list(traps(line))


def test_nothing_is_for_cuda_alone() -> None:
    found = []
    for path in FILES:
        place = path.relative_to(ROOT).as_posix()
        for what, inside in traps(path.read_text(encoding="utf-8")):
            asked = what == "torch.cuda" and place in ASKS
            if f"{place}:{inside}" not in STAYS and not asked:
                found.append(f"{place}, {inside}: {what}")
    assert found == []
