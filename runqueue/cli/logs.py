"""What the processes say on standard error: one line an event, nothing raw, no prompts."""

from __future__ import annotations

import logging
import time

from runqueue.cli.render import printable


class Lines(logging.Formatter):
    """Time, level, logger and message, with what does not print made visible."""

    default_msec_format = "%s.%03dZ"
    default_time_format = "%Y-%m-%dT%H:%M:%S"

    def __init__(self) -> None:
        self.converter = time.gmtime
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))

    def formatException(self, ei: object) -> str:  # noqa: N802 - logging's name
        return printable(super().formatException(ei), lines=True)  # type: ignore[arg-type]


def configure(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Lines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Peewee logs every statement with its parameters, prompts too.
    logging.getLogger("peewee").setLevel(logging.INFO)
    # It warns of each tick that is skipped while one waits for the database; the tick tells.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
