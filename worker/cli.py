"""The command line: each command reads the settings, calls a module, and shows what came out.

Exit codes: 0 done; 1 unexpected; 2 usage or invalid settings; 3 a dependency is not there; 4 not found.
`--json` prints only JSON on stdout; logs and progress go to stderr.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from worker import __version__
from worker import settings as settings_module
from worker.errors import NotFound, SettingsError, Unavailable
from worker.settings import Settings

P = ParamSpec("P")
EXIT_SETTINGS, EXIT_UNAVAILABLE, EXIT_NOT_FOUND = 2, 3, 4
ADDRESSES = (("kafka", "bootstrap_servers"), ("redis", "url"), ("triton", "url"))

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)
app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
stack_app = typer.Typer(help="The local Kafka, Redis and Triton, without containers.", no_args_is_help=False)
app.add_typer(stack_app, name="stack")

Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings as a TOML file; the environment beats it.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print only JSON on stdout.")]
Paths = Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders.")]


def command(
    *, examples: str, group: typer.Typer = app, name: str | None = None
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Register a command with examples in its help, and turn our errors into a line on stderr and an exit code."""

    def register(body: Callable[P, None]) -> Callable[P, None]:
        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                body(*args, **kwargs)
            except SettingsError as error:
                for problem in error.problems:
                    err.print(problem, markup=False, highlight=False)
                raise typer.Exit(EXIT_SETTINGS) from None
            except Unavailable as error:
                err.print(f"{error.dependency} is not there: {error.detail}", markup=False, highlight=False)
                raise typer.Exit(EXIT_UNAVAILABLE) from None
            except NotFound as error:
                err.print(str(error), markup=False, highlight=False)
                raise typer.Exit(EXIT_NOT_FOUND) from None

        epilog = "[bold]Examples[/bold]\n\n" + "\n\n".join(
            f"  {line.strip()}" for line in examples.strip().splitlines()
        )
        group.command(name, epilog=epilog)(run)
        return run

    return register


def load_settings(config: Path | None) -> Settings:
    """The settings; where no address is set and a local stack runs, with that stack's addresses."""
    from worker.local import stack as local_stack  # noqa: PLC0415  # only commands need it, and it is slow to import

    environ = dict(os.environ)
    settings = settings_module.load(config, environ, with_policy=True)
    chosen = settings_module.chosen(config, environ)
    if not chosen & set(ADDRESSES):
        found = local_stack.discover(settings.stack.dir)
        if found:
            err.print(
                f"using the local stack: {', '.join(f'{name}={value}' for name, value in found.items())}",
                markup=False,
                highlight=False,
            )
            settings = settings_module.load(config, environ | found, with_policy=True)
    return settings


@app.callback(invoke_without_command=True)
def overview(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    """Assay: images in on Kafka, deepfake verdicts out in Redis and Kafka."""
    if version:
        out.print(__version__, highlight=False)
        raise typer.Exit
    if context.invoked_subcommand is None:
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, does in (
            ("demo", "everything at once, on sample images"),
            ("stack up", "start a local Kafka, Redis and Triton"),
            ("check", "are settings and servers in order?"),
            ("run", "consume images until SIGTERM"),
            ("send PATH… --wait", "publish images and watch their verdicts"),
            ("query ID", "the stored verdict of an image"),
            ("replay", "put rejected images back, once mended"),
            ("bench", "how fast, and how much of it is the model"),
            ("schema", "the schemas of what is published"),
        ):
            table.add_row(f"  python -m worker {name}", f"  {does}")
        out.print(f"[bold]Assay {__version__}[/bold]: images in on Kafka, deepfake verdicts out in Redis and Kafka.\n")
        out.print(table)
        out.print("\nNext: [bold]python -m worker demo[/bold]. Help on a command: python -m worker COMMAND --help")


@command(
    examples="""
    python -m worker run
    ASSAY_KAFKA__BOOTSTRAP_SERVERS=kafka:9092 ASSAY_TRITON__URL=triton:8001 python -m worker run
    python -m worker run --config assay.toml --processes 4
    """
)
def run(
    config: Config = None,
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="Workers on this host; they share the partitions, ports count up.")
    ] = 1,
) -> None:
    """Consume images until SIGTERM or SIGINT, then drain and exit 0."""
    settings = load_settings(config)  # before the imports below, which take seconds: a wrong variable is told at once
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(0)
    )  # process 1 of a container would not even hear of it meanwhile
    from worker import processes as several  # noqa: PLC0415
    from worker.pipeline import Pipeline  # noqa: PLC0415
    from worker.telemetry.logs import configure  # noqa: PLC0415

    configure(settings.log.level, settings.log.format)
    if processes > 1:
        raise typer.Exit(several.run(settings, processes))
    pipeline = Pipeline(settings)
    pipeline.handle_signals()
    pipeline.run()


