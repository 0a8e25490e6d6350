"""Processes that change one library at once lose nothing. `make concurrency` runs more."""

from library_races import attack


def test_three_processes_lose_nothing() -> None:
    done, _, wrong = attack(3, 1.5)
    assert wrong == []
    assert done > 10
