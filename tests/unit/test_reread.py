"""Settings that are read again: what came from the files follows them, all else stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from runqueue.errors import ConfigurationError
from runqueue.reread import FILES, Files


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "shared.env", tmp_path / "own.env"]
    found[0].write_text("RUNQUEUE_LEASE=30\nRUNQUEUE_KEEP=1d\n")
    found[1].write_text("RUNQUEUE_SLOTS=1\nTOKEN=old\n")
    return found


@pytest.fixture
def environ(paths: list[Path]) -> dict[str, str]:
    """As systemd makes it from the files, and from elsewhere."""
    return {
        FILES: ":".join(map(str, paths)),
        "RUNQUEUE_LEASE": "30",
        "RUNQUEUE_SLOTS": "1",
        "TOKEN": "old",
        "RUNQUEUE_KEEP": "7d",  # an operator's, over the file's
    }


def test_what_a_file_says_otherwise_now_is_taken_over(
    paths: list[Path], environ: dict[str, str]
) -> None:
    """Changed, added and removed, of whatever name: an agent's token too."""
    files = Files(environ)
    paths[0].write_text("RUNQUEUE_LEASE=40\nRUNQUEUE_KEEP=1d\nRUNQUEUE_INTERVAL=2\n")
    paths[1].write_text("TOKEN=new\n")
    assert files.again() == ["RUNQUEUE_INTERVAL", "RUNQUEUE_LEASE", "RUNQUEUE_SLOTS", "TOKEN"]
    assert environ["RUNQUEUE_LEASE"] == "40"
    assert environ["RUNQUEUE_INTERVAL"] == "2"
    assert environ["TOKEN"] == "new"
    assert "RUNQUEUE_SLOTS" not in environ


def test_what_was_set_elsewhere_stays(paths: list[Path], environ: dict[str, str]) -> None:
    """Its value is not the file's, so it did not come from there."""
    files = Files(environ)
    paths[0].write_text("RUNQUEUE_LEASE=30\nRUNQUEUE_KEEP=2d\n")
    assert files.again() == []
    assert environ["RUNQUEUE_KEEP"] == "7d"


def test_of_two_files_the_later_one_wins(paths: list[Path], environ: dict[str, str]) -> None:
    """As it does for systemd."""
    files = Files(environ)
    paths[1].write_text("RUNQUEUE_SLOTS=1\nTOKEN=old\nRUNQUEUE_LEASE=50\n")
    assert files.again() == ["RUNQUEUE_LEASE"]
    assert environ["RUNQUEUE_LEASE"] == "50"


def test_a_file_with_a_mistake_changes_nothing(paths: list[Path], environ: dict[str, str]) -> None:
    """It is told by its line, and a later reading finds what was mended."""
    files = Files(environ)
    before = dict(environ)
    paths[0].write_text("RUNQUEUE_LEASE=40\nwhat is this\n")
    with pytest.raises(ConfigurationError, match="line 2"):
        files.again()
    assert environ == before
    paths[0].write_text("RUNQUEUE_LEASE=40\nRUNQUEUE_KEEP=1d\n")
    assert files.again() == ["RUNQUEUE_LEASE"]


def test_a_file_that_is_gone_takes_its_settings_along(
    paths: list[Path], environ: dict[str, str]
) -> None:
    files = Files(environ)
    paths[1].unlink()
    assert files.again() == ["RUNQUEUE_SLOTS", "TOKEN"]
    assert "TOKEN" not in environ


def test_without_a_service_it_is_the_commands_own_file(tmp_path: Path) -> None:
    """The one that is named, else this user's own, else the machine's."""
    assert Files({"RUNQUEUE_ENV_FILE": "/x/y.env"}).paths == [Path("/x/y.env")]
    config = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert Files(config).paths == [Path("/etc/runqueue/runqueue.env")]
    own = tmp_path / "runqueue" / "runqueue.env"
    own.parent.mkdir()
    own.touch()
    assert Files(config).paths == [own]


def test_a_file_that_may_not_be_read_any_more_takes_nothing_away(
    paths: list[Path], environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would be a service without its settings."""
    files = Files(environ)
    before = dict(environ)

    def refuse(*arguments: object, **options: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ConfigurationError, match="may not be read"):
        files.again()
    assert environ == before
