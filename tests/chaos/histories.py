"""What the history of a run may be."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from runqueue.states import MOVES

_NEXT = {(source.value, move.target.value) for move in MOVES.values() for source in move.sources}


def is_legal(history: Sequence[str]) -> bool:
    """Whether these statuses can be entered one after the other, by one move each."""
    return list(history[:1]) == ["pending"] and set(itertools.pairwise(history)) <= _NEXT
