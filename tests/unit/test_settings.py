"""Settings come from the environment, then from one file that systemd reads too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runqueue import settings
from runqueue.database import open_store
from runqueue.engines.base import without_password
from runqueue.errors import ConfigurationError


@pytest.fixture
def env_file(tmp_path):
    """Write the settings file and return the environment that names it."""

    def write(text: str | bytes) -> dict[str, str]:
        path = tmp_path / "runqueue.env"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return {"RUNQUEUE_ENV_FILE": str(path)}

    return write


def load(environ: dict[str, str]) -> dict[str, str]:
    """Load the file into a copy; return the names that it added."""
    after = dict(environ)
    settings.load_env_file(after)
    assert {name: after[name] for name in environ} == environ
    return {name: value for name, value in after.items() if name not in environ}


def test_defaults_are_those_of_the_design():
    """In seconds, as section 6 of design.md lists them."""
    assert settings.INTERVAL == 1
    assert settings.LEASE == 30
    assert settings.LEASE / settings.BEATS_PER_LEASE == 10
    assert settings.STOP_GRACE == 10
    assert settings.START_DEADLINE == 60
    assert settings.DEMANDS_TIMEOUT == 300
    assert settings.Settings() == settings.Settings(30, 10, 60, settings.MAX_PROMPT)


def test_the_environment_wins_over_the_file(env_file):
    """What an operator sets for one command is meant for that command."""
    environ = env_file("RUNQUEUE_DB=sqlite:////from/file\nRUNQUEUE_LEASE=5\n")
    assert load({**environ, "RUNQUEUE_DB": "sqlite:////from/environment"}) == {
        "RUNQUEUE_LEASE": "5"
    }


def test_comments_empty_lines_and_spaces_around_are_left_out(env_file):
    """As systemd reads the same file."""
    environ = env_file("# a comment\n; another\n\n   \n  RUNQUEUE_LEASE=5  \n#RUNQUEUE_DB=no\n")
    assert load(environ) == {"RUNQUEUE_LEASE": "5"}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("RUNQUEUE_X=plain", "plain"),
        ("RUNQUEUE_X=", ""),
        ('RUNQUEUE_X=""', ""),
        ('RUNQUEUE_X="two words"', "two words"),
        ("RUNQUEUE_X='two words'", "two words"),
        ("RUNQUEUE_X=' kept '", " kept "),
        ("RUNQUEUE_X='one sided", "'one sided"),
        ("RUNQUEUE_X='mixed\"", "'mixed\""),
        ("RUNQUEUE_X='", "'"),
        ("RUNQUEUE_X=a=b=c", "a=b=c"),
        ("RUNQUEUE_X=value # not a comment", "value # not a comment"),
        ("export RUNQUEUE_X=exported", "exported"),
        ("RUNQUEUE_X=é", "é"),
        ("RUNQUEUE_X=$HOME", "$HOME"),
    ],
)
def test_a_line_is_a_name_and_a_value_that_may_be_quoted(env_file, line, value):
    """Quotes around the whole value are taken off, nothing is expanded."""
    assert load(env_file(line)) == {"RUNQUEUE_X": value}


def test_lines_may_end_as_on_windows(env_file):
    """An invisible character must not become part of a path."""
    assert load(env_file("RUNQUEUE_X=a\r\nRUNQUEUE_Y='b'\r\n")) == {
        "RUNQUEUE_X": "a",
        "RUNQUEUE_Y": "b",
    }


def test_the_last_of_two_lines_with_one_name_counts_as_it_does_for_systemd(env_file):
    """Else the daemon, started by systemd, and the commands would use two databases."""
    assert load(env_file("RUNQUEUE_DB=first\nRUNQUEUE_DB=second\n")) == {"RUNQUEUE_DB": "second"}


def test_only_names_of_ours_are_taken_from_the_file(env_file):
    """The service's file may set PATH for the agents; a command must not change its own."""
    assert load(env_file("PATH=/evil\nLD_PRELOAD=/evil.so\nRUNQUEUE_X=1\nrunqueue_y=2\n")) == {
        "RUNQUEUE_X": "1"
    }


