#!/usr/bin/env python3
"""Execute a run with aider, which goes on with the chat history of the run's session.

    runqueue-runner --executor-type aider -- python3 examples/aider.py [OPTION OF aider]...

Aider has no ids of conversations; it keeps a history in a file, and restores it when it is asked
to. So each session gets a file of its own, whose path is bound to it. The prompt goes to aider in
a file that only this user can read, as `--message` would show it in every list of processes.
Aider says what it does on standard output, which is the result.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

PLAIN = ("--yes-always", "--no-pretty", "--no-stream", "--no-fancy-input", "--no-check-update")


def main() -> int:
    known = os.environ.get("RUNQUEUE_EXECUTOR_SESSION_ID")
    if not known:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        folder = state / "runqueue-aider"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = str(folder / f"{os.environ['RUNQUEUE_SESSION_ID']}.md")
        bound = subprocess.run(["runqueue", "sessions", "bind", known], stdout=sys.stderr)
        if bound.returncode:
            return bound.returncode
    history = ["--chat-history-file", known, "--input-history-file", f"{known}.input"]
    history += ["--restore-chat-history"] if Path(known).exists() else []
    with tempfile.NamedTemporaryFile(suffix=".prompt") as prompt:
        prompt.write(sys.stdin.buffer.read())
        prompt.flush()
        command = ["aider", "--message-file", prompt.name, *PLAIN, *history, *sys.argv[1:]]
        return subprocess.run(command, stdin=subprocess.DEVNULL).returncode


if __name__ == "__main__":
    sys.exit(main())
