"""Listings and help load none of the heavy packages, and stay within the budget."""

import subprocess
import sys
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


def test_help_stays_within_the_budget() -> None:
    """150 ms of processor time, the best of several runs: other work on the machine adds nothing
    to that, and on an idle one it is the time that a person waits."""
    resource = pytest.importorskip("resource")

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(usage.ru_utime + usage.ru_stime)

    def cost(command: list[str]) -> float:
        start = spent()
        subprocess.run(command, capture_output=True, check=True)
        return spent() - start

    best = min(cost([sys.executable, "-m", "omnipersona_cli", "--help"]) for _ in range(8))
    assert best < 0.150
