"""`runqueue systemd` without a systemd: what is written, kept, refused and removed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runqueue.systemd import files


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home of a person who has no systemd of their own running."""
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def written(home: Path) -> dict[str, Path]:
    """The files in a home, by their names."""
    return {path.name: path for path in home.rglob("*") if path.is_file()}


NAMES = {"runqueued.service", "runqueue-runner@.service", "runqueue.env", "runner.env.example"}


def test_a_dry_run_says_what_an_install_then_does(rq: Callable[..., Any], home: Path) -> None:
    """Line by line the same, but nothing is there yet."""
    would = rq("systemd", "install", "--user", "--dry-run", db=None)
    assert would.code == 0
    assert not home.exists()
    did = rq("systemd", "install", "--user", db=None)
    assert did.code == 0
    assert [line.removeprefix("would ") for line in would.lines] == did.lines
    assert set(written(home)) == NAMES


def test_units_start_this_installation(rq: Callable[..., Any], home: Path) -> None:
    """By whole paths, no place is left to be filled in, and settings are for their owner alone."""
    rq("systemd", "install", "--user", db=None)
    found = written(home)
    for name in ("runqueued", "runqueue-runner@"):
        text = found[f"{name}.service"].read_text()
        (command,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
        program = Path(command.removeprefix("ExecStart=").split()[0])
        assert program.is_absolute()
        assert os.access(program, os.X_OK)
        assert f"{home}/.config/runqueue/runqueue.env" in text
        for placeholder in ("@runqueued@", "@runqueue-runner@", "@config@", "@state@"):
            assert placeholder not in text
    settings = found["runqueue.env"]
    assert f"RUNQUEUE_DB=sqlite:///{home}/.local/state/runqueue/runqueue.db" in settings.read_text()
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600


def test_settings_are_kept_whatever_is_installed_or_removed(
    rq: Callable[..., Any], home: Path
) -> None:
    """From the first change on they are their owner's."""
    rq("systemd", "install", "--user", db=None)
    settings = written(home)["runqueue.env"]
    with settings.open("a") as file:
        file.write("RUNQUEUE_LEASE=7\n")
    text = settings.read_text()
    assert f"keep {settings}, which is yours" in rq("systemd", "install", "--user", db=None).lines
    removed = rq("systemd", "uninstall", "--user", "--force", db=None)
    assert f"keep {settings}, for it was changed by hand" in removed.lines
    assert set(written(home)) == {"runqueue.env"}
    assert settings.read_text() == text


def test_an_uninstall_takes_away_what_was_written_and_no_more(
    rq: Callable[..., Any], home: Path
) -> None:
    """With the directory that is empty then; a second one has nothing to do."""
    rq("systemd", "install", "--user", db=None)
    units = home / ".config" / "systemd" / "user"
    (units / "other.service").write_text("[Unit]\n")
    ended = rq("systemd", "uninstall", "--user", db=None)
    assert ended.code == 0
    assert set(written(home)) == {"other.service"}
    assert not (home / ".config" / "runqueue").exists()
    assert rq("systemd", "uninstall", "--user", db=None).lines == ["nothing is installed here"]


def test_what_another_version_wrote_is_brought_up_to_date(
    rq: Callable[..., Any], home: Path
) -> None:
    """A file that nobody changed since is ours, whatever it says."""
    rq("systemd", "install", "--user", db=None)
    unit = written(home)["runqueued.service"]
    text = unit.read_text()
    old = files.File(unit, "[Service]\nExecStart=/old\n", 0o644)
    unit.write_text(old.signed)
    assert rq("systemd", "install", "--user", db=None).lines[0] == f"write {unit}"
    assert unit.read_text() == text


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text + "# mine\n", "was changed by hand"),
        (lambda text: text.partition("\n")[2], "was not written by runqueue"),
    ],
)
def test_what_somebody_else_wrote_is_refused(
    rq: Callable[..., Any], home: Path, change: Callable[[str], str], why: str
) -> None:
    """By its path, before anything is written; --force writes it anew."""
    rq("systemd", "install", "--user", db=None)
    unit = written(home)["runqueued.service"]
    text = unit.read_text()
    unit.write_text(change(text))
    written(home)["runner.env.example"].unlink()
    refused = rq("systemd", "install", "--user", db=None)
    assert refused.code == 78
    assert refused.err.startswith(f"Error: {unit} {why}; ")
    assert "runner.env.example" not in written(home)
    assert rq("systemd", "install", "--user", "--force", db=None).code == 0
    assert unit.read_text() == text


def test_a_start_is_refused_where_no_systemd_runs(rq: Callable[..., Any], home: Path) -> None:
    refused = rq("systemd", "install", "--user", "--now", db=None)
    assert refused.code == 78
    assert "systemd does not run here" in refused.err
    assert written(home) == {}


def test_services_of_the_machine_are_roots(
    rq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is not is told of the other way."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for verb in ("install", "uninstall"):
        refused = rq("systemd", verb, db=None)
        assert refused.code == 78
        assert "--user" in refused.err


def test_an_installation_that_services_cannot_see_is_refused(
    rq: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A locked-down service sees no home; it would only fail to start."""
    monkeypatch.setattr("sys.executable", "/home/somebody/venv/bin/python")
    refused = rq("systemd", "install", "--dry-run", db=None)
    assert refused.code == 78
    assert "/opt/runqueue" in refused.err


def test_a_path_that_would_need_quotes_is_refused(
    rq: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its % and spaces would mean something else in a unit."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "100% mine"))
    refused = rq("systemd", "install", "--user", db=None)
    assert refused.code == 78
    assert "quote" in refused.err
