#!/usr/bin/env python3
"""Execute a run with Codex, in the conversation (Codex says thread) of the run's session.

    runqueue-runner --executor-type codex -- python3 examples/codex.py [OPTION OF codex exec]...

The prompt goes to codex's standard input as it came, so it is in no list of processes. The first
event has the thread's id, which is bound to the session before any work is done; the session's
later runs resume it. Events are told on standard error, so that `runqueue show` knows when the
agent was last heard of; the last message is the result.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys


def main() -> int:
    known = os.environ.get("RUNQUEUE_EXECUTOR_SESSION_ID")
    command = ["codex", "exec", "--json", *sys.argv[1:]]
    command += ["resume", known, "-"] if known else ["-"]
    answer = trouble = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as codex:
        assert codex.stdout is not None
        for line in codex.stdout:
            if not line.startswith("{"):  # a warning, or a word of a hook
                continue
            event = json.loads(line)
            kind, item = event.get("type"), event.get("item", {})
            print("codex:", kind, item.get("type", ""), file=sys.stderr)
            if kind == "thread.started" and not known:
                known = event["thread_id"]
                bound = subprocess.run(["runqueue", "sessions", "bind", known], stdout=sys.stderr)
                if bound.returncode:  # a conversation that nobody would find again
                    codex.terminate()
                    return bound.returncode
            elif kind == "item.completed" and item.get("type") == "agent_message":
                answer = item["text"]
            elif kind == "turn.failed":
                trouble = event["error"]["message"]
    if trouble is not None or codex.returncode or answer is None:
        print(trouble or "codex ended without an answer", file=sys.stderr)
        return codex.returncode or 1
    print(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
