"""The URLs of PostgreSQL databases, in all of libpq's forms; none is shown with its password."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import peewee

from runqueue import errors

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict, make_conninfo
except ImportError:  # the extra `postgres` is not installed
    psycopg = None  # type: ignore[assignment]

_CONNECTION: Final = {
    # Whatever $PGCLIENTENCODING, the database or the role says.
    "client_encoding": "UTF8",
    "application_name": "runqueue",
    # A host that is cut off answers nothing: whoever waits for it must hear so in seconds, for
    # a lease may be running out meanwhile.
    "connect_timeout": 5,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


class Address(NamedTuple):
    """How to connect."""

    url: str
    """As it was given, in the form that libpq reads; may hold a password."""
    shown: str
    """Names the database and whoever connects, and nothing that is secret."""
    conninfo: str
    """With our defaults for what was not said."""
    defaults: dict[str, Any]


def read(url: str, busy_timeout: float) -> Address:
    """Return what a `postgresql://` URL says, in any of libpq's forms.

    Raises ConfigurationError when it cannot be read, or the driver is not there.
    """
    _need_driver()
    if url.startswith("postgres://"):
        url = f"postgresql://{url.removeprefix('postgres://')}"
    try:
        known = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        known = {"host": "@"}
    if "@" in str(known.get("host")) or not _are_ports(str(known.get("port") or "")):
        # No part of it is quoted, nor libpq's own words: it may be a part of the password.
        raise errors.ConfigurationError(
            "the database URL cannot be read as postgresql://USER:PASSWORD@HOST:PORT/DATABASE; "
            "in a password, what is no letter or digit must be percent-encoded"
        )
    defaults: dict[str, Any] = {
        key: value for key, value in _CONNECTION.items() if key not in known
    }
    if "connect_timeout" in defaults:
        defaults["connect_timeout"] = min(5, max(2, math.ceil(busy_timeout)))
    if "," in str(known.get("host", "")) and "target_session_attrs" not in known:
        defaults["target_session_attrs"] = "read-write"  # of several hosts, the primary
    return Address(url, _shown(known), make_conninfo(url, **defaults), defaults)


def of(database: peewee.PostgresqlDatabase) -> Address:
    """Return how the caller's own Peewee database connects."""
    _need_driver()
    # The driver has parameters of its own, which libpq does not know.
    known_to_libpq = {option.keyword.decode() for option in psycopg.pq.Conninfo.get_defaults()}
    given = {
        key: value
        for key, value in database.connect_params.items()
        if key in known_to_libpq and value is not None
    }
    name = str(database.database)
    is_url = name.startswith("postgresql://")
    conninfo = make_conninfo(name, **given) if is_url else make_conninfo("", dbname=name, **given)
    known = conninfo_to_dict(conninfo)
    return Address(_url_of(known), _shown(known), conninfo, {})


def _are_ports(text: str) -> bool:
    ports = [port for port in text.split(",") if port]
    return all(port.isdecimal() and 0 < int(port) < 65536 for port in ports)


def _need_driver() -> None:
    if psycopg is None:
        raise errors.ConfigurationError(
            "PostgreSQL needs its driver; install it with: pip install 'runqueue[postgres]'"
        )


def _shown(known: dict[str, Any]) -> str:
    """A URL that names the database and whoever connects, and nothing that is secret."""
    hosts = str(known.get("host") or known.get("hostaddr") or "").split(",")
    ports = str(known.get("port") or "").split(",")
    ports = ports if len(ports) == len(hosts) else ports[:1] * len(hosts)
    user = f"{quote(str(known['user']))}@" if known.get("user") else ""
    name = quote(str(known.get("dbname") or ""))
    if hosts[0].startswith("/"):
        port = f"&port={ports[0]}" if ports[0] else ""
        return f"postgresql://{user}/{name}?host={quote(hosts[0])}{port}"
    places = [f"{host}:{port}" if port else host for host, port in zip(hosts, ports, strict=True)]
    return f"postgresql://{user}{','.join(places)}/{name}"


def _url_of(known: dict[str, Any]) -> str:
    """The URL with all that is needed to connect."""
    options = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in known.items())
    return f"postgresql://?{options}"
