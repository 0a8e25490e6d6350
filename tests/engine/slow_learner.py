"""`op` on the sketch backend in a process of its own: ``python slow_learner.py WORDS …``.

Its first step of learning makes the file ``learning`` in OMNIPERSONA_HOME and waits for ``go``.
With SLOW_LEARNER=cut the process dies as soon as the pack is in the library; with "encoding" or
"checking" it is that which makes the file and waits, a little for every lesson; with "starting"
the import of the engine.
"""

import os
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from omnipersona_cli import registry
from omnipersona_cli.backend import counted
from omnipersona_cli.cli import output
from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.testing import SketchBackend, SketchPlugin

home = Path(os.environ["OMNIPERSONA_HOME"])
optimise = import_module("omnipersona_cli.engine.optimise")
sketch = import_module("omnipersona_cli.testing.sketch")
draw, save_learned = optimise.draw, Library.save_learned
answer_losses = SketchBackend.answer_losses


def waiting(*words):
    (home / "learning").touch()
    while not (home / "go").exists():
        time.sleep(0.02)
    return draw(*words)


def slowly(items, on_step):
    for item in counted(items, on_step):
        (home / "learning").touch()
        if not (home / "go").exists():
            time.sleep(0.5)
        yield item


def slow_answers(backend, lessons, tokens):
    list(slowly(lessons, None))
    return answer_losses(backend, lessons, tokens)


@contextmanager
def slow_start():
    (home / "learning").touch()
    while not (home / "go").exists():
        time.sleep(0.02)
    yield


def cut(*words, **more):
    save_learned(*words, **more)
    os._exit(137)


if __name__ == "__main__":
    mode = os.environ.get("SLOW_LEARNER")
    if mode == "encoding":
        sketch.counted = slowly
    elif mode == "checking":
        SketchBackend.answer_losses = slow_answers
    elif mode == "starting":
        output.starting = slow_start
    else:
        optimise.draw = waiting
    if mode == "cut":
        Library.save_learned = cut
    registry.plugin_manager().register(SketchPlugin(), name="sketch-for-tests")
    cli(prog_name="op")
