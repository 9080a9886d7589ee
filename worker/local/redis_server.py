"""The stack's Redis: a `redis-server` found on the machine, else Valkey from a wheel.

Its append-only file holds plain commands, so that the one can read what the other wrote; at most the last second is
lost on a kill.
"""

from __future__ import annotations

from worker.local import install
from worker.local.server import HOST, NotServing, Server, lines


class RedisServer(Server):
    """redis-server or valkey-server."""

    name = "redis"
    port_names = ("redis",)

    @property
    def env(self) -> dict[str, str]:
        return {"ASSAY_REDIS__URL": f"redis://{self.address}/0"}

    def files(self) -> dict[str, str]:
        return {
            "redis.conf": lines(
                {
                    "bind": HOST,
                    "port": self.port,
                    "dir": f'"{self.directory}"',
                    "daemonize": "no",
                    "save": '""',
                    "appendonly": "yes",
                    "appendfsync": "everysec",
                    # Plain commands instead of a snapshot's binary form, which differs between Redis and Valkey.
                    "aof-use-rdb-preamble": "no",
                },
                " ",
            )
        }

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [str(install.redis_server()), str(self.directory / "redis.conf")], {}

    def check(self) -> None:
        """PING is answered with PONG: a server that still loads its data answers otherwise."""
        with self.connect() as connection:
            try:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(256)
            except OSError as error:
                raise NotServing(f"PING: {error}") from error
        if not answer.startswith(b"+PONG"):
            raise NotServing(f"PING is answered with {answer!r}")
