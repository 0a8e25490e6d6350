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


def test_opening_a_backend_loads_neither_low_rank_experts_nor_the_compiler() -> None:
    """Two seconds of each command; bitsandbytes, which PEFT imports, also says things."""
    unasked = {"peft", "bitsandbytes", "torch._inductor.compile_fx"}
    openers = ", ".join(f"op_{it}.loading" for it in ("bagel", "emu3", "janus", "lance", "showo"))
    code = f"import {openers}, sys; print(sorted({unasked!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and not done.stderr


def test_help_stays_within_the_budget() -> None:
    """150 ms of processor time, which an idle machine shows as time waited. A busy machine makes
    everything slower, so there the measure is `import click`, run in turn: 42 ms when idle."""
    resource = pytest.importorskip("resource")

    def cost(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return float(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)

    runs = [(cost("-m", "omnipersona_cli", "--help"), cost("-c", "import click")) for _ in range(8)]
    ours, empty = map(min, zip(*runs, strict=True))
    assert ours < max(0.150, 3.5 * empty), f"{ours:.3f} s; `import click` {empty:.3f} s"
