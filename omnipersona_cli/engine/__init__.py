"""The method, as a Python API: learn, gen, edit, ask.

::

    from pathlib import Path

    from omnipersona_cli import engine

    bo = engine.Subject(photos=[Path("photos")], name="bo", facts=["<bo>'s toy is a red ball"])
    learned = engine.learn(bo, engine.Settings(seed=1))
    print(learned.path, learned.report.card.grade)
    picture = engine.gen("<bo> with its toy, at the beach", seed=1)[0]
    picture.image.save("bo.png")
    engine.ask("is <bo> here?", image=picture.image).text

Functions take values and return values; progress leaves through callbacks, nothing is printed.
Errors that a person can act on are `omnipersona_cli.errors.PersonaError`.
"""

from omnipersona_cli.data.about import read_about
from omnipersona_cli.engine.ask import Answer, ask
from omnipersona_cli.engine.calibrate import Calibration
from omnipersona_cli.engine.edit import edit
from omnipersona_cli.engine.gen import gen
from omnipersona_cli.engine.keep import Keeping
from omnipersona_cli.engine.learn import Plan, learn, plan
from omnipersona_cli.engine.material import Subject
from omnipersona_cli.engine.picture import Picture, save_png
from omnipersona_cli.engine.progress import Looking
from omnipersona_cli.engine.replay import Trace, TraceStep, replay
from omnipersona_cli.engine.report import Learned, Report
from omnipersona_cli.engine.request import Opening, check_images, opened_for
from omnipersona_cli.engine.settings import Settings

__all__ = [
    "Answer",
    "Calibration",
    "Keeping",
    "Learned",
    "Looking",
    "Opening",
    "Picture",
    "Plan",
    "Report",
    "Settings",
    "Subject",
    "Trace",
    "TraceStep",
    "ask",
    "check_images",
    "edit",
    "gen",
    "learn",
    "opened_for",
    "plan",
    "read_about",
    "replay",
    "save_png",
]
