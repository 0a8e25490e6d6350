"""Packs changed by structure, with every digest made right again: what an author of a hostile pack
can write. Whatever `verify` calls sound, every command takes: no traceback, bounded output, time
and memory, and its tensors and facts come out of all of them as they went in.

`make fuzz` tries 200,000 in portions, one process for each core. A seed and the number of a portion
give the same mutants again; `--log FILE` keeps what is done, and a run that is cut goes on from it.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from disk_faults import sketch_backend

from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts import container
from omnipersona_cli.concepts.digest import DIGEST, seal, tensors_hash
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import (
    Fact,
    Pack,
    RawTensor,
    parse_pack,
    rewrite,
    to_bytes,
    verify_bytes,
)
from omnipersona_cli.engine.tokens import slot_name, to_slot
from omnipersona_cli.errors import PersonaError
from omnipersona_cli.testing import SketchBackend, drawing

OUTPUT_LIMIT = 16 << 20
"""Bytes that a command may print about any pack."""
EVERY = 50
"""One in so many sound mutants goes through the commands as well."""
PORTION = 1000
"""Mutants that follow from one random number."""
SECONDS_LIMIT = 20.0
"""Seconds of a processor that a mutant may take, all commands together."""
MEMORY_LIMIT = 2048.0
"""MiB that a process which tries them may take, the model's libraries among them."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**39, 10**400, 1e308, -0.0, 0.1),
    *("", " ", "x", "x" * 300, "x" * 100_000, "/etc/passwd", "../x", "\x1b[2J", "\u202e", "\ud800"),
    *("<bo>", "<|im_end|>", "9" * 5000, "\u0000", "ü", "\U0001f436", "bo\nrex", "a; curl x | sh"),
    *([], {}, [[]], [{}], {"": {}}, [0] * 1000, {str(n): n for n in range(3000)}),
    *({"x" * 60_000: 1}, {"a" * n: n for n in range(1, 900, 9)}),
)


def _value(chance: random.Random) -> Any:
    return copy.deepcopy(chance.choice(VALUES))  # what is put in may be changed later


def _deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensor part."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: dict[str, Any], part: bytes) -> bytes:
    """The file, its digests right where they can be computed."""
    metadata = header.get("__metadata__")
    try:
        tensors = {
            key: RawTensor(
                dtype=entry["dtype"],
                shape=tuple(entry["shape"]),
                data=part[slice(*entry["data_offsets"])],
            )
            for key, entry in header.items()
            if key != "__metadata__"
        }
        if isinstance(metadata, dict) and DIGEST in metadata:
            order = sorted(tensors, key=lambda key: header[key]["data_offsets"])
            whole = sha256(b"".join(tensors[key].data for key in order)).hexdigest()
            metadata["modelspec.hash_sha256"] = f"0x{whole}"
            for key in [key for key in metadata if key.startswith("op.hash.")]:
                metadata[key] = tensors_hash(tensors, f"slot/{key[8:]}/")
            header = {**header, "__metadata__": seal(metadata, tensors)}
    except (TypeError, ValueError, KeyError, AttributeError, PersonaError, RecursionError):
        pass
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + part


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a value and a key or index into it."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutate(good: bytes, chance: random.Random) -> bytes:
    """A pack with one to three changes, in its JSON, in the JSON inside, or in its bytes."""
    header, part = split(good)
    metadata = header["__metadata__"]
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        kind = chance.randrange(8)
        if kind < 4:  # inside a table of the metadata
            tables = [key for key in metadata if metadata[key][:1] in ("{", "[")]
            if not tables:
                continue
            key = chance.choice(tables)
            try:
                table = [json.loads(metadata[key])]
            except ValueError:
                continue
            _change(table, chance)
            try:
                metadata[key] = json.dumps(table[0])
            except (ValueError, RecursionError):
                continue
        elif kind == 4 and metadata:
            key = chance.choice(list(metadata))
            value = _value(chance)
            metadata[key] = value if isinstance(value, str) else json.dumps(value)
        elif kind == 5:
            _change([header], chance)
            metadata = header.get("__metadata__")
            if not isinstance(metadata, dict) or not all(
                isinstance(value, str) for value in metadata.values()
            ):
                break
        elif kind in (4, 6):
            metadata[f"op.{chance.choice(('future', 'hash.nano', 'eval', 'digest'))}"] = "x"
        else:
            start = chance.randrange(len(part))
            part = part[:start] + chance.randbytes(4) + part[start + 4 :]
    data = join(header, part)
    if chance.random() < 0.1:
        place = chance.randrange(len(data))
        data = data[:place] + chance.randbytes(chance.randrange(3)) + data[place + 1 :]
    return data


