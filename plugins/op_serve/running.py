"""Run a server until somebody stops it."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import quote

from omnipersona_cli.backend import Backend
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.errors import ResourceError, UsageError
from op_serve import work
from op_serve.work import Shown
from op_serve.worker import MOST_WAITING, Worker

if TYPE_CHECKING:
    from uvicorn import Server

    from omnipersona_cli.engine import Opening
    from omnipersona_cli.engine.picture import Metadata
    from op_serve.guard import Door
    from op_serve.served import Served

log = logging.getLogger("op_serve")

GRACE_SECONDS = 5
"""How long a client may take to read the end of its answer when the server stops."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """What `op serve` was told. ``token`` None draws a new one, "" lets every program in."""

    opening: Opening
    host: str = "127.0.0.1"
    port: int = 8765
    token: str | None = None
    only: frozenset[str] | None = None
    most_waiting: int = MOST_WAITING
    idle_seconds: float | None = None
    metadata: Metadata = "full"
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()


def serve(serving: Serving, *, say: Callable[[str], None], answer: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. The address goes to ``answer``, all else to ``say``.

    Raises UsageError for a server that would be open to others without a token, ResourceError for
    an address that cannot be listened on and for a limit of memory that the model cannot keep,
    MissingError for an unknown backend or concept.
    """
    served = served_for(serving)
    if serving.opening.memory:  # a limit that nothing keeps to is told before anybody asks
        work.room_for(served.opening, teaches=serving.only is None)
    with listening(serving.host, serving.port) as sock:
        door = door_for(serving, sock.getsockname()[1])
        name = f"[{serving.host}]" if ":" in serving.host else serving.host
        address = f"http://{name}:{door.port}/"
        answer(address + (f"?token={quote(door.token)}" if door.token else ""))
        say(f"{served.info.name} is being loaded; the page is open already. Ctrl-C stops it")
        say(f"programs: {address}v1" + (f", key {door.token}" if door.token else ""))
        try:
            server_for(served, door).run(sockets=[sock])
        except KeyboardInterrupt:
            say("stopped")


def served_for(serving: Serving) -> Served:
    """The parts of a server, nothing started yet."""
    from omnipersona_cli.concepts.container import sweep_temporaries
    from omnipersona_cli.concepts.pack import SUFFIX
    from omnipersona_cli.concepts.upkeep import JOBS
    from omnipersona_cli.config import cache_folder
    from op_serve.jobs import Jobs
    from op_serve.served import Served

    info = work.info_of(serving.opening.backend)
    opening = replace(serving.opening, backend=info.name)
    library = Library()
    for name in sorted(serving.only or ()):
        library.path(name)
    shown = Shown(library=library, only=serving.only)

    def open_backend() -> Backend:
        """The model, with room for all that may be asked of it; what is not usual is logged, and
        what killed servers left of ended runs and packs is removed."""
        from omnipersona_cli.engine.checkpoint import sweep_done

        sweep_done()
        sweep_temporaries(library.folder, lambda name: name.endswith(SUFFIX))
        room = work.room_for(opening, teaches=serving.only is None)
        for note in room.notes:
            log.warning("%s", note)
        jobs.room = room
        return work.open_backend(room.opening)

    worker = Worker(
        open_backend,
        most_waiting=serving.most_waiting,
        idle_seconds=serving.idle_seconds,
    )
    jobs = Jobs(cache_folder() / JOBS, worker=worker, shown=shown, opening=opening)
    return Served(
        worker=worker,
        shown=shown,
        opening=opening,
        info=info,
        jobs=jobs,
        metadata=serving.metadata,
    )


def door_for(serving: Serving, port: int) -> Door:
    """Who gets in. Raises UsageError for an address that others can reach, without a token."""
    from op_serve.guard import LOOPBACK, Door

    own = {f"[{serving.host}]" if ":" in serving.host else serving.host.lower()}
    if serving.token == "" and not own <= LOOPBACK:
        raise UsageError(
            f"everybody who reaches {serving.host} could use this server",
            hint="leave out --no-token, or --host",
        )
    return Door(
        token=secrets.token_urlsafe(24) if serving.token is None else serving.token,
        port=port,
        hosts=LOOPBACK | own | {host.lower() for host in serving.hosts},
        origins=frozenset(origin.rstrip("/") for origin in serving.origins),
    )


def server_for(served: Served, door: Door) -> Server:
    """A uvicorn server. When it is to stop, work ends first, so that streams end with a word."""
    import uvicorn

    from op_serve.app import make_app

    class StoppingServer(uvicorn.Server):
        """Ends the work before it waits for the streams that wait for it."""

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            served.worker.end()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        make_app(served, door),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=30,
    )
    return StoppingServer(config)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises ResourceError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is named; else the
    # body of an answer waits 40 ms for the client to acknowledge its head
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise ResourceError(
            f"{host}:{port} cannot be listened on: {error.strerror or error}",
            hint="take another one: op serve --port 0",
        ) from error
    return sock


def serve_agent(opening: Opening, *, roots: Sequence[Path], only: frozenset[str] | None) -> None:
    """Serve one agent on stdin and stdout until it closes them."""
    from op_serve.agents import over_stdio

    served = served_for(Serving(opening=opening, only=only))
    if opening.memory:
        work.room_for(served.opening, teaches=only is None)
    served.worker.start()
    try:
        over_stdio(served, roots)
    finally:
        served.worker.stop()
        served.jobs.close()
