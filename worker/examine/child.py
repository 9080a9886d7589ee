"""A child: takes a job, examines its images one step after the other, answers, and waits for the next.

A step is one image, or some that one decoder takes together; before each, the block says which are in hand and for how
long. What goes wrong with one image is an answer; what goes wrong with the child is its death, and the worker's affair.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worker.crop import Pixels, View
from worker.errors import Rejected, SettingsError
from worker.examine.block import Block
from worker.examine.body import Body, Header
from worker.examine.confine import confine
from worker.examine.findings import Cost
from worker.examine.lanes import TOGETHER_BYTES
from worker.examine.provenance.reader import ProvenanceReader
from worker.examine.provenance.trust import load_anchors
from worker.examine.wire import DONE, JOB_BYTES, NO_DEVICE, READY, Failed, ForDevice, Job, Outcome, TooDear, to_json

_PR_SET_PDEATHSIG = 1
# What a decoder's threads and buffers take once, above what the zygote had.
_OWN_BYTES = 128 << 20
# A step may take this many times what its header announced, and never less than the floor: then it is a surprise.
_PATIENCE = 4.0
_FLOOR_MS = 150.0


def warm_up(config: dict[str, Any]) -> dict[str, Any]:
    """In the zygote: load all that a decode needs, and end what it started: threads do not survive a fork.

    The trust list is read here, for a child opens no files; a list that is none is told like any other trouble.
    """
    trust_path = config["trust_path"]
    config["anchors_pem"] = load_anchors(Path(trust_path) if trust_path else None)
    body = Body("none", view=_view(config)) if config["view"] else Body("cpu")
    body.warm_up()
    told = {"decoder": body.decoder}
    body.close()
    return told


def run(config: dict[str, Any], channel: socket.socket, block_file: int, regions: Sequence[mmap.mmap]) -> None:
    """Until the worker hangs up."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.nice(config["nice"])
    view = _view(config)
    block = Block(block_file, config["capacity_bytes"], (view or View()).size)
    if config["device"] == "cpu":
        _limit_memory(config["memory_bytes"])
    # What is mapped stays so. Its descriptors are closed, an mmap object's too: through one, the memory could be cut
    # short under the worker.
    confine(config["device"], keep_files=[channel.fileno()])
    try:
        reader = ProvenanceReader(config["anchors_pem"])
        body = Body("none", view=view) if view else Body(config["device"], reader)
    except SettingsError:
        channel.send(NO_DEVICE)
        return
    body.warm_up()
    worker = _Worker(config, body, block, regions)
    channel.send(READY)
    while message := channel.recv(JOB_BYTES):
        answer = to_json(worker.do(Job.parse(message)))
        block.store(answer)
        channel.send(DONE + b"%d" % len(answer))


def _view(config: dict[str, Any]) -> View | None:
    return View.parse(config["view"]) if config["view"] else None


def _limit_memory(memory_bytes: int) -> None:
    """Private memory that can be written: what allocators take, without files and what is shared (getrlimit(2))."""
    with open("/proc/self/status", encoding="ascii") as status:  # noqa: PTH123 - confined: nothing is to be imported
        now = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
    most = now + _OWN_BYTES + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


