#!/usr/bin/env python3
"""A runner in Python, on the claim API: python3 examples/runner.py [TAG]..."""

from __future__ import annotations

import sys

import runqueue


def agent(claim: runqueue.Claim) -> str:
    """Put your agent here. This one shouts, and names its conversation by itself."""
    conversation = claim.executor_session_id or f"conversation of {claim.run.session_id}"
    claim.bind_session(conversation)  # the session's later runs are given it
    words = []
    for word in claim.run.prompt.split():
        if claim.stop_requested:
            break
        words.append(word.upper())
        claim.note_output()  # so that others see that it is not silent
    return f"{conversation}: {' '.join(words)}"


def main() -> None:
    queue = runqueue.connect()
    with queue.runner(tags=sys.argv[1:]) as runner, runner.draining_on_signals():
        for claim in runner:
            try:
                with claim:  # start; complete, fail on an exception, or confirm a stop
                    result = agent(claim)
                    if not claim.stop_requested:
                        claim.complete(result)
            except Exception as error:  # the run has failed with it, or was resolved by others
                print(f"run {claim.run.run_id}: {type(error).__name__}", file=sys.stderr)


if __name__ == "__main__":
    main()
