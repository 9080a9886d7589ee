"""The local stack: real Kafka, Redis and Triton as children that outlive the command, with their data in one run
directory.

`up` is idempotent and restarts only what died, does not serve or would now be started differently, at the same address.
Run by `python -m worker stack up|down|status`.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.errors import Unavailable
from worker.local import install, paths, processes
from worker.local.files import replace_text
from worker.local.kafka_server import TOPICS, KafkaServer
from worker.local.locks import exclusive
from worker.local.redis_server import RedisServer
from worker.local.server import NotServing, Server, free_port
from worker.local.triton_server import TritonServer

SERVICES = ("kafka", "redis", "triton")
_POLL_S = 0.1
_GRACE_S = 20.0  # for a server to end on SIGTERM: Kafka hands over, Triton finishes its calls
_SICK_GRACE_S = 3.0
_PORT_NAMES = [name for server in (KafkaServer, RedisServer, TritonServer) for name in server.port_names]
_LARGEST_RETENTION_BYTES = 6 * 1024**3
_SMALLEST_RETENTION_BYTES = 512 * 1024**2
# Images wait in two topics of four partitions; together they may take two thirds of the disk that is free at first.
_RETENTION_SHARE = 12


class ServiceStatus(BaseModel):
    """A running server. `address`: `host:port` for clients."""

    pid: int
    address: str


class StackStatus(BaseModel):
    """What runs (null: does not), and the settings that point every command there (empty when nothing runs)."""

    services: dict[str, ServiceStatus | None]
    env: dict[str, str]

    def to_json(self) -> str:
        """The document of `stack status --json`."""
        return self.model_dump_json(indent=2)


class _Plan(BaseModel):
    """What stays the same from one start to the next: `stack.json` in the run directory."""

    model_config = ConfigDict(extra="forbid")

    services: list[str]
    ports: dict[str, int]
    retention_bytes: int
    repository: Path | None = None


def up(
    directory: Path | None = None,
    *,
    services: Sequence[str] = SERVICES,
    models: Path | None = None,
    topics: Sequence[str] = TOPICS,
    report: Callable[[str], None] = install.quiet,
) -> StackStatus:
    """Bring the stack up and return when all of `services` really serve; missing parts are installed first.

    `models`: a Triton model repository to serve instead of the demo's; `report` gets a line for each step.
    Raises Unavailable, naming the server, what was seen and what helps; for damaged `models`, the file.
    """
    if models is not None and (models / "MANIFEST.json").is_file():
        install.check_models(models)
    directory = _resolve(directory)
    install.install(services, report)
    with _locked(directory, report):
        plan = _plan(directory, services)
        if "triton" in services:
            plan.repository = models.resolve() if models is not None else install.model_repository(report)
        replace_text(directory / "stack.json", plan.model_dump_json(indent=2))
        servers = [server for server in _servers(directory, plan, topics) if server.name in services]
        fresh = {server.name: _start_if_needed(server, report) for server in servers}
        for server in servers:
            _await(server, fresh=fresh[server.name], report=report)
    return status(directory)


def down(
    directory: Path | None = None, *, purge: bool = False, report: Callable[[str], None] = install.quiet
) -> StackStatus:
    """Stop what runs: SIGTERM, then SIGKILL for what stays. The data is kept for the next `up`, unless `purge`."""
    directory = _resolve(directory)
    if not directory.exists():
        return status(directory)
    with _locked(directory, report):
        plan = _read(directory)
        servers = _servers(directory, plan) if plan is not None else []
        for server in servers:
            if (process := server.running()) is not None:
                report(f"{server.name}: stopping")
                process.signal(signal.SIGTERM)
        for server in servers:
            server.stop(grace_s=_GRACE_S)
        if purge:
            shutil.rmtree(directory)
    return status(directory)


def status(directory: Path | None = None) -> StackStatus:
    """What runs in this run directory, without asking the servers anything."""
    directory = _resolve(directory)
    plan = _read(directory)
    found: dict[str, ServiceStatus | None] = dict.fromkeys(SERVICES)
    env: dict[str, str] = {}
    for server in _servers(directory, plan) if plan is not None else []:
        env |= server.env
        if (process := server.running()) is not None:
            found[server.name] = ServiceStatus(pid=process.pid, address=server.address)
    return StackStatus(services=found, env=env if any(found.values()) else {})


def discover(directory: Path | None = None) -> dict[str, str] | None:
    """The `env` of a running stack, or None: what a command uses when no address is set. Takes about a millisecond."""
    return status(directory).env or None


def _resolve(directory: Path | None) -> Path:
    return (directory or paths.run_directory()).resolve()


def _locked(directory: Path, report: Callable[[str], None]) -> AbstractContextManager[None]:
    return exclusive(directory / "lock", lambda: report("waiting for another command that works on this stack"))


def _read(directory: Path) -> _Plan | None:
    try:
        return _Plan.model_validate_json((directory / "stack.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise Unavailable(
            "stack", f"{directory / 'stack.json'} is not readable ({error.error_count()} errors); remove {directory}"
        ) from error


def _plan(directory: Path, services: Iterable[str]) -> _Plan:
    """The plan of the run directory, made on the first `up`."""
    plan = _read(directory)
    if plan is None:
        share = shutil.disk_usage(directory).free // _RETENTION_SHARE
        retention = max(_SMALLEST_RETENTION_BYTES, min(_LARGEST_RETENTION_BYTES, share))
        plan = _Plan(services=[], ports=_free_ports(), retention_bytes=retention)
    plan.services = [name for name in SERVICES if name in {*plan.services, *services}]
    return plan


def _free_ports() -> dict[str, int]:
    taken: set[int] = set()
    while len(taken) < len(_PORT_NAMES):
        taken.add(free_port())
    return dict(zip(_PORT_NAMES, taken, strict=True))


def _servers(directory: Path, plan: _Plan, topics: Sequence[str] = TOPICS) -> list[Server]:
    made: list[Server] = []
    for name in plan.services:
        if name == "kafka":
            made.append(KafkaServer(directory, plan.ports, plan.retention_bytes, topics))
        elif name == "redis":
            made.append(RedisServer(directory, plan.ports))
        else:
            made.append(TritonServer(directory, plan.ports, plan.repository or Path()))
    return made


def _start_if_needed(server: Server, report: Callable[[str], None]) -> bool:
    """Start what does not run, or runs with another configuration than it would get now; True if it was started."""
    process = server.running()
    if process is not None and process.fingerprint == server.fingerprint():
        return False
    if process is not None:
        report(f"{server.name}: its configuration or models have changed")
        server.stop(grace_s=_GRACE_S)
    report(f"{server.name}: starting on {server.address}")
    server.start()
    return True


def _await(server: Server, *, fresh: bool, report: Callable[[str], None]) -> None:
    """Return when the server serves; one that ran before and does not is healed, then restarted once.

    Raises Unavailable with the end of its log.
    """
    healed = False
    deadline = time.monotonic() + _allowance_s(server, fresh=fresh)
    while True:
        try:
            server.check()
        except NotServing as seen:
            if server.running() is None:
                if fresh:
                    raise Unavailable(
                        server.name, f"ended while starting; the end of {server.log}:\n{server.log_tail()}"
                    ) from seen
            elif seen.curable and not healed:
                report(f"{server.name}: {seen}; loading its models anew")
                healed = True
                with contextlib.suppress(NotServing):  # the next check sees it, and the server is restarted
                    server.heal()
                continue
            elif time.monotonic() < deadline and not (seen.curable and healed):
                time.sleep(_POLL_S)
                continue
            elif fresh:
                raise Unavailable(
                    server.name, f"does not serve: {seen}; the end of {server.log}:\n{server.log_tail()}"
                ) from seen
            report(f"{server.name}: {seen}; restarting")
            server.stop(grace_s=_SICK_GRACE_S)
            server.start()
            fresh = True
            deadline = time.monotonic() + server.boot_s
        else:
            processes.mark_served(server.pid_file)
            report(f"{server.name}: serves on {server.address}")
            server.complete(report)
            return


def _allowance_s(server: Server, *, fresh: bool) -> float:
    """How long the server may go on not serving: a start's time, also for one that an interrupted `up` left booting."""
    process = server.running()
    if fresh or process is None:
        return server.boot_s
    return server.patience_s if process.served else max(server.patience_s, server.boot_s - process.age_s())
