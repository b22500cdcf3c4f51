"""`python -m runqueue` is the `runqueue` command."""

from runqueue.cli import main

main()
