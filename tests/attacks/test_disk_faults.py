"""No command loses a concept, whichever call to the disk fails or is the last. `make faults` tries
every call of every command; here some calls of those that do most."""

import pytest
from disk_faults import attack


@pytest.mark.parametrize(
    ("command", "stride"),
    [
        ("rename", 5),
        ("rm", 7),
        ("import --force", 4),
        ("export", 3),
        ("learn", 31),
        ("learn --force", 37),
        ("learn --report", 59),
        ("gen", 5),
        ("edit", 5),
    ],
)
def test_no_failing_disk_and_no_kill_loses_a_concept(command: str, stride: int) -> None:
    tally = attack(command, stride=stride)
    assert tally.tried > 10
    assert tally.refused > 5
    assert tally.wrong == []


@pytest.mark.parametrize("command", ["bench run", "serve"])
def test_nor_does_what_takes_longest(command: str) -> None:
    tally = attack(command, modes=("EIO", "killed after"), stride=83)
    assert tally.tried >= 4
    assert tally.refused >= 2
    assert tally.wrong == []