@command(examples="python -m worker check\npython -m worker check --json")
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Are the settings valid, Kafka, Redis and Triton reachable, topics and model there? Exit 0 or 3."""
    from worker.check import check as look  # noqa: PLC0415

    findings = list(look(load_settings(config)))
    well = all(finding.ok for finding in findings)
    if as_json:
        print(json.dumps({"ok": well, "findings": [asdict(finding) for finding in findings]}))
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("", "what", "found", "what to do"):
            table.add_column(column)
        for finding in findings:
            table.add_row(
                "[green]ok[/green]" if finding.ok else "[red]no[/red]", finding.name, finding.detail, finding.hint
            )
        out.print(table)
    if not well:
        raise typer.Exit(EXIT_UNAVAILABLE)


@command(
    examples="""
    python -m worker send photo.jpg holiday/ --wait
    python -m worker send holiday/ --wait --json > verdicts.jsonl
    """
)
def send(
    paths: Paths,
    wait: Annotated[bool, typer.Option("--wait", help="Show the verdicts as they arrive.")] = False,
    timeout_s: Annotated[
        float, typer.Option(min=1, help="With --wait: give up when no verdict has come for so long.")
    ] = 120.0,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Publish images; the id of each is its path relative to the folder named."""
    from worker import send as sending  # noqa: PLC0415
    from worker import show  # noqa: PLC0415
    from worker.clients.kafka import Producer  # noqa: PLC0415

    settings = load_settings(config)
    sources = sending.find_sources(paths)
    producer = Producer(settings.kafka)
    waiter = sending.Waiter(settings) if wait else None
    started = time.monotonic()
    sent = []
    try:
        with _progress("sending", len(sources), hidden=as_json) as advance:
            for one in sending.send(settings.kafka, producer, sources):
                sent.append(one)
                advance()
                if one.error:
                    err.print(f"{one.path}: not sent: {one.error}", markup=False, highlight=False)
                elif as_json and not wait:
                    print(json.dumps(asdict(one)))
        failed = [one for one in sent if one.error]
        if not as_json:
            took_s = time.monotonic() - started
            err.print(f"{len(sent) - len(failed)} images sent to {settings.kafka.incoming_topic} in {took_s:.1f} s")
        if waiter:
            show.results(
                waiter.results(sent, timeout_s=timeout_s), total=len(sent) - len(failed), as_json=as_json, console=out
            )
    finally:
        producer.close()
        if waiter:
            waiter.close()
    if failed:
        raise typer.Exit(1)