def _change(table: Any, chance: random.Random) -> None:
    inside, key = chance.choice(list(places(table)))
    act = chance.randrange(4)
    if act == 0 and isinstance(inside, dict):
        del inside[key]
    elif act == 1 and isinstance(inside, dict):
        other = _value(chance)
        inside[other if isinstance(other, str) else repr(key)] = inside[key]
    else:
        deep = chance.random() < 0.05
        inside[key] = _deep(chance.choice((10, 31, 33, 400))) if deep else _value(chance)


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("concepts",),
    ("concepts", "--json"),
    ("concepts", "show", "bo"),
    ("concepts", "show", "bo", "--json"),
    ("concepts", "facts", "bo"),
    ("concepts", "verify", "bo"),
    ("ask", "PLACE/red.png", "is <bo> here?"),
    ("ask", "what is <bo>'s toy?", "--json"),
    ("gen", "<bo> with its toy", "-o", "PLACE/out.png", "--force", "--explain"),
    ("edit", "PLACE/red.png", "add <bo>", "--box", "8,8,24,24", "-o", "PLACE/out.png", "--force"),
    ("concepts", "export", "bo", "-o", "PLACE/out.opconcept", "--force"),
    ("concepts", "facts", "bo", "add", "<bo> is new"),
    ("concepts", "rename", "bo", "rex"),
    ("concepts", "undo"),
    ("concepts", "fsck"),
)


