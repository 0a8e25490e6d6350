"""Listings and help load none of the heavy packages, and stay within the budget."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = {"torch", "transformers", "peft", "numpy", "PIL", "safetensors", "tqdm", "cv2"}
LISTINGS = [
    [],
    ["--help"],
    ["--version"],
    ["backends"],
    ["backends", "--json"],
    ["backends", "show", "nano"],
    ["concepts"],
    ["concepts", "--json"],
    ["help", "exit-codes"],
    ["completion", "bash"],
]


@pytest.mark.parametrize("args", LISTINGS, ids=" ".join)
def test_listing_loads_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from omnipersona_cli.cli.main import cli\n"
        f"try: cli({args!r}, prog_name='op')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "heavy: []"


def test_help_appears_within_the_budget() -> None:
    """150 ms on an idle machine; the best of several runs, against a Python that does nothing."""

    def best(command: list[str]) -> float:
        times = []
        for _ in range(8):
            start = time.perf_counter()
            subprocess.run(command, capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    empty = best([sys.executable, "-c", "import click"])
    ours = best([sys.executable, "-m", "omnipersona_cli", "--help"])
    assert ours < max(0.150, 4 * empty), f"{ours:.3f} s, `import click` takes {empty:.3f} s"