class _Worker:
    """Does jobs. One outcome for each image, in order."""

    def __init__(self, config: dict[str, Any], body: Body, block: Block, regions: Sequence[mmap.mmap]) -> None:
        self._body = body
        self._block = block
        self._regions = regions
        self._max_bytes = config["max_image_bytes"]
        self._max_pixels = config["max_image_pixels"]
        self._outcomes: dict[int, Outcome] = {}
        self._with_evidence = True

    def do(self, job: Job) -> list[Outcome]:
        self._outcomes = {}
        self._with_evidence = job.with_evidence
        rows = self._rows(job)
        rows[:] = 0
        headers = self._read_headers(job)
        together = [index for index, header in headers.items() if header.together and job.route != "pillow"]
        for group in _groups(together, headers):
            self._decode_together(group, headers, rows)
        for index in sorted(headers.keys() - self._outcomes.keys()):
            if job.route == "device":
                self._outcomes[index] = ForDevice()  # it refuses this one; Pillow's word is asked for elsewhere
            else:
                self._decode_one(index, headers[index], rows)
        return [self._outcomes[index] for index in range(len(job.places))]

    def _rows(self, job: Job) -> Pixels:
        if job.region is None:
            return self._block.crop()
        one = self._block.crop()
        offset = job.first_row * one.nbytes
        return np.ndarray((len(job.places), *one.shape[1:]), np.uint8, self._regions[job.region], offset)

    def _read_headers(self, job: Job) -> dict[int, Header]:
        """Of the images that are to be decoded here."""
        headers: dict[int, Header] = {}
        for index, (offset, size) in enumerate(job.places):
            self._block.begin([index], _FLOOR_MS)
            try:
                header = self._body.read(self._block.image(offset, size), self._max_bytes, self._max_pixels)
            except Rejected as rejected:
                self._outcomes[index] = rejected
            except MemoryError:
                self._outcomes[index] = Failed("memory", "reading the header")
            except Exception as error:  # noqa: BLE001 - a defect costs this image alone
                self._outcomes[index] = Failed("defect", f"{type(error).__name__}: {error}")
            else:
                if header.together and job.route == "apart":
                    self._outcomes[index] = ForDevice()
                elif job.most is not None and _exceeds(header.cost, job.most):
                    self._outcomes[index] = TooDear(header.cost)
                else:
                    headers[index] = header
            self._block.end([index])
        return headers

    def _decode_together(self, group: list[int], headers: dict[int, Header], rows: Pixels) -> None:
        """Those that the decoder refuses are left for `_decode_one`."""
        self._block.begin(group, _allowed_ms(sum(headers[index].cost.effort_ms for index in group)))
        refused = self._body.decode_together([headers[index] for index in group], [rows[index] for index in group])
        done = [index for position, index in enumerate(group) if position not in refused]
        for index in done:
            self._outcomes[index] = self._found(index, headers[index], rows)
        self._block.end(group)

    def _found(self, index: int, header: Header, rows: Pixels) -> Outcome:
        try:
            return self._body.findings(header, rows[index], with_evidence=self._with_evidence)
        except MemoryError:
            return Failed("memory", "reading evidence")
        except Exception as error:  # noqa: BLE001 - a defect costs this image alone
            return Failed("defect", f"{type(error).__name__}: {error}")

    def _decode_one(self, index: int, header: Header, rows: Pixels) -> None:
        self._block.begin([index], _allowed_ms(header.cost.effort_ms))
        try:
            self._body.decode_one(header, rows[index])
            self._outcomes[index] = self._found(index, header, rows)
        except Rejected as rejected:
            self._outcomes[index] = rejected
        except MemoryError:
            self._outcomes[index] = Failed("memory", "decoding")
        except Exception as error:  # noqa: BLE001 - a defect costs this image alone
            self._outcomes[index] = Failed("defect", f"{type(error).__name__}: {error}")
        self._block.end([index])


def _allowed_ms(effort_ms: float) -> float:
    return max(_FLOOR_MS, _PATIENCE * effort_ms)


def _exceeds(cost: Cost, most: Cost) -> bool:
    return cost.effort_ms > most.effort_ms or cost.decoded_bytes > most.decoded_bytes


def _groups(indices: Sequence[int], headers: dict[int, Header]) -> list[list[int]]:
    """Runs of images whose decoded sizes add up to TOGETHER_BYTES at most; a larger one stands alone."""
    groups: list[list[int]] = []
    held = TOGETHER_BYTES
    for index in indices:
        size = headers[index].cost.decoded_bytes
        if not groups or held + size > TOGETHER_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(index)
        held += size
    return groups
