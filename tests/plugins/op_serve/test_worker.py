"""The worker's thread lets go of a model that nobody needs."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from live_server import until

from omnipersona_cli.errors import PersonaError
from op_serve.worker import Ticket, Worker


class Model:
    """Stands for gigabytes."""


@pytest.mark.parametrize("fails", [False, True])
def test_an_idle_model_is_let_go_whatever_became_of_the_work(fails: bool) -> None:
    opened: list[weakref.ref[Model]] = []

    def open_model() -> Any:
        model = Model()
        opened.append(weakref.ref(model))
        return model

    def work(backend: Any, ticket: Ticket[int]) -> int:
        if fails:
            raise PersonaError("no face in the photos")
        return 1

    worker = Worker(open_model, idle_seconds=0.05)
    worker.start()
    until(lambda: worker.state == "ready")
    kept = worker.submit("learning", work)  # as a job keeps it
    assert isinstance(kept.result.exception(10), PersonaError) == fails
    until(lambda: worker.state == "asleep")
    gc.collect()
    assert [model() for model in opened] == [None]
    worker.stop()


def test_a_failure_still_tells_where_it_was() -> None:
    def work(backend: Any, ticket: Ticket[int]) -> int:
        raise KeyError("x")

    worker = Worker(Model)  # type: ignore[arg-type]
    worker.start()
    until(lambda: worker.state == "ready")
    error = worker.submit("painting", work).result.exception(10)
    assert error is not None and error.__traceback__ is not None
    frame = error.__traceback__.tb_next
    assert frame is not None and frame.tb_frame.f_code.co_name == "work"
    worker.stop()
