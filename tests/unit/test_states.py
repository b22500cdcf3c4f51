"""The life of a run is the table of design.md, and the diagram of the documentation shows it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runqueue.states import ACTIVE, MOVES, TERMINAL, Status, diagram

ROOT = Path(__file__).resolve().parents[2]

# move: (from, to, whether only its owner may make it, the column of its time)
TABLE = {
    "claim": ("pending", "claimed", False, "claimed_at"),
    "start": ("claimed", "running", True, "started_at"),
    "complete": ("running stopping", "completed", True, "completed_at"),
    "fail": ("claimed running stopping", "failed", True, "completed_at"),
    "confirm": ("stopping", "stopped", True, "completed_at"),
    "release": ("claimed", "pending", False, None),
    "stop": ("claimed running", "stopping", False, None),
    "cancel": ("pending", "stopped", False, "completed_at"),
    "expire": ("pending", "failed", False, "completed_at"),
    "settle": ("stopping", "stopped", False, "completed_at"),
    "lose": ("running", "failed", False, "completed_at"),
}


def test_moves_are_exactly_the_table_of_the_design():
    """No move more, none less, and each from and to where the contract says."""
    found = {
        name: (
            " ".join(status.value for status in Status if status in move.sources),
            move.target.value,
            move.owned,
            move.stamp,
        )
        for name, move in MOVES.items()
    }
    assert found == TABLE


def test_statuses_are_spelled_as_they_are_stored():
    """SQL written by other people compares with these seven words."""
    assert [str(status) for status in Status] == (
        ["pending", "claimed", "running", "stopping", "completed", "failed", "stopped"]
    )


def test_active_and_terminal_statuses_and_pending_are_all_there_are():
    """Every status is in exactly one of the three groups."""
    groups = [{Status.PENDING}, ACTIVE, TERMINAL]
    assert sorted(status for group in groups for status in group) == sorted(Status)
    assert {status.value for status in ACTIVE} == {"claimed", "running", "stopping"}
    assert {status.value for status in TERMINAL} == {"completed", "failed", "stopped"}


@pytest.mark.parametrize("name", MOVES)
def test_no_move_leaves_a_terminal_status(name):
    """Terminal is final."""
    assert not MOVES[name].sources & TERMINAL


@pytest.mark.parametrize("name", MOVES)
def test_every_move_into_a_terminal_status_and_no_other_stamps_completed_at(name):
    """A run has completed_at exactly when it has ended."""
    move = MOVES[name]
    assert (move.stamp == "completed_at") == (move.target in TERMINAL)


def test_every_status_can_be_reached_from_pending():
    """A status that no sequence of moves leads to would be dead text."""
    reached = {Status.PENDING}
    while True:
        further = {move.target for move in MOVES.values() if move.sources & reached} | reached
        if further == reached:
            break
        reached = further
    assert reached == set(Status)


def test_every_status_that_is_not_terminal_has_a_way_out_by_the_daemon_or_anybody():
    """No status depends on a runner alone to be left: the runner may be dead."""
    for status in set(Status) - TERMINAL:
        ways = [move.by for move in MOVES.values() if status in move.sources]
        assert any("daemon" in by or "anyone" in by for by in ways), status


def test_diagram_shows_every_move_once_and_nothing_else():
    """The picture is made of the data."""
    edges = re.findall(r"^    (\w+) --> (\w+): (\w+)$", diagram(), re.MULTILINE)
    wanted = [
        (source, target, name)
        for name, (sources, target, _, _) in TABLE.items()
        for source in sources.split()
    ]
    assert sorted(edges) == sorted(wanted)


def test_diagram_begins_at_pending_and_ends_at_every_terminal_status():
    """Mermaid's `[*]` marks the entry and the three exits."""
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    assert "    [*] --> pending: enqueue" in lines
    exits = {line.split()[0] for line in lines if line.endswith("--> [*]")}
    assert exits == {status.value for status in TERMINAL}


def test_documentation_holds_exactly_the_diagram_of_the_code():
    """docs/states.md is written by hand, but its picture is not."""
    text = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```mermaid\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks == [diagram()]
