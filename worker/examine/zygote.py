"""The process that children are forked from: it imports the decoders and warms them up once, and never sees an image.

So a child that died is replaced in some 20 ms, where a fresh interpreter takes two seconds, and all share the memory of
what was imported. It is started as a program of its own, with an environment that holds no secrets, before the worker
has any: `python -m worker.examine.zygote CONTROL`, the descriptor of the socket over which it is told what to do.
"""

from __future__ import annotations

import gc
import json
import mmap
import os
import selectors
import signal
import socket
import sys
from typing import Any

MESSAGE_BYTES = 65_536
MAX_REGIONS = 250  # descriptors in one message: SCM_MAX_FD is 253


def main(control_file: int) -> None:
    """Read the configuration, warm up, then fork whenever asked, until the worker hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the worker, which hangs up when it has drained
    control = socket.socket(fileno=control_file)
    message, files, _, _ = socket.recv_fds(control, MESSAGE_BYTES, MAX_REGIONS)
    if not message:
        return
    config = json.loads(message)
    regions = [mmap.mmap(file, 0) for file in files]
    for file in files:
        os.close(file)
    from worker.examine import child  # noqa: PLC0415 - this is what takes seconds

    try:
        told = child.warm_up(config)
    except Exception as error:  # noqa: BLE001 - whatever it is, the worker tells and tries again
        _send(control, {"broken": f"{type(error).__name__}: {error}"[:1000]})
        return
    gc.collect()
    gc.freeze()  # what is there now stays: a collection in a child would otherwise copy its pages
    _send(control, {"warm": told})
    _Nursery(control, config, regions).run()


class _Nursery:
    """The children, by the number that the worker gives each, with a descriptor that tells of their end."""

    def __init__(self, control: socket.socket, config: dict[str, Any], regions: list[mmap.mmap]) -> None:
        self._control = control
        self._config = config
        self._regions = regions
        self._children: dict[int, tuple[int, int]] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is not None:
                    self._bury(key.data)
                elif not self._obey():
                    self._end_all()
                    return

    def _obey(self) -> bool:
        """One order. False once the worker has hung up."""
        message, files, _, _ = socket.recv_fds(self._control, MESSAGE_BYTES, 2)
        if not message:
            return False
        order = json.loads(message)
        if "fork" in order:
            self._fork(order, *files)
        elif order["kill"] in self._children:
            signal.pidfd_send_signal(self._children[order["kill"]][1], signal.SIGKILL)
        return True

    def _fork(self, order: dict[str, Any], channel_file: int, block_file: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become_child(order, channel_file, block_file)
        os.close(channel_file)
        os.close(block_file)
        pidfd = os.pidfd_open(pid)
        self._children[order["fork"]] = (pid, pidfd)
        self._selector.register(pidfd, selectors.EVENT_READ, order["fork"])
        _send(self._control, {"forked": order["fork"], "pid": pid})

    def _become_child(self, order: dict[str, Any], channel_file: int, block_file: int) -> None:
        """Never returns. What the child does not need is closed before it begins."""
        code = 1
        try:
            self._selector.close()
            self._control.close()
            for _, pidfd in self._children.values():
                os.close(pidfd)
            from worker.examine import child  # noqa: PLC0415

            child.run({**self._config, **order}, socket.socket(fileno=channel_file), block_file, self._regions)
            code = 0
        finally:
            os._exit(code)

    def _bury(self, number: int) -> None:
        pid, pidfd = self._children.pop(number)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        _send(self._control, {"ended": number, "code": os.waitstatus_to_exitcode(status)})

    def _end_all(self) -> None:
        for pid, pidfd in self._children.values():
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(pid, 0)


def _send(control: socket.socket, message: dict[str, Any]) -> None:
    try:
        control.send(json.dumps(message).encode())
    except (BrokenPipeError, ConnectionResetError):
        sys.exit(0)  # the worker has gone


if __name__ == "__main__":
    main(int(sys.argv[1]))
