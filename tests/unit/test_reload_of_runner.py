"""What a runner is started with again when its settings have changed."""

from __future__ import annotations

import pytest

from runqueue.cli.runner import COMMAND, _arguments

GIVEN = ["python", "runqueue-runner", "--slots", "2", "--", "old-agent", "--print"]


def test_a_changed_command_takes_the_place_of_the_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The manager expands it when it starts the service, and not when that begins anew."""
    monkeypatch.setenv(COMMAND, "new-agent 'in two words'")
    wanted = [*GIVEN[:5], "new-agent", "in two words"]
    assert _arguments(GIVEN, ["RUNQUEUE_SLOTS", COMMAND]) == wanted


@pytest.mark.parametrize("command", [None, "new-agent"])
def test_a_command_that_did_not_change_or_is_gone_stays(
    monkeypatch: pytest.MonkeyPatch, command: str | None
) -> None:
    """A runner without a command is of no use."""
    if command is None:
        monkeypatch.delenv(COMMAND, raising=False)
    else:
        monkeypatch.setenv(COMMAND, command)
    assert _arguments(GIVEN, [COMMAND] if command is None else ["RUNQUEUE_SLOTS"]) == GIVEN


def test_a_command_whose_quotes_do_not_match_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner begins anew as it was, and says so."""
    monkeypatch.setenv(COMMAND, "agent 'x")
    with pytest.raises(ValueError, match="quot"):
        _arguments(GIVEN, [COMMAND])
