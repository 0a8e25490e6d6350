"""A plugin of pytest for `make attacks`: one line with what came of the attacks.

One test is one attack, or one kind of them. One that gives a wrong result has lost something; one
that ends in another exception is a traceback.
"""

from __future__ import annotations

import resource
import time
from typing import Any

_STARTED = time.monotonic()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The line."""
    held, failed = (len(terminalreporter.stats.get(what, ())) for what in ("passed", "failed"))
    broken = terminalreporter.stats.get("error", ())
    reasons = [
        str(report.longrepr.reprcrash.message)
        for report in terminalreporter.stats.get("failed", ())
    ]
    lost = sum(reason.startswith(("assert", "AssertionError", "Failed")) for reason in reasons)
    peak = max(resource.getrusage(who).ru_maxrss for who in (0, resource.RUSAGE_CHILDREN)) / 1024
    terminalreporter.write_line(
        f"attacks: tried {held + failed + len(broken)}, refused or harmless {held}, lost {lost}, "
        f"tracebacks {failed - lost + len(broken)}, {time.monotonic() - _STARTED:.0f} s, "
        f"peak {peak:.0f} MiB"
    )
