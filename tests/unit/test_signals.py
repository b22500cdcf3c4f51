"""Signals are acted upon from the moment on at which they no longer end the process."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import pytest

from runqueue import signals
from tests.helpers import LONG


def test_a_signal_that_comes_while_the_handlers_are_set_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A daemon that was told to end in that instant would go on for ever."""
    told = threading.Event()
    real = signal.signal

    def set_and_come(number: int, handler: Any) -> Any:
        before = real(number, handler)
        if handler is signals._ignore:
            os.kill(os.getpid(), number)
        return before

    monkeypatch.setattr(signal, "signal", set_and_come)
    with signals.on_signals({signal.SIGUSR1: told.set}):
        assert told.wait(LONG)
