"""Batches in pieces."""

import platform
import subprocess
import sys

import pytest
import torch

from omnipersona_cli.family.pieces import in_pieces, most_positions, settled


def test_pieces_stay_below_the_positions_that_fit() -> None:
    lengths = [1, 1, 9, 2, 2, 2]
    assert list(in_pieces("abcdef", lengths, most=6)) == ["ab", "c", "def"]
    assert list(in_pieces("abcdef", lengths, most=6, at_once=4)) == ["abcd", "ef"]


def test_a_settled_loss_has_its_value_and_its_gradients_and_no_graph() -> None:
    rows = torch.tensor([1.0, 2.0], requires_grad=True)
    doubled = rows * 2  # one group in the place of two is neither a leaf nor there once
    loss = settled((doubled**2).sum(), [doubled, doubled])
    assert float(loss.detach()) == 20.0
    loss.backward()
    assert rows.grad is not None and rows.grad.tolist() == [8.0, 16.0]
    with torch.no_grad():
        assert float(settled((rows**2).sum(), [rows])) == 5.0, "nothing to settle"


HOLES = """
import re, torch
from omnipersona_cli.family.pieces import settled

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

torch.ones(30 << 18).sum()  # glibc's heap takes what is smaller from now on
kept, freed = [], []
for _ in range(100):
    freed.append(torch.ones(2 << 18))
    kept.append(torch.ones(1 << 8))
freed.clear()
rows = torch.ones(2, requires_grad=True)
before = resident()
settled((rows**2).sum(), [rows])
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's heap")
def test_what_a_piece_has_freed_goes_back_to_the_system() -> None:
    ran = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert float(ran.stdout) > 100, "MB of the 200 that were freed between rows that are kept"


class Sizes:
    hidden_size, num_hidden_layers = 2048, 24


def test_a_processor_learns_from_one_lesson_of_a_large_model_at_a_time() -> None:
    assert 600 < most_positions(Sizes, "cpu") < 1200, "of Janus-Pro-1B"
    assert most_positions(Sizes, "cpu", size=4) * 2 in range(600, 1201)
