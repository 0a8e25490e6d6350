"""Packs changed by structure, with every digest made right again: what an author of a hostile pack
can write. Whatever `verify` calls sound, every command takes: no traceback, bounded output.

`make fuzz` tries 200,000; a seed gives the same mutants again.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from click.testing import CliRunner
from disk_faults import concept

from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts.digest import DIGEST, seal, tensors_hash
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.concepts.pack import RawTensor, parse_pack, rewrite, to_bytes, verify_bytes
from omnipersona_cli.errors import PersonaError

OUTPUT_LIMIT = 16 << 20
"""Bytes that a command may print about any pack."""
EVERY = 50
"""One in so many sound mutants goes through the commands as well."""

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
            key = chance.choice([key for key in metadata if metadata[key][:1] in ("{", "[")])
            try:
                table = [json.loads(metadata[key])]
            except ValueError:
                continue
            _change(table, chance)
            try:
                metadata[key] = json.dumps(table[0])
            except (ValueError, RecursionError):
                continue
        elif kind == 4:
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
        elif kind == 6:
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
    (),
    ("--json",),
    ("show", "bo"),
    ("show", "bo", "--json"),
    ("facts", "bo"),
    ("verify", "bo"),
    ("export", "bo", "-o", "out.opconcept", "--force"),
    ("facts", "bo", "add", "<bo> is new"),
    ("rename", "bo", "rex"),
    ("undo",),
    ("fsck",),
)


def check_commands(data: bytes, folder: Path) -> str:
    """What a command did that it must not, for a sound pack; empty when nothing."""
    library = Library(folder / "data" / "concepts")
    library.folder.mkdir(parents=True, exist_ok=True)
    path = library.folder / "bo.opconcept"
    path.write_bytes(data)
    try:
        for words in COMMANDS:
            done = CliRunner(env={"OMNIPERSONA_HOME": str(folder)}).invoke(
                cli,
                ["concepts", *(w.replace("out.", f"{folder}/out.") for w in words)],
            )
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                return f"{words}: {done.exception!r}"
            if len(done.output) > OUTPUT_LIMIT:
                return f"{words}: printed {len(done.output)} bytes"
    finally:
        for left in [*library.folder.glob("*.opconcept"), *library.folder.glob(".undo/*")]:
            left.unlink()
    return ""


def check(data: bytes) -> tuple[bool, str]:
    """Whether a mutant is sound, and what went wrong with it."""
    try:
        sound = not verify_bytes(data)
    except Exception as error:  # every exception here is what is looked for
        return False, f"verify: {error!r}"
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
    except Exception as error:
        return sound, f"{error!r}"
    return sound, ""


def attack(
    count: int, seed: int, *, every: int = EVERY, tell: Callable[[str], None] = print
) -> list[str]:
    """Try so many mutants; returns what went wrong, a line each."""
    chance, wrong, sound_ones, tried = random.Random(seed), [], 0, 0
    good = to_bytes(concept("bo", "<bo> is brown", "<bo>'s toy is a red ball"))
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        for number in range(count):
            data = mutate(good, chance)
            sound, problem = check(data)
            sound_ones += sound
            if sound and not problem and sound_ones % every == 0:
                tried += 1
                problem = check_commands(data, Path(place))
            if problem:
                wrong.append(f"mutant {number} of seed {seed}: {problem}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tell(
        f"mutants: tried {count}, refused {count - sound_ones}, sound {sound_ones} "
        f"({tried} of them through every command), lost 0, tracebacks {len(wrong)}, "
        f"{time.monotonic() - started:.0f} s, peak {peak:.0f} MiB"
    )
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=200_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=EVERY)
    words = parser.parse_args()
    wrong = attack(words.count, words.seed, every=words.every)
    print(*wrong[:20], sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
