"""How many runs of each demand text a claim looks at."""

from __future__ import annotations

from typing import Any, cast

import pytest

from runqueue.claims import CHOICE, Matcher
from runqueue.database import Store
from runqueue.demands import Capabilities
from runqueue.statements import CLAIMS


class Waiting:
    """A store in which runs of so many texts wait."""

    def __init__(self, texts: int) -> None:
        self.engine = self
        self._texts = [(f'{{"tags":["t{number}"]}}',) for number in range(texts)]

    def run(self, *_: Any) -> list[tuple[str]]:
        return self._texts

    def as_list(self, texts: list[str]) -> list[str]:
        return texts


def depths(texts: int, limit: int) -> tuple[int, ...]:
    tags = frozenset(f"t{number}" for number in range(texts))
    matcher = Matcher(Capabilities("host", None, None, tags, {}))
    matcher.look(cast(Store, Waiting(texts)), 0.0)
    return matcher._depths(limit)


@pytest.mark.parametrize(("texts", "first"), [(1, 16), (3, 16), (4, 4), (15, 4), (16, 1), (900, 1)])
def test_a_claim_looks_no_deeper_than_it_takes_to_have_a_choice(texts: int, first: int) -> None:
    """Of many texts the first run each; of one, more than others are about to take."""
    assert first * texts >= CHOICE
    assert depths(texts, 1) == tuple(depth for depth in CLAIMS if depth >= first)


@pytest.mark.parametrize(("limit", "first"), [(4, 4), (5, 16), (17, 64), (500, 1024), (5000, 1024)])
def test_many_are_claimed_from_as_deep_as_many_are_wanted(limit: int, first: int) -> None:
    """All that are wanted may be of one text."""
    assert depths(20, limit)[0] == first
