"""`policy check | backtest`: what a policy means, and what it would have decided."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from worker.cli.command import AsJson, Config, app, command
from worker.cli.settings import load_settings
from worker.terminal import err, out, print_json

policy_app = typer.Typer(help="Policies: check one, or decide stored verdicts anew.", no_args_is_help=False)
app.add_typer(policy_app, name="policy")

File = Annotated[Path, typer.Argument(metavar="FILE", help="A policy as a TOML file.")]


@policy_app.callback(invoke_without_command=True)
def overview(context: typer.Context) -> None:
    """Policies: check one, or decide stored verdicts anew."""
    if context.invoked_subcommand is None:
        out.say("python -m worker policy check | backtest FILE")


@command(examples="python -m worker policy check policy.toml", group=policy_app, name="check")
def check(file: File, as_json: AsJson = False, config: Config = None) -> None:
    """Compile a policy and say what each rule reads. Exit 2, with rule and column, where it is wrong.

    What a rule hardly means (a format that there is not, a score above 1) is said on stderr, and is no error.
    The version is that of the verdicts of a worker with the same settings: the trust list is part of it.
    """
    from worker import settings as settings_module
    from worker.policy import load_policy
    from worker.policy_report import policy_document, policy_table
    from worker.stages.policy_watch import also_decides

    policy = load_policy(file, "", also_decides(settings_module.load(config, os.environ)))
    if as_json:
        print_json(json.dumps(policy_document(policy)))
    else:
        out.print(policy_table(policy))
        for doubt in policy.form.doubts():
            err.say(f"{file}: {doubt}")


@command(
    examples="""
    python -m worker policy backtest stricter.toml --since 7d
    python -m worker policy backtest stricter.toml --against policy.toml --json
    python -m worker policy backtest stricter.toml --labels reviewed/
    """,
    group=policy_app,
    name="backtest",
)
def backtest(
    file: File,
    against: Annotated[
        Path | None,
        typer.Option("--against", metavar="FILE", help="Compare with this policy, not with what was decided."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Decided since, e.g. 7d or 2026-11-21T12:00:00Z.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many images, the same for every policy.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="DIR", help="Images in real/ and fake/: precision and recall on these."),
    ] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Decide stored verdicts anew, without inference: how many would change, from what to what."""
    from worker import backtest as testing
    from worker.policy import load_policy
    from worker.policy.comparison import Comparison
    from worker.policy_report import comparison_tables, counting
    from worker.replay import parse_since
    from worker.stages.policy_watch import also_decides

    settings = load_settings(config)
    beside = also_decides(settings)
    since_ms = parse_since(since, time.time()) if since else None
    policies = load_policy(file, "", beside), load_policy(against, "", beside) if against else None
    truth = testing.labels_of(labels) if labels else None
    used = testing.calibrated_on(file, truth or {})
    comparison = Comparison(*policies, truth)
    with counting("deciding anew", hidden=as_json) as report:
        skipped = testing.backtest(settings.kafka, comparison, since_ms=since_ms, limit=limit, report=report)
    document = comparison.to_dict() | {"unreadable": skipped.unreadable}
    if truth is not None:
        document["labelled"]["calibrated_on"] = used
    if as_json:
        print_json(json.dumps(document))
        return
    for table in comparison_tables(document):
        out.print(table)
    if used:
        err.say(f"{used} of the images in {labels} are those that {file} was calibrated on: no test of its rates")
    for name, count in document["without_header"].items():
        err.say(f"{count} verdicts have no header {name}: absent, or not kept because no policy named it then")
