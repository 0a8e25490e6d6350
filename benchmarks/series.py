"""What benchmarks over a series of characters share: folders, results that are kept, intervals."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, as_completed
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import numpy as np

NAME = "bo"
RESAMPLES = 10_000


def draw_folder(folder: Path, seed: int) -> None:
    """Exactly what `op toy photos FOLDER --seed N` draws."""
    from op_toy.photos import command

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        command(["photos", str(folder), "--seed", str(seed)], standalone_mode=False)


def measured_with(judge_file: Path | None = None) -> dict[str, str]:
    """The weights of nano, and of the judge where there is one: results of others are others."""
    from omnipersona_cli import registry
    from omnipersona_cli.backend import Opening

    backend = registry.open_backend(Opening(backend="nano")).fingerprint
    if judge_file is None:
        return {"backend": backend}
    if not judge_file.is_file():
        raise click.ClickException(f"there is no judge in {judge_file}: name one with --judge FILE")
    return {"backend": backend, "judge": sha256(judge_file.read_bytes()).hexdigest()[:16]}


def finished(out: Path | None, setting: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Characters that are in ``out`` already; a line that was cut off is dropped from it."""
    if out is None or not out.exists():
        return {}
    lines, found = [], {}
    for line in out.read_text(encoding="utf-8").splitlines():
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        if result["setting"] != setting:
            raise click.ClickException(
                f"{out} holds characters of other weights or steps: name another file"
            )
        lines.append(line)
        found[int(result["seed"])] = result
    kept = out.with_name(out.name + ".part")
    kept.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    kept.replace(out)
    return found


def _as_done(pool: Executor, run: Any, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Results as they come; after a failure nothing new is begun."""
    futures = [pool.submit(run, seed) for seed in seeds]
    try:
        for future in as_completed(futures):
            yield future.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def kept(
    pool: Executor, run: Any, seeds: Sequence[int], *, setting: dict[str, Any], out: Path | None
) -> list[dict[str, Any]]:
    """The results of ``seeds`` in their order: those that ``out`` has, and the others as ``run``
    measures them, each added to ``out`` when it comes."""
    results = finished(out, setting)
    for measured in _as_done(pool, run, [seed for seed in seeds if seed not in results]):
        result = measured | {"setting": setting}
        results[result["seed"]] = result
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result) + "\n")
        click.echo(f"{result['seed']} in {result['seconds']:.0f} s", err=True)
    return [results[seed] for seed in seeds]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(np.asarray(values)[picks].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)
