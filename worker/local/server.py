"""What the stack knows of a server: how it is started, whether it serves, how it is healed. One subclass for each of
the three.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from worker.errors import Unavailable
from worker.local import processes

HOST = "127.0.0.1"
_FIRST_PORT = 15_000
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_KILL_S = 10.0  # for the kernel to end a killed process
_POLL_S = 0.05
_TAIL_LINES = 15
_TAIL_BYTES = 16 * 1024


class NotServing(Exception):
    """The server does not serve (yet); the message says what was seen. `curable`: `heal` can help, waiting cannot."""

    def __init__(self, seen: str, *, curable: bool = False) -> None:
        super().__init__(seen)
        self.curable = curable


class Server(ABC):
    """One server of a stack in its run directory.

    `boot_s`: how long a start may take; `patience_s`: how long a running one may fail to answer before it is restarted.
    """

    name: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]]
    boot_s: ClassVar[float] = 180.0
    patience_s: ClassVar[float] = 10.0

    def __init__(self, directory: Path, ports: Mapping[str, int]) -> None:
        self.stack_directory = directory
        self.directory = directory / self.name
        self.ports = {name: ports[name] for name in self.port_names}
        self.log = directory / "logs" / f"{self.name}.log"
        self.pid_file = self.directory / "pid.json"

    @property
    def port(self) -> int:
        """The port that clients use."""
        return self.ports[self.port_names[0]]

    @property
    def address(self) -> str:
        """`host:port` for clients."""
        return f"{HOST}:{self.port}"

    @property
    @abstractmethod
    def env(self) -> dict[str, str]:
        """The settings that point the worker here."""

    @abstractmethod
    def files(self) -> dict[str, str]:
        """Configuration files by name: written into the server's directory before a start."""

    @abstractmethod
    def command(self) -> tuple[list[str], dict[str, str]]:
        """The server's argv (no shell, nothing in between: the pid is its own) and what it adds to the environment."""

    @abstractmethod
    def check(self) -> None:
        """Raises NotServing unless a client would be served now."""

    def prepare(self) -> None:
        """Before each start: write the configuration; a subclass goes on from there."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, text in self.files().items():
            (self.directory / name).write_text(text, encoding="utf-8")

    def heal(self) -> None:
        """Cure what a `curable` NotServing told of, without a restart. Raises NotServing when it cannot."""
        raise NotServing("only a restart helps")

    def complete(self, report: Callable[[str], None]) -> None:  # noqa: B027 - most have nothing to add
        """Once it serves: what it serves besides, and can do without."""

    def running(self) -> processes.Process | None:
        """The living process, or None."""
        return processes.running(self.pid_file)

    def fingerprint(self) -> str:
        """Changes when the server would now be started in another way than before."""
        return hashlib.sha256(json.dumps([self.files(), *self.command()]).encode()).hexdigest()

    def start(self) -> processes.Process:
        """Prepare and start. Raises Unavailable when another program sits on a port of this stack."""
        processes.end_strays(self.directory.resolve(), self.log.resolve())
        # The kernel closes a killed server's sockets only when the last of its threads is gone.
        deadline = time.monotonic() + _KILL_S
        for port in self.ports.values():
            while not is_free(port):
                if time.monotonic() < deadline:
                    time.sleep(_POLL_S)
                    continue
                raise Unavailable(
                    self.name,
                    f"port {port}, this stack's, is taken by another program; end that, or give the data up for new"
                    " ports: `python -m worker stack down --purge`",
                )
        self.prepare()
        argv, extra = self.command()
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ASSAY_"))}
        return processes.start(argv, environment | extra, self.log, self.pid_file, self.fingerprint())

    def stop(self, *, grace_s: float) -> None:
        """End the server, if it runs: SIGTERM, after `grace_s` SIGKILL; clear what it leaves behind."""
        process = self.running()
        if process is not None:
            process.signal(signal.SIGTERM)
            if not process.wait(grace_s):
                process.signal(signal.SIGKILL)
                process.wait(_KILL_S)
        self.pid_file.unlink(missing_ok=True)
        processes.end_strays(self.directory.resolve(), self.log.resolve())

    def log_tail(self) -> str:
        """The last lines of the log, for an error message."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(lines[-_TAIL_LINES:])

    def connect(self, timeout_s: float = 2.0) -> socket.socket:
        """A TCP connection to the client port. Raises NotServing."""
        try:
            return socket.create_connection((HOST, self.port), timeout_s)
        except OSError as error:
            raise NotServing(f"{self.address}: {error}") from error


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, below the range that outgoing connections take theirs from.

    From inside that range a connection could take the port of a server that has just died.
    """
    ephemeral = int(_PORT_RANGE.read_text(encoding="ascii").split()[0])
    candidates = range(_FIRST_PORT, ephemeral) if ephemeral > _FIRST_PORT + 1_000 else range(_FIRST_PORT, 65_536)
    while not is_free(port := random.choice(candidates)):
        continue
    return port


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def lines(pairs: Mapping[str, object], separator: str) -> str:
    """A configuration file of `name separator value` lines."""
    return "".join(f"{name}{separator}{value}\n" for name, value in pairs.items())
