"""What all commands share: options, and how they end.

A command parses, calls one verb and renders. Whatever ends it becomes one sentence on standard
error and the exit code of the contract, never a traceback for a user's mistake.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from runqueue._version import __version__
from runqueue.cli.render import printable
from runqueue.errors import RunqueueError
from runqueue.settings import load_credential, load_env_file
from runqueue.systemd.journal import is_journal

if TYPE_CHECKING:
    from runqueue.queue import Queue
    from runqueue.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?|\.\d+)\s*([smhdw]?)", re.ASCII)


LONGEST = 3_155_760_000.0
"""A hundred years: threads cannot wait for more than some three hundred."""


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, or a number with s, m, h, d or w."""

    name = "duration"

    def __init__(self, at_least: float = 0.0) -> None:
        self.at_least = at_least

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        value = str(value)
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            self.fail(f"{value!r} is not a duration such as 90, 1.5h or 30d", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2]]
        if seconds < self.at_least:
            self.fail(f"{value!r} is less than {self.at_least:g} seconds", param, ctx)
        if seconds > LONGEST:
            self.fail(f"{value!r} is more than a hundred years", param, ctx)
        return seconds


class Pairs(click.ParamType):  # type: ignore[type-arg]
    """KEY=VALUE."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, separator, rest = value.partition("=")
        if not separator or not key:
            self.fail(f"{value!r} is not KEY=VALUE", param, ctx)
        return key, rest


def gather(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return pairs as an object; a key that is given more than once becomes a list."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key not in found:
            found[key] = value
        elif isinstance(found[key], list):
            found[key].append(value)
        else:
            found[key] = [found[key], value]
    return found


def db_option(command: F) -> F:
    return click.option(
        "--db",
        metavar="URL",
        envvar="RUNQUEUE_DB",
        help="The database: sqlite:///PATH or postgresql://HOST/NAME. [env: RUNQUEUE_DB]",
        callback=_keep_db,
        expose_value=False,
    )(command)


def _keep_db(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    # May be given before or after the command's name; the later one wins.
    if value is not None and (
        ctx.get_parameter_source("db") is click.core.ParameterSource.COMMANDLINE
        or "db" not in ctx.meta
    ):
        ctx.meta["db"] = value


def open_queue(*, create: bool = False, settings: Settings | None = None, **options: Any) -> Queue:
    """Return the queue that the command line, the environment or the file names."""
    from runqueue.queue import connect

    ctx = click.get_current_context()
    queue = connect(ctx.meta.get("db"), create=create, settings=settings, **options)
    ctx.call_on_close(queue.close)
    return queue


def parse_again() -> click.Context:
    """Return this command's line as it reads now that its variables may have changed.

    Raises click.UsageError when one of them is not what it should be.
    """
    ctx = click.get_current_context()
    return ctx.command.make_context(ctx.info_name, list(ctx.obj))


def run(command: click.Command, argv: list[str] | None = None) -> int:
    """Execute a command line and return the exit code of the contract."""
    try:
        load_credential()
        load_env_file()
        code = command.main(
            args=argv,
            prog_name=command.name,
            standalone_mode=False,
            obj=tuple(sys.argv[1:] if argv is None else argv),
        )
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        if error.ctx is not None:
            click.echo(error.ctx.get_usage(), err=True)
        _say(f"Error: {error.format_message()}")
        return 2
    except click.ClickException as error:
        _say(f"Error: {error.format_message()}")
        return error.exit_code
    except RunqueueError as error:
        _say(f"Error: {error}")
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except OSError as error:
        # Standard output is closed or full; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # else the reader has only seen enough
            _say(f"Error: cannot write: {error.strerror or error}")
        return 1


def _say(text: str) -> None:
    # Of what comes over a stream the journal takes the priority from the beginning of a line.
    head = "<3>" if is_journal(sys.stderr) else ""
    click.echo(f"{head}{printable(text)}", err=True)


def for_each(ids: Iterable[str], act: Callable[[str], None]) -> int:
    """Act on each id, whatever became of the others; return the first failure's exit code."""
    code = 0
    for one in ids:
        try:
            act(one)
        except RunqueueError as error:
            _say(f"Error: {error}")
            code = code or error.exit_code
    return code


def name_variables(command: click.Command, prefix: str = "RUNQUEUE") -> None:
    """Give every option the variable of its own name: RUNQUEUE_ENQUEUE_AGENT for --agent."""
    for option in command.params:
        if isinstance(option, click.Option) and option.envvar is None and not option.is_eager:
            longest = max(option.opts, key=len)
            option.envvar = f"{prefix}_{longest.strip('-').replace('-', '_').upper()}"
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            name_variables(child, f"{prefix}_{name.upper()}")


def version_option(command: F) -> F:
    return click.version_option(__version__, "-V", "--version", prog_name="runqueue")(command)


def interrupt(*_: object) -> None:
    """As a handler of a signal: end as Ctrl-C would."""
    raise KeyboardInterrupt