@pytest.mark.parametrize(
    "line", ["RUNQUEUE_DB", "RUNQUEUE_DB : x", "1X=1", "=x", "RUNQUEUE-DB=x", "[section]"]
)
def test_a_line_that_is_no_assignment_is_refused_by_its_number(env_file, line):
    """A typing error is not passed over in silence."""
    environ = env_file(f"RUNQUEUE_OK=1\n\n{line}\n")
    with pytest.raises(ConfigurationError, match=r"^line 3 of .*runqueue\.env is not KEY=VALUE$"):
        load(environ)


@pytest.mark.parametrize(
    "text",
    [
        "RUNQUEUE_DB postgresql://user:hunter2@host/db\n",
        "postgresql://user:hunter2@host/db\n",
        "RUNQUEUE_PASSWORD hunter2\n",
        b"RUNQUEUE_DB=postgresql://user:hunter2@host/db\xff\n",
    ],
)
def test_a_message_about_the_file_never_holds_its_password(env_file, text):
    """Messages reach logs and screens."""
    with pytest.raises(ConfigurationError) as refusal:
        load(env_file(text))
    assert "hunter2" not in str(refusal.value)
    assert refusal.value.__suppress_context__ or refusal.value.__context__ is None


def test_a_value_that_the_environment_cannot_hold_is_refused_with_a_sentence(env_file, monkeypatch):
    """A NUL in the file is a damaged file, not a traceback."""
    for name, value in env_file(b"RUNQUEUE_X=a\0b\n").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError):
        settings.load_env_file()


def test_the_process_environment_is_the_default(env_file, monkeypatch):
    """Without an argument it is os.environ that is filled."""
    for name, value in env_file("RUNQUEUE_FROM_TEST_FILE=1\n").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RUNQUEUE_FROM_TEST_FILE", "to be restored")
    monkeypatch.delenv("RUNQUEUE_FROM_TEST_FILE")
    settings.load_env_file()
    assert os.environ["RUNQUEUE_FROM_TEST_FILE"] == "1"


def test_a_named_file_must_exist(tmp_path):
    """Somebody who names a file means it."""
    with pytest.raises(ConfigurationError, match="does not exist"):
        load({"RUNQUEUE_ENV_FILE": str(tmp_path / "none.env")})


def test_the_default_file_need_not_exist(tmp_path, monkeypatch):
    """A machine without /etc/runqueue is usual."""
    monkeypatch.setattr(settings, "ENV_FILE", str(tmp_path / "none.env"))
    assert load({}) == {}


def test_the_default_file_is_read_when_it_is_there(tmp_path, monkeypatch):
    """An operator's command looks at the daemon's database without being told."""
    path = tmp_path / "default.env"
    path.write_text("RUNQUEUE_DB=sqlite:////srv/queue.db\n", encoding="utf-8")
    monkeypatch.setattr(settings, "ENV_FILE", str(path))
    assert load({}) == {"RUNQUEUE_DB": "sqlite:////srv/queue.db"}


