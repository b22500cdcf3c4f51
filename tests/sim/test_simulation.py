"""Worlds in which everything fails in every order: after each transaction the promises hold.

A world is decided by its seed. The default is a few worlds, `--long` is hundreds, and `--seed N`
is that one, with all that happens in it shown.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runqueue
from tests.helpers import in_another_process
from tests.sim.defects import DEFECTS
from tests.sim.play import play, report
from tests.sim.world import World

pytestmark = pytest.mark.chaos

SHORT, MANY = 25, 500
PATIENCE = 150
"""Seeds among which one must show a planted defect."""

Play = Callable[[int], World]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with the schema, copied for each world."""
    path = tmp_path_factory.mktemp("sim") / "template.db"
    runqueue.connect(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def play_seed(template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Play:
    """Plays the world of a seed on a copy of the template."""
    caplog.set_level(logging.CRITICAL, "runqueue")
    compiled: dict[Any, Any] = {}

    def one(seed: int) -> World:
        path = tmp_path / "world.db"
        shutil.copy(template, path)
        return play(path, seed, compiled)

    return one


def test_the_promises_hold_whatever_fails(
    play_seed: Play, is_long: bool, seed: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Crashes, lost answers, hangs, two of everything: no transaction breaks an invariant."""
    seeds = range(MANY if is_long else SHORT) if seed is None else [seed]
    for number in seeds:
        world = play_seed(number)
        if seed is not None:
            with capsys.disabled():
                print(f"\nthe world of seed {seed}:", *world.trace, sep="\n")
        if world.found:
            pytest.fail(report(world, number), pytrace=False)


def test_a_seed_is_the_same_world_again(play_seed: Play, tmp_path: Path) -> None:
    """In this process, and in one that hashes texts differently: a failure can be replayed."""
    traces = [play_seed(number).trace for number in range(3)]
    assert [play_seed(number).trace for number in range(3)] == traces
    path = tmp_path / "another.db"
    assert in_another_process(f"sqlite:///{path}", PLAY, str(path), "2") == "\n".join(traces[2])


PLAY = """
import logging, pathlib
from tests.sim.play import play
queue.close()
logging.disable()
print("\\n".join(play(pathlib.Path(args[0]), int(args[1]), {}).trace), end="")
"""


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found(
    play_seed: Play, monkeypatch: pytest.MonkeyPatch, defect: str
) -> None:
    """The simulation can fail: each of these defects it finds among its first seeds."""
    plant, sentence = DEFECTS[defect]
    plant(monkeypatch)
    worlds = (play_seed(seed) for seed in range(PATIENCE))
    found = next((world.found for world in worlds if world.found), [])
    assert any(sentence in problem for problem in found), found
