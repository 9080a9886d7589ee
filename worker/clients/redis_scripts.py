"""Lua scripts on Redis, for what several processes do to one thing at a time: the queues of the review console.

All keys of a `Scripts` share a hash tag, so that a cluster keeps them on one node and a script may touch any of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.clients.redis_connect import Connection
from worker.settings import RedisSettings


class Scripts(Connection):
    """Calls scripts with the prefix of our keys. Thread-safe. Raises Unavailable where the server does not answer."""

    def __init__(self, settings: RedisSettings, tag: str, sources: Mapping[str, str]) -> None:
        super().__init__(settings)
        self.base = f"{settings.key_prefix}{{{tag}}}:"
        self._sources = sources
        self._scripts: dict[str, Any] = {}

    def call(self, name: str, *arguments: str | float, key: str | None = None) -> Any:
        """The answer of script `name`; `key` stands in for the prefix where a script is on one key alone."""
        with self._unavailable():
            client = self._connected()
            script = self._scripts.get(name)
            if script is None:
                script = self._scripts[name] = client.register_script(self._sources[name])
            return script(keys=[self.base if key is None else key], args=list(arguments))

    def do(self, command: str, key: str, *arguments: Any, **options: Any) -> Any:
        """One command of the client on `key` below our prefix."""
        with self._unavailable():
            return getattr(self._connected(), command)(self.base + key, *arguments, **options)

    def run_id(self) -> str:
        """Names the server process that has our keys: another one may have lost what was written last."""
        return str(self.info("server")["run_id"])

    def info(self, section: str) -> dict[str, Any]:
        """What the server that has our keys says of itself."""
        with self._unavailable():
            client = self._connected()
            # Of a cluster's nodes not whichever is asked first.
            options = {"target_nodes": client.get_node_from_key(self.base)} if self._settings.mode == "cluster" else {}
            found: dict[str, Any] = client.info(section, **options)
            return found

    def forget_all(self) -> None:
        """Deletes every key below our prefix: for benchmarks on keys of their own."""
        with self._unavailable():
            client = self._connected()
            batch: list[str] = []
            for key in client.scan_iter(f"{self.base.replace('[', '?')}*", count=1000):
                batch.append(key)
                if len(batch) >= 1000:
                    client.unlink(*batch)
                    batch.clear()
            if batch:
                client.unlink(*batch)