def test_a_default_file_that_may_not_be_read_is_left_out_but_a_named_one_is_an_error(monkeypatch):
    """The service's file may be closed to this user, who has a database of their own."""

    def refuse(*arguments: object, **keywords: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert load({}) == {}
    with pytest.raises(ConfigurationError, match="may not be read"):
        load({"RUNQUEUE_ENV_FILE": "/etc/closed.env"})


def test_a_directory_or_a_binary_file_is_refused_with_its_reason(tmp_path, env_file):
    """One sentence that names the file."""
    with pytest.raises(ConfigurationError, match="cannot be read: Is a directory"):
        load({"RUNQUEUE_ENV_FILE": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="it is not UTF-8 text"):
        load(env_file(b"\xff\xfe\0\0"))


def test_default_url_is_the_environment_then_the_state_directory():
    """$RUNQUEUE_DB, $XDG_STATE_HOME, the home directory; an empty value is none."""
    assert settings.default_url({"RUNQUEUE_DB": "sqlite:////x.db"}) == "sqlite:////x.db"
    in_state = "sqlite:////state/runqueue/runqueue.db"
    assert settings.default_url({"XDG_STATE_HOME": "/state"}) == in_state
    assert settings.default_url({"XDG_STATE_HOME": "/state", "RUNQUEUE_DB": ""}) == in_state
    home = Path("~").expanduser()
    assert settings.default_url({}) == f"sqlite:///{home}/.local/state/runqueue/runqueue.db"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:hunter2@host/db?such=none",
        "postgres://user:hunter2@[host/db?sslmode=require",
        "postgresql://user:hunter2%zz@host/db",
        "mysql://user:hunter2@host/db",
        "user:hunter2@host/db",
        "sqlite://user:hunter2@host/db",
        "sqlite:////x.db?password=hunter2",
        "postgresql:/user:hunter2@host/db",
        "host=db user=me password=hunter2",
        "sqlite://user:a?hunter2@host/db",
        "sqlite://user@host/db?email=me@here&password=hunter2",
        "postgresql://host/db?user=u&password=hunter2&such=none",
    ],
)
def test_no_refused_url_shows_its_password(url):
    """Whatever is wrong with the URL, the message does not repeat what may be a secret."""
    with pytest.raises(ConfigurationError) as refusal:
        open_store(url, busy_timeout=0)
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:////srv/queue.db", "sqlite:////srv/queue.db"),
        ("postgresql://host/db", "postgresql://host/db"),
        ("postgresql://user:hunter2@host/db", "postgresql://user@host/db"),
        ("postgresql://user:p@hunter2@host:5432/db", "postgresql://user@host:5432/db"),
        ("postgresql://user@host/db?password=hunter2", "postgresql://user@host/db"),
        ("postgresql://host/db?user=u&password=hunter2", "postgresql://host/db"),
    ],
)
def test_without_password_keeps_what_tells_databases_apart(url, shown):
    """User, host, port and name stay; the password and the options go."""
    assert without_password(url) == shown


def test_ones_own_file_goes_before_the_machines(tmp_path, monkeypatch):
    """Of the two the first that is there is the one file; both would mix two queues' settings."""
    machines = tmp_path / "machine.env"
    machines.write_text("RUNQUEUE_DB=sqlite:////machine\nRUNQUEUE_LEASE=5\n")
    monkeypatch.setattr(settings, "ENV_FILE", str(machines))
    config = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert load(config) == {"RUNQUEUE_DB": "sqlite:////machine", "RUNQUEUE_LEASE": "5"}
    own = tmp_path / "runqueue" / "runqueue.env"
    own.parent.mkdir()
    own.write_text("RUNQUEUE_DB=sqlite:////own\n")
    assert load(config) == {"RUNQUEUE_DB": "sqlite:////own"}


def test_a_home_that_may_not_be_entered_has_no_settings(tmp_path, monkeypatch):
    """As when root's HOME was kept for another user: the machine's file is asked all the same."""
    machines = tmp_path / "machine.env"
    machines.write_text("RUNQUEUE_LEASE=5\n")
    monkeypatch.setattr(settings, "ENV_FILE", str(machines))
    real = Path.read_text

    def read_text(path, *arguments, **options):
        if path.name == "runqueue.env":
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert load({"XDG_CONFIG_HOME": str(tmp_path)}) == {"RUNQUEUE_LEASE": "5"}


@pytest.fixture
def credential(tmp_path):
    """Write the service's credential and return the environment that leads to it."""

    def write(text: str) -> dict[str, str]:
        (tmp_path / settings.CREDENTIAL).write_text(text)
        return {"CREDENTIALS_DIRECTORY": str(tmp_path)}

    return write


def test_a_credential_goes_before_the_variable(credential):
    """What a settings file says is for everybody who may read that."""
    environ = {**credential("postgresql://u:p@h/db\n"), "RUNQUEUE_DB": "postgresql://u@h/db"}
    settings.load_credential(environ)
    assert environ["RUNQUEUE_DB"] == "postgresql://u:p@h/db"


@pytest.mark.parametrize("environ", [{}, {"CREDENTIALS_DIRECTORY": "/nowhere"}])
def test_without_a_credential_nothing_is_set(environ):
    """A service need not have been given one."""
    before = dict(environ)
    settings.load_credential(environ)
    assert environ == before


@pytest.mark.parametrize("text", ["", "\n", "postgresql://u:hunter2@h/db\nand more"])
def test_a_credential_that_is_no_url_is_refused_without_being_told(credential, text):
    """It may be a password, or half of one."""
    with pytest.raises(ConfigurationError) as refused:
        settings.load_credential(credential(text))
    assert "hunter2" not in str(refused.value)
    assert settings.CREDENTIAL in str(refused.value)
