"""What the commands say about themselves."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest

from runqueue import __version__

PROGRAMS = {
    "runqueue": "runqueue",
    "runqueued": "runqueue.cli.daemon",
    "runqueue-runner": "runqueue.cli.runner",
}
CONTRACT = [
    *("enqueue", "list", "show", "wait", "why", "timeline", "stop", "release", "retry"),
    *("sessions list", "sessions show", "sessions delete"),
    *("runners list", "runners show", "runners drain", "runners remove"),
    *("status", "prune", "db init", "db upgrade", "db check", "db backup", "demo", "completion"),
    *("doctor", "top"),
    *("db move", "db grants", "systemd install", "systemd uninstall"),
]


def options_of(command: click.Command) -> list[click.Option]:
    return [param for param in command.params if isinstance(param, click.Option)]


@pytest.mark.parametrize("name", CONTRACT)
def test_every_command_of_the_contract_is_there(commands: dict[str, Any], name: str) -> None:
    """The names that scripts are written against exist."""
    assert f"runqueue {name}" in commands


def test_every_command_says_what_it_does(commands: dict[str, click.Command]) -> None:
    """Each has a first sentence, which ends in a full stop."""
    for name, command in commands.items():
        text = (command.help or "").strip().split("\n\n")[0].replace("\n", " ")
        assert re.fullmatch(r"[A-Z].*\w.*[.]", text), name


def test_every_option_says_what_it_is(commands: dict[str, click.Command]) -> None:
    """Each has a help text, or a metavar or a list of choices that says as much."""
    silent = [
        f"{name} {option.opts[-1]}"
        for name, command in commands.items()
        for option in options_of(command)
        if not (option.help or option.metavar or isinstance(option.type, click.Choice))
    ]
    assert silent == []


def test_the_help_of_every_command_can_be_asked_for(
    rq: Callable[..., Any], commands: dict[str, click.Command]
) -> None:
    """`--help` and `-h` print the usage on standard output and exit with 0."""
    for name in commands:
        if name.partition(" ")[0] != "runqueue":
            continue
        words = name.split()[1:]
        asked = rq(*words, "--help", db=None)
        assert (asked.code, asked.err) == (0, ""), name
        assert asked.out.startswith(f"Usage: {name} "), name
        assert rq(*words, "-h", db=None) == asked


@pytest.mark.parametrize("program", PROGRAMS)
def test_each_program_helps_and_tells_its_version(
    execute: Callable[..., Any], program: str
) -> None:
    """As processes: exit code 0, on standard output, with nothing on standard error."""
    helped = execute("--help", module=PROGRAMS[program], db=None)
    assert (helped.code, helped.err) == (0, "")
    assert helped.out.startswith(f"Usage: {program} [OPTIONS]")
    told = execute("--version", module=PROGRAMS[program], db=None)
    assert (told.code, told.err) == (0, "")
    assert __version__ in told.out


def test_help_does_not_load_what_is_slow_to_load() -> None:
    """`runqueue --help` imports neither peewee nor rich nor apscheduler, nor psutil."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "runqueue", "--help"],
        check=True,
        capture_output=True,
        text=True,
    )
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in ended.stderr.split("\n")
    }
    assert "click" in loaded
    assert not loaded & {"peewee", "playhouse", "rich", "apscheduler", "psutil"}


@pytest.mark.parametrize("words", [(), ("sessions",), ("runners",), ("db",)], ids=" ".join)
def test_a_group_without_a_command_shows_its_help_once(
    rq: Callable[..., Any], words: tuple[str, ...]
) -> None:
    """The help is not announced as an error, and the usage is there only once."""
    asked = rq(*words, db=None)
    assert asked.code == 2
    text = asked.out + asked.err
    assert "Error" not in text
    assert text.count("Usage:") == 1
    assert "Commands:" in text


@pytest.mark.parametrize(
    ("shell", "mark"), [("bash", "complete"), ("zsh", "#compdef"), ("fish", "complete")]
)
def test_completion_prints_the_script_of_a_shell(
    rq: Callable[..., Any], shell: str, mark: str
) -> None:
    """For bash, zsh and fish, on standard output alone."""
    printed = rq("completion", shell, db=None)
    assert (printed.code, printed.err) == (0, "")
    assert mark in printed.out
    assert "_RUNQUEUE_COMPLETE" in printed.out


def test_completion_completes_commands(
    execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the script asks for is answered with the commands that begin so."""
    monkeypatch.setenv("_RUNQUEUE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "runqueue re")
    monkeypatch.setenv("COMP_CWORD", "1")
    answered = execute(db=None)
    assert answered.lines == ["plain,release", "plain,retry"]


def test_completion_refuses_an_unknown_shell(rq: Callable[..., Any]) -> None:
    """The shells that are known are named."""
    refused = rq("completion", "tcsh", db=None)
    assert refused.code == 2
    assert "bash" in refused.err