@command(
    examples="""
    python -m worker query real/mflux-dog-photos/5f0c.jpg
    python -m worker query --file photo.jpg
    python -m worker query --sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 --json
    """
)
def query(
    image_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Image id.")] = None,
    sha256: Annotated[str | None, typer.Option("--sha256", metavar="HASH", help="By the SHA-256 of the bytes.")] = None,
    file: Annotated[Path | None, typer.Option("--file", metavar="FILE", help="By a file with the same bytes.")] = None,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """The stored verdict of an image; exit 4 if there is none."""
    from worker import show  # noqa: PLC0415
    from worker.query import stored_verdict  # noqa: PLC0415

    settings = load_settings(config)
    document = stored_verdict(settings.redis, image_id=image_id, sha256=sha256, file=file)
    if as_json:
        print(document)
    else:
        out.print(show.verdict_panel(json.loads(document)))


@command(
    examples="""
    python -m worker replay --reason too_large --dry-run
    python -m worker replay --since 2h --limit 1000
    """
)
def replay(
    reason: Annotated[str | None, typer.Option(metavar="REASON", help="Only these, e.g. too_large.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Rejected since, e.g. 2h or 2026-11-21T12:00:00Z.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go back.")] = False,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Put rejected images back into the incoming topic, as their producer had sent them."""
    from worker import replay as replaying  # noqa: PLC0415
    from worker.clients.kafka import Producer  # noqa: PLC0415

    wanted = replaying.check_reason(reason)
    since_ms = replaying.parse_since(since, time.time()) if since else None
    settings = load_settings(config).kafka
    producer = None if dry_run else Producer(settings)
    count = 0
    try:
        for found in replaying.candidates(settings, reason=wanted, since_ms=since_ms, limit=limit):
            if producer is not None:
                producer.produce([replaying.restored(found, settings.incoming_topic)])
            count += 1
            line = {
                "image_id": found.image_id,
                "reason": found.reason,
                "detail": found.detail,
                "origin": found.origin,
                "replayed": not dry_run,
            }
            if as_json:
                print(json.dumps(line))
            else:
                out.print(
                    f"{found.reason:18} {found.image_id or found.origin}  {found.detail}", markup=False, highlight=False
                )
    finally:
        if producer is not None:
            producer.close()
    if not as_json:
        done = "would go back" if dry_run else "went back"
        err.print(f"{count} images {done} to {settings.incoming_topic}")


@command(
    examples="""
    python -m worker stack up
    python -m worker stack up --models build/models
    eval "$(python -m worker stack status --export)"
    """,
    group=stack_app,
    name="up",
)
def stack_up(
    models: Annotated[
        Path | None,
        typer.Option(
            "--models",
            help="Serve this model repository, not the demo's (docs/models.md).",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start what does not run; returns once all three serve."""
    from worker.local import stack as local_stack  # noqa: PLC0415

    if models is not None and not (models / "MANIFEST.json").is_file():
        raise typer.BadParameter(
            f"{models} is no model repository; write one with python -m triton_models.build", param_hint="--models"
        )
    status = local_stack.up(
        _stack_dir(), models=models, report=lambda line: err.print(line, markup=False, highlight=False)
    )
    _show_stack(status, as_json=as_json)


@command(examples="python -m worker stack down\npython -m worker stack down --purge", group=stack_app, name="down")
def stack_down(purge: Annotated[bool, typer.Option("--purge", help="Remove the data too.")] = False) -> None:
    """Stop the servers; their data stays."""
    from worker.local import stack as local_stack  # noqa: PLC0415

    local_stack.down(_stack_dir(), purge=purge, report=lambda line: err.print(line, markup=False, highlight=False))


@command(examples="python -m worker stack status --json", group=stack_app, name="status")
def stack_status(
    as_json: AsJson = False,
    export: Annotated[bool, typer.Option("--export", help="As shell commands that set the variables.")] = False,
) -> None:
    """What runs, and where."""
    from worker.local import stack as local_stack  # noqa: PLC0415

    status = local_stack.status(_stack_dir())
    if export:
        for name, value in status.env.items():
            print(f"export {name}={value}")
    else:
        _show_stack(status, as_json=as_json)


@stack_app.callback(invoke_without_command=True)
def stack_overview(context: typer.Context) -> None:
    """The local Kafka, Redis and Triton, without containers."""
    if context.invoked_subcommand is None:
        out.print("python -m worker stack up | down | status")


def _stack_dir() -> Path | None:
    return settings_module.load(None).stack.dir


def _show_stack(status: Any, *, as_json: bool) -> None:
    if as_json:
        print(status.to_json())
        return
    table = Table(box=None, pad_edge=False)
    for column in ("service", "pid", "address"):
        table.add_column(column)
    for name, service in status.model_dump()["services"].items():
        table.add_row(name, *(("-", "not running") if not service else (str(service["pid"]), service["address"])))
    out.print(table)


@command(examples="python -m worker demo\npython -m worker demo ~/Pictures --keep")
def demo(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="[PATH...]", help="Images to use; the sample images when left out.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the local stack running.")] = False,
) -> None:
    """Stack, worker, sample images, verdict table: everything at once."""
    from worker.demo import demo as show_all  # noqa: PLC0415

    show_all(paths or [], keep=keep, out=out, err=err)


@command(
    examples="""
    python -m worker bench
    python -m worker bench --images 400 --rounds 3 --json
    python -m worker bench memory --images 20000
    """
)
def bench(
    what: Annotated[Literal["throughput", "memory", "decode"], typer.Argument(help="What to measure.")] = "throughput",
    images: Annotated[int | None, typer.Option(min=1, help="Images per round.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median is the result.")] = 3,
    as_json: AsJson = False,
    config: Config = None,
) -> None:
    """Load and efficiency: the worker against the model server alone, its memory under a backlog, its decoder."""
    from worker.bench import report  # noqa: PLC0415

    settings = load_settings(config) if what != "decode" else settings_module.load(config)
    report.run(what, settings, config, images=images, rounds=rounds, as_json=as_json, out=out, err=err)


@command(examples="python -m worker schema verdict\npython -m worker schema asyncapi > asyncapi.json")
def schema(
    name: Annotated[
        Literal["verdict", "reference", "asyncapi"] | None, typer.Argument(help="Which; all when left out.")
    ] = None,
) -> None:
    """Print the schemas of what is published."""
    from worker.contract import dump_json  # noqa: PLC0415
    from worker.schemas import SCHEMAS  # noqa: PLC0415

    document = SCHEMAS[name]() if name else {key: make() for key, make in SCHEMAS.items()}
    print(dump_json(document), end="")


class _progress:  # noqa: N801  # reads as a function where it is used
    """A progress bar on stderr around a block; the block gets `advance`."""

    def __init__(self, what: str, total: int, *, hidden: bool) -> None:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=err, transient=True, disable=hidden or not err.is_terminal)
        self._total = total

    def __enter__(self) -> Callable[[], None]:
        self._bar.start()
        task = self._bar.add_task("", total=self._total)
        return lambda: self._bar.advance(task)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
