"""How much is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Sizes:
    """The sizes of every subject, for one length of the whole."""

    rounds: int
    """Of everything that is measured in turns."""
    operations: int
    """One at a time, in each round."""
    batches: int
    """Of a hundred each, in each round."""
    finished: tuple[int, ...]
    pending: tuple[int, ...]
    texts: tuple[int, ...]
    claims: int
    """Of each cell of the growth."""
    pickups: int
    waiting: tuple[int, ...]
    """How many runners wait for work."""
    idle: float
    """Seconds for which idle processes are watched."""
    runners: tuple[int, ...]
    """How many contend."""
    contention: float
    """Seconds for which they do."""
    jobs: int
    """For each peer, in each round."""
    peer_rounds: int
    executed: int
    """Runs after which the footprint is looked at again."""
    startups: int


FULL: Final = Sizes(
    rounds=50,
    operations=50,
    batches=2,
    finished=(0, 100_000, 1_000_000),
    pending=(10, 10_000, 100_000),
    texts=(1, 50, 2_000),
    claims=300,
    pickups=300,
    waiting=(1, 8),
    idle=15.0,
    runners=(1, 2, 4, 8),
    contention=5.0,
    jobs=2_000,
    peer_rounds=3,
    executed=100_000,
    startups=9,
)
QUICK: Final = Sizes(
    rounds=10,
    operations=30,
    batches=1,
    finished=(0, 20_000),
    pending=(10, 2_000),
    texts=(1, 50, 1_000),
    claims=60,
    pickups=60,
    waiting=(1, 8),
    idle=3.0,
    runners=(1, 4),
    contention=1.5,
    jobs=400,
    peer_rounds=1,
    executed=2_000,
    startups=3,
)
TINY: Final = Sizes(
    rounds=2,
    operations=3,
    batches=1,
    finished=(40,),
    pending=(10, 40),
    texts=(1, 4),
    claims=4,
    pickups=3,
    waiting=(1,),
    idle=0.1,
    runners=(2,),
    contention=0.1,
    jobs=6,
    peer_rounds=1,
    executed=20,
    startups=1,
)
BY_NAME: Final = {"full": FULL, "quick": QUICK, "tiny": TINY}