@dataclass(kw_only=True)
class Tally:
    """What came of the tries. ``slowest`` are seconds of a processor, ``peak`` MiB."""

    tried: int = 0
    sound: int = 0
    whole: int = 0
    lost: int = 0
    tracebacks: int = 0
    slowest: float = 0.0
    peak: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count another's as well."""
        for name in ("tried", "sound", "whole", "lost", "tracebacks", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest = max(self.slowest, other.slowest)
        self.peak = max(self.peak, other.peak)


def kept_of(data: bytes) -> tuple[str, tuple[str, ...]]:
    """What must never be lost of a pack: the values of its tensors, and its facts."""
    tensors = container.tensors_of(data, container.parse_header(data, len(data)))
    return tensors_hash(tensors, ""), tuple(fact.text for fact in parse_pack(data).facts)


def check_commands(data: bytes, folder: Path, tally: Tally) -> str:
    """What a command did that it must not, for a sound pack; empty when nothing."""
    library = Library(folder / "data" / "concepts")
    library.folder.mkdir(parents=True, exist_ok=True)
    path, out = library.folder / "bo.opconcept", folder / "out.opconcept"
    path.write_bytes(data)
    runner = CliRunner(env={"OMNIPERSONA_HOME": str(folder), "OMNIPERSONA_BACKEND": "sketch"})
    try:
        for words in COMMANDS:
            done = runner.invoke(cli, [word.replace("PLACE", str(folder)) for word in words])
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                tally.tracebacks += 1
                return f"{words}: {done.exception!r}"
            if len(done.output) > OUTPUT_LIMIT:
                return f"{words}: printed {len(done.output)} bytes"
        tensors, facts = kept_of(data)
        for left in (*library.folder.glob("*.opconcept"), out):
            now, told = kept_of(left.read_bytes())
            more = [fact for fact in told if fact != "<bo> is new"]
            if now != tensors or (left in (path, out) and more != list(facts)):
                tally.lost += 1
                return f"{left.name} has not what the pack had"
    finally:
        for left in [*library.folder.glob("*.opconcept"), *library.folder.glob(".undo/*"), out]:
            left.unlink(missing_ok=True)
    return ""


def check(data: bytes) -> tuple[bool, str]:
    """Whether a mutant is sound, and what went wrong with it."""
    sound = not verify_bytes(data)
    try:
        pack = parse_pack(data)
        again = rewrite(data, name="rex")
        if sound and (problems := verify_bytes(to_bytes(pack, large=True))):
            return sound, f"written again it is not sound: {problems[0]}"
        if sound and verify_bytes(again):
            return sound, "renamed it is not sound"
    except PersonaError as error:
        if sound and "this machine" not in str(error):
            return sound, f"sound, but: {error}"
    return sound, ""


def good_pack() -> bytes:
    """What mutants are made of: a concept on the sketch backend, so that every verb works on it."""
    backend = SketchBackend()
    photos = [drawing("red", seed) for seed in range(2)]
    tokens = backend.new_tokens("bo", understand=2, generate=2, photos=photos, seed=0)
    name = slot_name(backend)
    return to_bytes(
        Pack(
            name="bo",
            class_word="dog",
            facts=(Fact(text="<bo> is brown"), Fact(text="<bo>'s toy is a red ball")),
            slots={name: to_slot(tokens, backend, {"seed": 0, "steps": 1})},
            evals={name: {"threshold": 0.1, "card": {"recognition": {"accuracy": 0.9}}}},
        )
    )


def portion(work: tuple[int, int, int, int]) -> tuple[int, Tally]:
    """Try the mutants of portion ``number`` of ``seed``, so many of them."""
    seed, number, count, every = work
    chance, tally = random.Random(f"{seed}:{number}"), Tally()
    good = good_pack()
    with tempfile.TemporaryDirectory() as place, sketch_backend():
        drawing("red", 50).save(Path(place) / "red.png")
        for at in range(count):
            data, began = mutate(good, chance), time.process_time()
            tally.tried += 1
            try:
                sound, problem = check(data)
                tally.sound += sound
                if sound and not problem and tally.sound % every == 0:
                    tally.whole += 1
                    problem = check_commands(data, Path(place), tally)
            except Exception as error:  # every exception here is what is looked for
                tally.tracebacks += 1
                problem = f"{error!r}"
            took = time.process_time() - began
            tally.slowest = max(tally.slowest, took)
            if took > SECONDS_LIMIT:
                problem = problem or f"took {took:.0f} s"
            if problem:
                tally.wrong.append(f"mutant {at} of portion {number} of seed {seed}: {problem}")
    tally.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if tally.peak > MEMORY_LIMIT:
        tally.wrong.append(f"portion {number} of seed {seed}: took {tally.peak:.0f} MiB")
    return number, tally


def portions(count: int, seed: int, every: int) -> list[tuple[int, int, int, int]]:
    """``count`` mutants as the work of `portion`."""
    numbers = range(-(-count // PORTION))
    return [(seed, number, min(PORTION, count - number * PORTION), every) for number in numbers]


def attack(count: int, seed: int, *, every: int = EVERY) -> Tally:
    """Try so many mutants in this process."""
    whole = Tally()
    for work in portions(count, seed, every):
        whole.add(portion(work)[1])
    return whole


def figures(tally: Tally, seconds: float) -> str:
    """The line that says what came of it."""
    return (
        f"mutants: tried {tally.tried}, refused {tally.tried - tally.sound}, sound {tally.sound} "
        f"({tally.whole} of them through every command), lost {tally.lost}, "
        f"tracebacks {tally.tracebacks}, wrong {len(tally.wrong)}, {seconds:.0f} s, "
        f"slowest {tally.slowest:.1f} s, peak {tally.peak:.0f} MiB"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=EVERY)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--log", type=Path, help="keep what is done here, and go on from it")
    words = parser.parse_args()
    began, whole, done = time.monotonic(), Tally(), set()
    if words.log is not None and words.log.exists():
        for line in words.log.read_text().splitlines():
            said = json.loads(line)
            done.add(tuple(said["work"]))
            whole.add(Tally(**said["tally"]))
    wanted = [it for it in portions(words.count, words.seed, words.every) if it not in done]
    context = multiprocessing.get_context("spawn")
    with context.Pool(words.workers, maxtasksperchild=10) as pool:
        for number, tally in pool.imap_unordered(portion, wanted):
            whole.add(tally)
            if words.log is not None:
                work = next(it for it in wanted if it[1] == number)
                with words.log.open("a") as log:
                    log.write(json.dumps({"work": work, "tally": asdict(tally)}) + "\n")
            print(*tally.wrong, sep="\n", end="\n" if tally.wrong else "", flush=True)
    print(figures(whole, time.monotonic() - began))
    return bool(whole.wrong)


if __name__ == "__main__":
    sys.exit(main())
