"""A small concept to keep."""

import numpy as np
import pytest

from omnipersona_cli.concepts.pack import Fact, Pack, Slot


def tokens(seed, width=8, understand=4, generate=3):
    chance = np.random.default_rng(seed)
    return {
        "id": chance.normal(size=(1, width)).astype(np.float32),
        "und": chance.normal(size=(understand, width)).astype(np.float32),
        "gen": chance.normal(size=(generate, width)).astype(np.float32),
    }


@pytest.fixture
def bo():
    """A concept with one slot, facts, scores and a date."""
    return Pack(
        name="bo",
        class_word="dog",
        kind="animal",
        facts=(Fact(text="<bo>'s toy is a red ball"), Fact(text="<bo> is brown", source="auto")),
        slots={
            "nano": Slot(
                tensors=tokens(0),
                about={"base": "embedded", "fingerprint": "nano@1", "seed": 7, "steps": 300},
            )
        },
        evals={"nano": {"threshold": 0.25, "verdict": "good", "auroc": 0.97}},
        provenance={"photos": 6},
        licence="CC0-1.0",
        date="2025-01-02T03:04:05Z",
    )
