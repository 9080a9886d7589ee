"""The worker's end of the zygote: starting it, asking it for children, hearing of their ends.

Its environment is made of what an interpreter and the decoders need, by name; all else stays here, secrets among it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import worker
from worker.crop import View
from worker.examine.block import Block
from worker.examine.zygote import MESSAGE_BYTES

# PYTHON*: where its modules are. LD_*: where its libraries are. CUDA_* and NVIDIA_*: which GPU it may see.
_KEPT = ("PATH", "HOME", "TZ", "LANG", "VIRTUAL_ENV", "TMPDIR")
_KEPT_PREFIXES = ("PYTHON", "LC_", "LD_", "CUDA_", "NVIDIA_", "DALI_")
_END_S = 1.0
# NumPy's linear algebra would start a thread per core, in a process that is forked.
_SET = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of `environ` children get. Modules are found where this process finds them, whatever folder is current."""
    kept = {name: value for name, value in environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)} | _SET
    if "PYTHONPATH" in kept:
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(p).absolute()) for p in kept["PYTHONPATH"].split(os.pathsep) if p)
    return kept


class Zygote:
    """A zygote that runs, or has broken: then its channel ends."""

    def __init__(self, config: Mapping[str, Any], regions: Sequence[int]) -> None:
        """`regions`: descriptors of the shared memory that pixels go to."""
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.examine.zygote", str(theirs.fileno())],
                env=environment(os.environ),
                cwd=Path(worker.__file__).parents[1],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # what C libraries print is no line of our log
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's signals are for the worker
            )
        socket.send_fds(self.channel, [json.dumps(config).encode()], list(regions))
        self._capacity_bytes = int(config["capacity_bytes"])
        self._size_px = (View.parse(config["view"]) if config.get("view") else View()).size

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, number: int, *, nice: int, device: str) -> tuple[socket.socket, Block]:
        """Ask for a child that will be called `number`; its channel and its block."""
        channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        block = Block.make(self._capacity_bytes, self._size_px)
        order = {"fork": number, "nice": nice, "device": device}
        with theirs:
            socket.send_fds(self.channel, [json.dumps(order).encode()], [theirs.fileno(), block.file])
        channel.setblocking(False)
        return channel, block

    def kill(self, number: int) -> None:
        """End a child that does not end by itself; its end is told like any other."""
        self.channel.send(json.dumps({"kill": number}).encode())

    def hear(self) -> dict[str, Any] | None:
        """The next thing it says, once its channel has something; None where it has broken."""
        try:
            message = self.channel.recv(MESSAGE_BYTES)
        except ConnectionResetError:
            return None
        return json.loads(message) if message else None

    def close(self) -> int:
        """End it and, with it, its children: it hears that we have hung up. Its exit code."""
        self.channel.close()
        try:
            return self._process.wait(_END_S)
        except subprocess.TimeoutExpired:  # it is still importing
            self._process.kill()
            return self._process.wait()
