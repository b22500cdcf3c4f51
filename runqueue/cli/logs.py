"""What the processes say of themselves: one line an event, nothing raw, no prompts.

Lines for people on a terminal or in a file, the journal's own protocol where standard error is
the journal, JSON for collectors. Each line knows which run, session and runner it is about.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from runqueue.about import fields
from runqueue.cli.render import printable, to_json
from runqueue.systemd.journal import is_journal

F = TypeVar("F", bound=Callable[..., Any])

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("auto", "text", "json", "journal")
PRIORITIES: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
"""From which level on a line has which of syslog's priorities; below, it is 7."""


def log_options(command: F) -> F:
    level = click.option(
        "--log-level", type=click.Choice(LEVELS), default="info", show_default=True
    )
    form = click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="auto",
        show_default=True,
        help="auto: the journal with its fields if that is standard error, else lines of text.",
    )
    return level(form(command))


class Lines(logging.Formatter):
    """Time, level, logger and message, with what does not print made visible."""

    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self, head: str = "%(asctime)s %(levelname)s %(name)s: ") -> None:
        self.converter = time.gmtime
        super().__init__(f"{head}%(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        return printable(super().formatException(ei), lines=True)  # type: ignore[arg-type]


class Journal(logging.Handler):
    """The journal's own protocol: the fields RUN_ID, SESSION_ID and RUNNER_ID can be searched."""

    def __init__(self, identifier: str) -> None:
        from logging_journald import JournaldTransport

        super().__init__()
        self.setFormatter(Lines(""))
        self._identifier = identifier
        # By its address with each line: the journal has a new socket when it was started anew.
        self._transport = JournaldTransport(connected=False)

    def close(self) -> None:
        self._transport.socket.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record)
        try:
            self._transport.send(
                [
                    ("MESSAGE", line),
                    ("PRIORITY", _priority(record.levelno)),
                    ("SYSLOG_IDENTIFIER", self._identifier),
                    ("LOGGER", record.name),
                    *((name.upper(), printable(value)) for name, value in fields().items()),
                ]
            )
        except OSError:  # the journal is away: its stream, if nothing else, is kept by systemd
            sys.stderr.write(f"<{_priority(record.levelno)}>{line}\n")


def _priority(level: int) -> int:
    return next((priority for least, priority in PRIORITIES if level >= least), 7)


def configure(level: str, form: str = "auto", identifier: str = "runqueue") -> None:
    """Log from this level on in this form; may be called again."""
    logging.basicConfig(level=level.upper(), handlers=[_handler(form, identifier)], force=True)
    # Peewee logs every statement with its parameters, prompts too.
    logging.getLogger("peewee").setLevel(logging.INFO)
    # It warns of each tick that is skipped while one waits for the database; the tick tells.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)


def _handler(form: str, identifier: str) -> logging.Handler:
    if form == "journal" or (form == "auto" and is_journal(sys.stderr)):
        return Journal(identifier)
    handler = logging.StreamHandler()
    handler.setFormatter(_json() if form == "json" else Lines())
    return handler


def _json() -> logging.Formatter:
    from pythonjsonlogger.json import JsonFormatter

    class Json(JsonFormatter):
        default_msec_format = Lines.default_msec_format
        default_time_format = Lines.default_time_format
        converter = staticmethod(time.gmtime)

        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return {**log_data, **fields()}

    return Json(
        ["asctime", "levelname", "name", "message"],
        rename_fields={
            "asctime": "time",
            "levelname": "level",
            "name": "logger",
            "exc_info": "exception",
        },
        json_serializer=lambda data, **_: to_json(data),
    )
