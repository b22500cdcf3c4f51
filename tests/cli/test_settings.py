"""Where a command's settings come from: the option, then its variable, then the file."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

import runqueue
from runqueue import Queue


def variable_of(name: str, option: click.Option) -> str:
    """RUNQUEUE, the command's words after the program, and the option's long name."""
    words = [*name.split()[1:], max(option.opts, key=len).lstrip("-")]
    return "RUNQUEUE_" + "_".join(words).replace("-", "_").upper()


def test_every_option_has_a_variable_of_its_own_name(
    commands: dict[str, click.Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--tag of the runner is RUNQUEUE_TAG: whoever knows the option knows its variable."""
    deaf = []
    for name, command in commands.items():
        words = name.split()
        context = click.Context(command, info_name=words[-1])
        context.auto_envvar_prefix = "_".join(["RUNQUEUE", *words[1:]]).upper()
        for option in command.params:
            if not isinstance(option, click.Option) or option.is_eager or option.name == "db":
                continue
            variable = variable_of(name, option)
            monkeypatch.setenv(variable, "probe")
            if option.resolve_envvar_value(context) != "probe":
                deaf.append(f"{name} {option.opts[-1]}: {variable}")
            monkeypatch.delenv(variable)
    assert deaf == []


def test_the_database_comes_from_option_variable_and_file_in_this_order(
    rq: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is the answer only while those before it are silent."""
    urls = {}
    for name in ("option", "variable", "file"):
        urls[name] = f"sqlite:///{tmp_path / name}.db"
        with runqueue.connect(urls[name]) as queue:
            queue.enqueue("x", agent_name=name)
    settings = tmp_path / "runqueue.env"
    settings.write_text(f"# the daemon's\nexport RUNQUEUE_DB='{urls['file']}'\n")
    monkeypatch.setenv("RUNQUEUE_ENV_FILE", str(settings))

    def agent(*words: str, db: str | None = None) -> str:
        return str(json.loads(rq(*words, "-o", "json", db=db).out)[0]["agent_name"])

    assert agent("list") == "file"
    monkeypatch.setenv("RUNQUEUE_DB", urls["variable"])
    assert agent("list") == "variable"
    assert agent("list", db=urls["option"]) == "option"
    assert agent("list", "--db", urls["option"]) == "option"
    assert agent("list", "--db", urls["option"], db=urls["file"]) == "option"


def test_a_commands_options_come_from_its_variables(
    rq: Callable[..., Any], queue: Queue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """RUNQUEUE_ENQUEUE_PRIORITY and RUNQUEUE_LIST_OUTPUT, from the environment and the file."""
    settings = tmp_path / "runqueue.env"
    settings.write_text("RUNQUEUE_ENQUEUE_PRIORITY=3\nRUNQUEUE_LIST_OUTPUT=id\n")
    monkeypatch.setenv("RUNQUEUE_ENV_FILE", str(settings))
    assert queue.get(rq("enqueue", "x").out.strip()).priority == 3
    assert len(rq("list").lines[0].split()) == 1
    monkeypatch.setenv("RUNQUEUE_ENQUEUE_PRIORITY", "4")
    assert queue.get(rq("enqueue", "x").out.strip()).priority == 4
    assert queue.get(rq("enqueue", "x", "--priority", "5").out.strip()).priority == 5


def test_a_bad_value_in_a_variable_is_refused_by_name(
    rq: Callable[..., Any], queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the command line: exit code 2."""
    monkeypatch.setenv("RUNQUEUE_ENQUEUE_PRIORITY", "high")
    ended = rq("enqueue", "x")
    assert ended.code == 2
    assert "priority" in ended.err
    assert queue.find() == []


def test_the_daemon_takes_its_times_from_variables(
    spawn: Callable[..., subprocess.Popen[str]],
    queue: Queue,
    other: Any,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    """RUNQUEUE_LEASE is what it wants of runners, RUNQUEUE_INTERVAL how often it sweeps."""
    monkeypatch.setenv("RUNQUEUE_LEASE", "7.5")
    monkeypatch.setenv("RUNQUEUE_INTERVAL", "250s")
    process = spawn(module="runqueue.cli.daemon")
    until(lambda: other.execute("SELECT lease FROM daemons").fetchall() == [(7.5,)])
    process.terminate()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "every 250 s" in err


def test_the_daemons_options_win_over_variables(
    execute: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad variable is not even looked at when the option is given."""
    monkeypatch.setenv("RUNQUEUE_INTERVAL", "never")
    assert "interval" in execute(module="runqueue.cli.daemon").err
    ended = execute(*("--interval", "1", "--db", "nonsense"), module="runqueue.cli.daemon", db=None)
    assert ended.code == 78
    assert "nonsense" in ended.err


def test_the_runner_takes_its_settings_from_variables(
    spawn: Callable[..., subprocess.Popen[str]],
    queue: Queue,
    rq: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    """Id, tags, kind and slots, as systemd gives them."""
    monkeypatch.setenv("RUNQUEUE_RUNNER_ID", "alpha")
    monkeypatch.setenv("RUNQUEUE_TAG", "gpu big")
    monkeypatch.setenv("RUNQUEUE_EXECUTOR_TYPE", "shell")
    monkeypatch.setenv("RUNQUEUE_SLOTS", "2")
    monkeypatch.setenv("RUNQUEUE_DRAIN", "0")
    queue.enqueue_many([{"prompt": "x"}] * 3)
    process = spawn("--", "sleep", "60", module="runqueue.cli.runner")
    until(lambda: len(queue.find(status="running")) == 2)
    assert len(queue.find(status="pending")) == 1
    row = json.loads(rq("runners", "show", "alpha", "-o", "json").out)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert row["executor_type"] == "shell"
    assert row["tags"] == ["big", "gpu"]
