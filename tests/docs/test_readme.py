"""What the README shows is so."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

import runqueue
from runqueue import statements
from runqueue.cli import cli

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_every_link_leads_to_a_file(page: Path) -> None:
    """A page that was renamed takes its links along."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_python_example_does_the_work_and_ends_on_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The block as it stands, with an agent that asks the process to end while it works."""
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)

    def my_agent(prompt: str) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return prompt.upper()

    names: dict[str, object] = {"my_agent": my_agent}
    exec(block, names)
    queue = names["queue"]
    assert isinstance(queue, runqueue.Queue)
    (run,) = queue.find()
    assert (run.status, run.result) == ("completed", "SUMMARISE THE README")
    assert queue.store.run(statements.LIVE_RUNNERS, now=queue.now()) == []
    queue.close()


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))])
def test_every_command_that_is_shown_exists_with_its_options(page: Path) -> None:
    """Each `runqueue COMMAND` names a command, each --option of it is one of its own."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"runqueue (?:--db \S+ )?([a-z]+(?: [a-z]+)?)\b([^\n`]*)", text)
    shown = [(words, rest) for words, rest in lines if words.split()[0] in cli.commands]
    assert shown or page.name != "README.md"
    for words, rest in shown:
        command = cli
        for word in words.split():
            command = getattr(command, "commands", {}).get(word, command)
        known = {name for option in command.params for name in option.opts}
        for option in re.findall(r"(?<= )--[a-z-]+", rest.split("|")[0]):
            assert option in known, f"runqueue {words} has no {option}"
