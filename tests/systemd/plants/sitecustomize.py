"""Faults in a service of the tests' machine, while a file there says so.

A service whose PYTHONPATH leads here loads this before anything else.
"""

import time
from pathlib import Path

from runqueue import schema, sweeper

PLANTS = Path("/run/plants")


def _planted(name):
    return (PLANTS / name).exists()


_upgrade, _sweep = schema.upgrade, sweeper.sweep


def upgrade(*arguments, **options):
    """A migration takes for as long as the file is there."""
    while _planted("slow-migration"):
        time.sleep(0.05)
    return _upgrade(*arguments, **options)


def sweep(*arguments, **options):
    """A sweep begins, and never ends."""
    while _planted("hung-sweep"):
        time.sleep(0.05)
    return _sweep(*arguments, **options)


schema.upgrade, sweeper.sweep = upgrade, sweep
