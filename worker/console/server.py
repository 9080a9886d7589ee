"""One process of the console: threads that feed the queues and empty the outbox, and the web server."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from worker.clock import SYSTEM_CLOCK
from worker.console.app import build
from worker.console.audit import Audit
from worker.console.board import Board
from worker.console.feed import Feed
from worker.console.grouper import Grouper
from worker.console.images import Images
from worker.console.maps import Maps
from worker.console.originals import Originals
from worker.console.outbox import Outbox
from worker.console.queues import Queues
from worker.console.sessions import Sessions
from worker.console.users import Users
from worker.console.web import Console
from worker.errors import SettingsError
from worker.policy import Policy, load_policy
from worker.settings import Settings, variable
from worker.stages.policy_watch import also_decides
from worker.telemetry.console_metrics import ConsoleMetrics
from worker.telemetry.health import HealthServer

log = structlog.get_logger(__name__)
_LOOK_AT_POLICY_S = 10.0


class _CurrentPolicy:
    """The policy in force, for limits beside scores: the file is looked at every ten seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._looked_at = SYSTEM_CLOCK.monotonic()
        self._policy = self._load()

    def _load(self) -> Policy:
        return load_policy(self._settings.policy.path, variable("policy", "path"), also_decides(self._settings))

    def __call__(self) -> Policy:
        with self._lock:
            now = SYSTEM_CLOCK.monotonic()
            if now - self._looked_at >= _LOOK_AT_POLICY_S:
                self._looked_at = now
                try:
                    self._policy = self._load()
                except SettingsError as error:
                    log.warning("policy_unreadable", error=str(error), action="the old one is shown")
            return self._policy


class Server:
    """Raises SettingsError for what is wrong with the settings before anything is opened."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        console = settings.console
        users = _users(settings)
        _check_tls(settings)
        self.board = Board(settings, Queues.load(console.queues_path, console.second_share))
        self.metrics = ConsoleMetrics(self.board)
        self.feed = Feed(settings, self.board)
        self.outbox = Outbox(settings, self.board, self.metrics.heard)
        self.images = Images(settings)
        self._originals = Originals(settings)
        self._grouper = Grouper(settings, self.board, self.images.renderers) if console.near_duplicates else None
        self.app = build(
            Console(
                settings=settings,
                board=self.board,
                outbox=self.outbox,
                images=self.images,
                originals=self._originals,
                maps=Maps(settings),
                sessions=Sessions(console, users, self.board),
                users=users,
                audit=Audit(self.board),
                policy=_CurrentPolicy(settings),
            )
        )
        if console.secret is None and console.auth == "users":
            log.warning("sessions_end_with_the_process", setting=variable("console", "secret"))

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        console = self._settings.console
        health = HealthServer(self._settings.http.host, console.metrics_port, self.metrics, self._livez, self._readyz)
        listening = _listen(console.host, console.port)
        options: dict[str, Any] = {}
        if console.tls_cert_path is not None:
            options = {"ssl_certfile": console.tls_cert_path, "ssl_keyfile": console.tls_key_path}
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            timeout_graceful_shutdown=10,
            timeout_keep_alive=30,
            limit_concurrency=500,
            **options,
        )
        for part in (health, self.feed, self.outbox):
            part.start()
        if self._grouper is not None:
            self._grouper.start()
        self.images.renderers.fill()
        scheme = "https" if console.tls_cert_path is not None else "http"
        log.info(
            "console_opened",
            address=f"{scheme}://{console.host}:{listening.getsockname()[1]}",
            metrics_port=health.port,
            auth=console.auth,
        )
        try:
            _Server(config).run(sockets=[listening])
        finally:
            if self._grouper is not None:
                self._grouper.stop()
            self.feed.stop()
            self.outbox.stop()
            health.stop()
            self.images.renderers.close()
            self._originals.close()

    def _livez(self) -> tuple[bool, dict[str, Any]]:
        alive = {"feed": self.feed.is_alive, "outbox": self.outbox.is_alive}
        if self._grouper is not None:
            alive["grouper"] = self._grouper.is_alive
        return all(alive.values()), alive

    def _readyz(self) -> tuple[bool, dict[str, Any]]:
        problems = {"feed": self.feed.problem, "outbox": self.outbox.problem}
        return not self.outbox.problem, {name: problem or "ok" for name, problem in problems.items()}


class _Server(uvicorn.Server):
    """Ends by SIGTERM and SIGINT, and then lets us end: the library would raise the signal once more."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _users(settings: Settings) -> Users | None:
    console = settings.console
    if console.auth != "users":
        return None
    if console.users_path is None:
        problem = (
            f"{variable('console', 'users_path')} is not set: without users nobody is let in. Add somebody: python "
            "-m worker console user NAME --role lead --file users.toml; or set "
            f"{variable('console', 'auth')}=proxy, or none (on loopback, all rights for whoever comes)"
        )
        raise SettingsError([problem])
    return Users(console.users_path)


def _check_tls(settings: Settings) -> None:
    for field in ("tls_cert_path", "tls_key_path"):
        path: Path | None = getattr(settings.console, field)
        if path is not None and not path.is_file():
            raise SettingsError([f"{variable('console', field)}={path}: no such file"])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        problem = f"{variable('console', 'port')}={port}: cannot listen on {host}:{port} ({error.strerror or error})"
        raise SettingsError([problem]) from None
    return listening
