"""Many clients at once: each gets its own answers, none is lost, and the server stays up.

The same storm as that of `benchmarks/serve_load.py`, which makes it last a minute.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from live_server import running, until

from omnipersona_cli.concepts.library import Library

CLIENTS, SECONDS = 24, 3.0


def test_each_of_many_clients_gets_its_own_answers(bo_pack: Path, tmp_path: Path) -> None:
    load = benchmark()
    library = Library(tmp_path / "data" / "concepts")
    library.add_file(bo_pack)
    load.spread(library)
    with running(tmp_path, most_waiting=CLIENTS // 2) as live:
        server = (live.url, live.token)
        alone = asyncio.run(load.painted_alone(server))
        storm = asyncio.run(load.storm(server, alone, clients=CLIENTS, seconds=SECONDS))
        until(lambda: not live.served.worker.running)
        assert live.served.worker.waiting == 0
    assert storm.wrong == [] and storm.lost == []
    assert set(storm.answers) == {"ask", "stream", "paint", "give up"}
    assert storm.sent_away, "the queue was never full"
    assert len(storm.health) > 3


def benchmark() -> ModuleType:
    """`benchmarks/serve_load.py`, which is no package's."""
    path = Path(__file__).parents[3] / "benchmarks" / "serve_load.py"
    spec = importlib.util.spec_from_file_location("serve_load", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
