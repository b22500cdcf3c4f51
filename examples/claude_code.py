#!/usr/bin/env python3
"""Execute a run with Claude Code, in the conversation of the run's session.

    runqueue-runner --executor-type claude -- python3 examples/claude_code.py [OPTION OF claude]...

The prompt goes to claude's standard input as it came, so it is in no list of processes. Claude
tells the id of a new conversation in its first event; it is bound to the session before any
work is done, and the session's later runs resume it. (What it tells of a resumed one differs
between versions and is left alone: the id stays.) Events are told on standard error, so that
`runqueue show` knows when the agent was last heard of.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys


def main() -> int:
    known = os.environ.get("RUNQUEUE_EXECUTOR_SESSION_ID")
    command = ["claude", "-p", "--output-format", "stream-json", "--verbose", *sys.argv[1:]]
    command += ["--resume", known] if known else []
    answer = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as claude:
        assert claude.stdout is not None
        for line in claude.stdout:
            if not line.startswith("{"):  # a warning, or a word of a hook
                continue
            event = json.loads(line)
            print("claude:", event.get("type"), event.get("subtype", ""), file=sys.stderr)
            if not known and event.get("subtype") == "init":
                known = event["session_id"]
                bound = subprocess.run(["runqueue", "sessions", "bind", known], stdout=sys.stderr)
                if bound.returncode:  # a conversation that nobody would find again
                    claude.terminate()
                    return bound.returncode
            if event.get("type") == "result":
                answer = event
    if answer is None:
        return claude.returncode or 1
    if answer.get("is_error"):
        print(answer.get("result") or answer.get("subtype"), file=sys.stderr)
        return claude.returncode or 1
    print(answer["result"])
    return claude.returncode


if __name__ == "__main__":
    sys.exit(main())
