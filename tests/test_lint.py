"""The code passes its own linters; what they say is the failure's message."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = {
    "ruff check": ["ruff", "check", "--no-fix"],
    "ruff format": ["ruff", "format", "--check"],
    "mypy --strict": ["mypy"],
}


@pytest.mark.parametrize("check", CHECKS)
def test_code_passes(check: str, root: Path) -> None:
    command = [sys.executable, "-m", *CHECKS[check]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
