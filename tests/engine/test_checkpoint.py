"""A checkpoint is as it was written, or it is not gone on from."""

import pytest
import torch

from omnipersona_cli.concepts.upkeep import runs
from omnipersona_cli.engine import Keeping, Settings, learn
from omnipersona_cli.engine.checkpoint import (
    RunState,
    forget_checkpoints,
    forget_run,
    read_checkpoint,
    run_folder,
    sweep_done,
    write_checkpoint,
)

STRIDE = 13


@pytest.fixture
def folder(home):
    return run_folder("a" * 24)


def checkpoint(step):
    rows = {"und": torch.full((2, 3), float(step))}
    return RunState(
        step=step,
        tokens=rows,
        best={key: value.clone() for key, value in rows.items()},
        moments={"und|mean": torch.zeros(2, 3)},
        random=torch.zeros(16, dtype=torch.uint8),
        losses={"loss": 0.5},
    )


def test_every_flipped_bit_is_refused(folder):
    write_checkpoint(checkpoint(3), folder, concept="bo")
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), STRIDE):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert read_checkpoint(folder) is None, f"bit {bit} of {8 * len(whole)}"
    path.write_bytes(whole)
    kept = read_checkpoint(folder)
    assert kept is not None and kept.step == 3
    assert torch.equal(kept.tokens["und"], torch.full((2, 3), 3.0))


def test_what_is_cut_off_or_added_is_refused(folder):
    write_checkpoint(checkpoint(3), folder)
    (path,) = folder.iterdir()
    whole = path.read_bytes()
    for data in (whole[:-1], whole + b"\0", whole[:9], b"", b"\xff" * 64):
        path.write_bytes(data)
        assert read_checkpoint(folder) is None


def test_two_are_kept_and_the_last_good_one_is_gone_on_from(folder):
    for step in (1, 2, 3):
        write_checkpoint(checkpoint(step), folder)
    older, newer = sorted(folder.iterdir())
    newer.write_bytes(newer.read_bytes()[:-1])
    told = []
    kept = read_checkpoint(folder, on_damage=told.append)
    assert kept is not None and kept.step == 2
    assert len(told) == 1 and "damaged" in told[0]
    assert list(folder.iterdir()) == [older], "nobody can use a damaged one"


def test_a_run_says_whose_it_is(folder):
    write_checkpoint(checkpoint(1), folder, concept="bo")
    assert [run.concept for run in runs()] == ["bo"]
    forget_checkpoints(folder)
    assert read_checkpoint(folder) is None


def test_a_run_that_was_cut_while_it_was_forgotten_goes_with_the_next(folder):
    write_checkpoint(checkpoint(1), folder)
    folder.rename(folder.with_name(folder.name + ".done"))
    sweep_done()
    assert runs() == ()
    write_checkpoint(checkpoint(1), folder)
    forget_run(folder)
    assert runs() == ()


def test_a_damaged_checkpoint_ends_in_the_same_pack(sketch, bo, library, tmp_path):
    straight = Keeping(out=tmp_path / "straight.opconcept", samples=0)
    whole = learn(bo, Settings(steps=8), straight, backend=sketch)

    def stop(event):
        if event.phase == "learning" and event.step == 6:
            raise KeyboardInterrupt

    keeping = Keeping(library=library, samples=0, resume=True)
    with pytest.raises(KeyboardInterrupt):
        learn(bo, Settings(steps=8), keeping, backend=sketch, on_progress=stop)
    (run,) = runs()
    newest = max(run.folder.iterdir())
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    notes = []
    resumed = learn(
        bo,
        Settings(steps=8),
        keeping,
        backend=sketch,
        on_progress=lambda event: notes.append(event.note),
    )
    assert any("damaged" in note for note in notes)
    assert resumed.resumed_from > 0 and resumed.pack.hash == whole.pack.hash
