"""What `op` says where the folder of a large family is another's, is not whole, or holds weights
that another library has quantised: one line, one hint, an exit code of the table."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_bagel
import tiny_emu3
import tiny_janus
import tiny_showo
from click.testing import Result

Op = Callable[..., Result]
WRITERS: dict[str, Callable[[Path], object]] = {
    "bagel": tiny_bagel.write_tiny,
    "emu3": tiny_emu3.write,
    "janus": tiny_janus.write,
    "showo": tiny_showo.write_tiny,
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("written")
    for name, write in WRITERS.items():
        write(folder / name)
    return folder


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one, to be broken."""

    def copy(name: str) -> Path:
        for path in (written / name).rglob("*"):
            if path.is_file():
                place = tmp_path / name / path.relative_to(written / name)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(path.read_bytes())
        return tmp_path / name

    return copy


def refused(op: Op, backend: str, folder: Path, code: int, words: str) -> None:
    """Asking is refused in one line with these words, and with one hint."""
    result = op("ask", "what is this?", "-b", backend, "--model", str(folder), "--device", "cpu")
    lines = result.stderr.strip().splitlines()
    assert result.exit_code == code, result.stderr
    assert words in lines[-2] and lines[-2].startswith("Error: "), lines
    assert lines[-1].startswith("Hint: ")
    assert f"op backends {'show' if code == 2 else 'fetch'} {backend}" in lines[-1]
    assert "Traceback" not in result.stderr and result.stdout == ""


@pytest.mark.parametrize(
    ("backend", "other", "code", "words"),
    [
        ("bagel", "janus", 3, "ae.safetensors is missing"),
        ("emu3", "janus", 2, "holds a model of type 'janus', and emu3 opens"),
        ("janus", "showo", 2, "holds a model of no named type, and janus opens"),
        ("showo", "emu3", 3, "is not that of a Show-o"),
    ],
)
def test_the_folder_of_another_family(
    backend: str, other: str, code: int, words: str, written: Path, op: Op
) -> None:
    refused(op, backend, written / other, code, words)


@pytest.mark.parametrize("backend", WRITERS)
def test_a_folder_of_something_else(backend: str, tmp_path: Path, op: Op) -> None:
    refused(op, backend, tmp_path, 3, str(tmp_path))


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq"])
@pytest.mark.parametrize("backend", WRITERS)
def test_weights_that_another_library_has_quantised(
    backend: str, method: str, copied: Callable[[str], Path], op: Op
) -> None:
    folder = copied(backend)
    path = folder / ("llm_config.json" if backend == "bagel" else "config.json")
    told = json.loads(path.read_text()) | {"quantization_config": {"quant_method": method}}
    path.write_text(json.dumps(told))
    refused(op, backend, folder, 2, f"are quantised ({method}), and {backend} reads plain ones")


@pytest.mark.parametrize("left", [0, 20])
@pytest.mark.parametrize(
    ("backend", "name"),
    [("bagel", "tokenizer.json"), ("emu3", "model.safetensors"), ("showo", "phi-1_5/config.json")],
)
def test_a_download_that_broke_off(
    backend: str, name: str, left: int, copied: Callable[[str], Path], op: Op
) -> None:
    folder = copied(backend)
    path = folder / name
    path.write_bytes(path.read_bytes()[:left])
    refused(op, backend, folder, 3, str(path.parent))
