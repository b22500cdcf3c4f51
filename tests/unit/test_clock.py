"""Times are text whose order is the order of time."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runqueue import clock

UTC = timezone.utc

examples = settings(derandomize=True, deadline=None, max_examples=50)

MOMENTS = st.datetimes(
    min_value=datetime(2, 1, 1),
    max_value=datetime(9998, 12, 31),
    timezones=st.builds(
        timezone, st.integers(-1439, 1439).map(lambda minutes: timedelta(minutes=minutes))
    ),
)


@examples
@given(MOMENTS)
def test_every_time_is_27_characters_of_utc_and_comes_back_equal(moment):
    """Whatever its zone, a stored time names the same moment."""
    text = clock.to_text(moment)
    assert len(text) == 27
    assert text[10] == "T"
    assert text[19] == "."
    assert text.endswith("Z")
    assert clock.from_text(text) == moment
    assert clock.from_text(text).tzinfo is UTC


@examples
@given(MOMENTS, MOMENTS)
def test_order_of_text_is_order_of_time(one, other):
    """Every index and comparison in SQL rests on this."""
    assert (clock.to_text(one) < clock.to_text(other)) == (one < other)


def test_early_years_are_padded():
    """A year before 1000 would otherwise sort after all others."""
    assert clock.to_text(datetime(7, 1, 2, tzinfo=UTC)) == "0007-01-02T00:00:00.000000Z"


def test_datetime_without_a_zone_is_refused():
    """What it means depends on the host."""
    with pytest.raises(ValueError, match="time zone"):
        clock.to_text(datetime(2025, 1, 1))


@pytest.mark.parametrize(
    ("text", "microsecond"),
    [
        ("2025-01-01T00:00:00Z", 0),
        ("2025-01-01T00:00:00+00:00", 0),
        ("2025-01-01T00:00:00.5Z", 500_000),
        ("2025-01-01T00:00:00.000001Z", 1),
        ("2025-01-01T00:00:00.123+00:00", 123_000),
        ("2025-01-01T00:00:00.123456+00:00", 123_456),
    ],
)
def test_times_written_by_others_are_read(text, microsecond):
    """Fewer decimals, and `+00:00` for `Z`, mean the same."""
    assert clock.from_text(text) == datetime(2025, 1, 1, microsecond=microsecond, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-01-01",
        "2025-01-01 00:00:00Z",
        "2025-01-01T00:00:00",
        "2025-01-01T00:00:00+01:00",
        "2025-01-01T00:00:00-00:00",
        "2025-01-01T00:00:00.Z",
        "2025-01-01T00:00:00.1234567Z",
        "2025-01-01T00:00:00Z\n",
        " 2025-01-01T00:00:00Z",
        "2025-13-01T00:00:00Z",
        "2025-02-30T00:00:00Z",
        "2025-01-01T24:00:00Z",
        "2025-01-01T00:00:60Z",
        "0000-01-01T00:00:00Z",
        "٢٠٢٥-01-01T00:00:00Z",
    ],
)
def test_any_other_shape_is_refused(text):
    """What would sort wrongly, or is no time at all, is not guessed at."""
    with pytest.raises(ValueError, match=r"."):
        clock.from_text(text)


@examples
@given(MOMENTS, st.integers(-(10**9), 10**9))
def test_shift_is_the_inverse_of_seconds_between(moment, seconds):
    """A time shifted by some seconds is that many seconds away."""
    text = clock.to_text(moment)
    shifted = clock.shift(text, seconds)
    if shifted not in (clock.FOREVER, "0001-01-01T00:00:00.000000Z"):
        assert clock.seconds_between(text, shifted) == seconds


def test_shift_takes_times_written_by_others_and_returns_ours():
    """The result is always the 27 characters."""
    assert clock.shift("2025-01-01T00:00:00+00:00", 0.25) == "2025-01-01T00:00:00.250000Z"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (1e300, clock.FOREVER),
        (float("inf"), clock.FOREVER),
        (10**12, clock.FOREVER),
        (-1e300, "0001-01-01T00:00:00.000000Z"),
        (-(10**12), "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_shift_stays_inside_what_the_format_can_express(seconds, expected):
    """A timeout of centuries is for ever, not an error."""
    assert clock.shift("2025-01-01T00:00:00.000000Z", seconds) == expected


def test_forever_is_a_time_after_all_others():
    """It can be stored, compared and read like any other."""
    assert clock.to_text(clock.from_text(clock.FOREVER)) == clock.FOREVER
    assert clock.from_text(clock.FOREVER) == datetime.max.replace(tzinfo=UTC)


@pytest.mark.parametrize("value", [0, 0.0, 1, 2.5, 10**12])
def test_numbers_of_seconds_are_durations(value):
    """Nothing, a part and very many seconds."""
    assert clock.is_duration(value)


@pytest.mark.parametrize(
    "value", [-1, -0.1, float("nan"), float("inf"), float("-inf"), True, False, "1", None, [1]]
)
def test_anything_else_is_no_duration(value):
    """Neither what is not finite, nor what Python merely converts."""
    assert not clock.is_duration(value)


def test_a_whole_number_too_large_for_a_float_is_an_answer_and_not_an_error():
    """A caller's absurd timeout must end in InvalidRun or a run, not in OverflowError."""
    assert isinstance(clock.is_duration(10**400), bool)


def test_system_clock_is_aware_and_does_not_stand_still_in_another_zone():
    """It is the host's time in UTC."""
    assert abs(clock.system_clock() - datetime.now(UTC)) < timedelta(minutes=1)
    assert clock.system_clock().utcoffset() == timedelta(0)
