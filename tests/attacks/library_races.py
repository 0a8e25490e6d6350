"""Many processes change one library at once: nothing is lost, nothing is half-written.

`make concurrency` runs 8 of them for 30 seconds. Each adds facts to <bo>, which they share, and
saves, renames, exports, removes and brings back concepts of its own.
"""

from __future__ import annotations

import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from faulty_commands import concept

from omnipersona_cli.concepts.facts import FACT_COUNT, Fact
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import verify
from omnipersona_cli.concepts.upkeep import check_library
from omnipersona_cli.errors import PersonaError


def work(place: str, who: int, seconds: float, results: Any) -> None:
    """One process: (changes made, refused, tracebacks, facts that were added and must be there)."""
    library, chance = Library(Path(place) / "library"), random.Random(who)
    mine, out = f"p{who}", Path(place) / f"{who}.opconcept"
    done = refused = 0
    bugs: list[str] = []
    facts: list[str] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            act = chance.randrange(6)
            if act == 0 and len(facts) < FACT_COUNT // 16:
                fact = Fact(text=f"fact {len(facts)} of {who}")
                library.change_facts("bo", lambda known, fact=fact: [*known, fact])  # type: ignore[misc]
                facts.append(fact.text)
            elif act == 1:
                library.save(concept(mine, f"at {done}", seed=done), force=True)
            elif act == 2:
                library.rename(mine, f"{mine}-b")
                library.rename(f"{mine}-b", mine)
            elif act == 3:
                library.export("bo", out, force=True)
                if verify(out):
                    bugs.append("an exported pack is not sound")
            elif act == 4:
                library.remove(mine)
                library.undo(mine)
            else:
                for name in library.names():
                    library.header(name)
            done += 1
        except PersonaError:
            refused += 1
        except Exception:
            bugs.append(traceback.format_exc(limit=3))
    results.put((done, refused, bugs, facts))


def attack(processes: int, seconds: float) -> tuple[int, int, list[str]]:
    """Changes made, changes refused, and what went wrong."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as place:
        library = Library(Path(place) / "library")
        library.save(concept("bo"))
        others = [
            context.Process(target=work, args=(place, who, seconds, results))
            for who in range(processes)
        ]
        for other in others:
            other.start()
        found = [results.get() for _ in others]
        for other in others:
            other.join()
        wrong = [bug for _, _, bugs, _ in found for bug in bugs]
        known = {fact.text for fact in library.header("bo").facts}
        wrong += [f"lost: {fact}" for *_, facts in found for fact in facts if fact not in known]
        wrong += [finding.what for finding in check_library(library) if finding.bad]
        wrong += [str(left) for left in Path(place).rglob("*.tmp")]
    return sum(done for done, *_ in found), sum(refused for _, refused, *_ in found), wrong


def main() -> int:
    started = time.monotonic()
    done, refused, wrong = attack(8, 30.0)
    lost = sum(problem.startswith("lost") for problem in wrong)
    peak = max(resource.getrusage(who).ru_maxrss for who in (0, resource.RUSAGE_CHILDREN)) / 1024
    print(
        f"concurrency: tried {done + refused}, refused {refused}, lost {lost}, "
        f"tracebacks {len(wrong) - lost}, {time.monotonic() - started:.0f} s, peak {peak:.0f} MiB",
        *wrong[:10],
        sep="\n",
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
