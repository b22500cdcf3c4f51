#!/usr/bin/env python3
"""An orchestrator as a plain program, which stands for an agent that was told to do the same.

In its first run it hands three parts of the work to children and ends. When children have ended,
the queue resumes its session; once it has heard of all three it sums up. What it has heard so far
is its memory, a file of its own, whose path is what the session is bound to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = {"Review the parser": "cpu", "Review the printer": "cpu", "Profile the kernels": "gpu"}
"""Each part of the work, and the tag of a runner that can do it."""


def runqueue(*words: str) -> None:
    subprocess.run(["runqueue", *words], check=True, stdout=sys.stderr)


def hand_out() -> str:
    with tempfile.NamedTemporaryFile("w", prefix="orchestrator-", delete=False) as memory:
        json.dump({}, memory)
    runqueue("sessions", "bind", memory.name)
    parent = ("--parent", os.environ["RUNQUEUE_SESSION_ID"], "--mode", "async_callback")
    for prompt, tag in PARTS.items():
        runqueue("enqueue", prompt, *parent, "--tag", tag)
    return f"asked {len(PARTS)} children"


def hear(prompt: str) -> str:
    # A line for people, then one line of JSON, whatever the children have said.
    told = json.loads(prompt.partition("\n")[2])["children"]
    memory = Path(os.environ["RUNQUEUE_EXECUTOR_SESSION_ID"])
    heard = json.loads(memory.read_text())
    heard |= {child["run_id"]: child["result"] or child["error"] for child in told}
    memory.write_text(json.dumps(heard))
    if len(heard) < len(PARTS):
        return f"heard of {len(heard)} of {len(PARTS)} children"
    memory.unlink()
    return "all have ended:\n" + "\n".join(sorted(said.strip() for said in heard.values()))


def main() -> None:
    prompt = sys.stdin.read()
    is_first = os.environ["RUNQUEUE_RUN_TYPE"] == "START_SESSION"
    print(hand_out() if is_first else hear(prompt))


if __name__ == "__main__":
    main()
