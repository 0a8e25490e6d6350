"""`op` on the sketch backend in a process of its own: ``python slow_learner.py WORDS …``.

Its first step of learning makes the file ``learning`` in OMNIPERSONA_HOME and waits for ``go``.
With SLOW_LEARNER=cut the process dies as soon as the pack is in the library.
"""

import os
import time
from importlib import import_module
from pathlib import Path

from omnipersona_cli import registry
from omnipersona_cli.cli.main import cli
from omnipersona_cli.concepts.library import Library
from omnipersona_cli.testing import SketchPlugin

home = Path(os.environ["OMNIPERSONA_HOME"])
optimise = import_module("omnipersona_cli.engine.optimise")
draw, save_learned = optimise.draw, Library.save_learned


def waiting(*words):
    (home / "learning").touch()
    while not (home / "go").exists():
        time.sleep(0.02)
    return draw(*words)


def cut(*words, **more):
    save_learned(*words, **more)
    os._exit(137)


if __name__ == "__main__":
    optimise.draw = waiting
    if os.environ.get("SLOW_LEARNER") == "cut":
        Library.save_learned = cut
    registry.plugin_manager().register(SketchPlugin(), name="sketch-for-tests")
    cli(prog_name="op")
