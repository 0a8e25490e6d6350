"""A concept is used with the revision of the weights that it was learned on; a hub on loopback."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_bagel
from click.testing import Result
from hub import Hub, serving

import op_bagel
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.testing import drawing

pytestmark = pytest.mark.slow

REPO = op_bagel.INFO.default_model


def test_the_revision_is_kept_with_the_concept_used_again_and_told_where_it_is_not_here(
    tmp_path: Path, op: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for seed in range(5):
        drawing("red", seed).save(f"photos/{seed}.png")
    folder = tiny_bagel.write_tiny(tmp_path / "release")
    ask = ("ask", "photos/0.png", "is <bo> here?", "--device", "cpu")
    with serving(Hub(repositories={REPO: folder}), tmp_path / "cache", monkeypatch):
        assert op("backends", "fetch", "bagel").exit_code == 0
        few = ("--understand-tokens", "4", "--generate-tokens", "4", "--steps", "2")
        learn = ("learn", "photos", "--name", "bo", "-b", "bagel", "--device", "cpu", *few)
        assert op(*learn, "--samples", "0").exit_code == 0
        (slot,) = Library().header("bo").slots.values()
        (first,) = slot.about["revisions"].values()
        (kept,) = (tmp_path / "cache").glob(f"*/snapshots/{first}")
        assert slot.about["revisions"] == {REPO: first} and len(first) == 40

        newer = bytearray((folder / "ema.safetensors").read_bytes())
        newer[-2:] = b"\x01\x3f"
        (folder / "ema.safetensors").write_bytes(newer)
        assert op("backends", "fetch", "bagel").exit_code == 0
        assert len(list(kept.parent.iterdir())) == 2
        used = op(*ask)
        assert used.exit_code == 0, used.stderr
        assert "revision" not in used.stderr

        shutil.rmtree(kept)
        other = op(*ask)
        assert other.exit_code == 1
        assert f"was learned on {REPO} at revision {first[:12]}, and here is" in other.stderr
        _, _, hint = other.stderr.strip().splitlines()[-1].partition("Hint: op ")
        assert first in hint
        assert op(*shlex.split(hint)).exit_code == 0
        again = op(*ask)
        assert again.exit_code == 0, again.stderr
        assert again.stdout == used.stdout
