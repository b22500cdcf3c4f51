"""Options of `enqueue` about attempts and trees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from runqueue.cli.base import Duration

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--retries",
        type=click.IntRange(0, 100),
        default=0,
        show_default=True,
        help="Execute it again so often, if it fails in a way that its runner says is retryable.",
    ),
    click.option("--retry-delay", type=Duration(), default=0.0, help="Time before each retry."),
    click.option("--retry-lost", is_flag=True, help="Also when its runner is lost, once."),
    click.option(
        "--max-depth",
        type=click.IntRange(0),
        help="Levels of children below its session; narrower than what is set or inherited.",
    ),
    click.option(
        "--max-children",
        type=click.IntRange(0),
        help="Live children of its session, and of each below it; likewise.",
    ),
    click.option(
        "--max-tree-runs",
        type=click.IntRange(1),
        help="Runs of its session and of all below it; likewise.",
    ),
)


def family_options(command: F) -> F:
    """Options of `enqueue`: retries, and the limits of the run's tree."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
