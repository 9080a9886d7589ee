"""The command line: `python -m worker COMMAND`, one module here for each command.

A command reads the settings, calls a module that does the work, and returns; `command` (command.py) turns our errors
into exit codes: 0 done; 1 unexpected; 2 usage or invalid settings; 3 a dependency is not there; 4 not found.
`--json` prints only JSON on stdout (`terminal.print_json`); logs and progress go to stderr.
"""

from worker.cli import (
    bench,
    check,
    console,
    demo,
    explain,
    overview,
    policy,
    query,
    replay,
    reviews,
    run,
    schema,
    send,
    stack,
)
from worker.cli.command import app

__all__ = [
    "app",
    "bench",
    "check",
    "console",
    "demo",
    "explain",
    "overview",
    "policy",
    "query",
    "replay",
    "reviews",
    "run",
    "schema",
    "send",
    "stack",
]
