"""Ids have one shape, and a caller's own run id must have it too."""

from __future__ import annotations

import re

import pytest

from runqueue import ids
from runqueue.errors import InvalidRun


@pytest.mark.parametrize(("make", "prefix"), [(ids.new_run_id, "run"), (ids.new_session_id, "ses")])
def test_new_ids_have_their_prefix_and_12_hexadecimal_digits(make, prefix):
    """As design.md says; other people's SQL looks for it."""
    assert re.fullmatch(prefix + r"_[0-9a-f]{12}", make())


def test_a_thousand_new_ids_are_a_thousand():
    """They come from the system's randomness, not from a counter or the time."""
    assert len({ids.new_run_id() for _ in range(1000)}) == 1000


def test_new_run_ids_are_accepted_as_chosen_ones():
    """A caller may make an id first and enqueue with it."""
    run_id = ids.new_run_id()
    assert ids.check_run_id(run_id) == run_id


@pytest.mark.parametrize(
    "value",
    [
        "",
        "run_",
        "run_0123456789a",
        "run_0123456789abc",
        "run_0123456789AB",
        "run_0123456789ab\n",
        " run_0123456789ab",
        "ses_0123456789ab",
        "run_0123456789aé",
        "run_٠١٢٣٤٥٦٧٨٩ab",
        b"run_0123456789ab",
        12,
        None,
    ],
)
def test_anything_else_is_refused_with_a_sentence(value):
    """The message says what a run id looks like."""
    with pytest.raises(InvalidRun, match="run_ and 12 hexadecimal digits"):
        ids.check_run_id(value)


def test_the_message_about_a_giant_stays_short_and_one_line():
    """What a caller gives never floods a terminal or a log."""
    with pytest.raises(InvalidRun) as refusal:
        ids.check_run_id("x\n" * 100_000)
    assert len(str(refusal.value)) < 200
    assert "\n" not in str(refusal.value)
