"""`check`: are settings and servers in order?"""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from worker.cli.command import EXIT_UNAVAILABLE, AsJson, Config, command
from worker.cli.settings import load_settings
from worker.terminal import out, print_json


@command(examples="python -m worker check\npython -m worker check --json")
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Are the settings valid, Kafka, Redis and Triton reachable, topics and model there? Exit 0, 2 or 3."""
    from worker.check import check as look
    from worker.show import findings_table

    findings = list(look(load_settings(config)))
    well = all(finding.ok for finding in findings)
    if as_json:
        print_json(json.dumps({"ok": well, "findings": [asdict(finding) for finding in findings]}))
    else:
        out.print(findings_table(findings))
    if not well:
        raise typer.Exit(EXIT_UNAVAILABLE)
