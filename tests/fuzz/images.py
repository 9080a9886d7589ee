"""Damaged images through what a child does, confined as a child is: headers, both decoders, evidence.

A finding is a death, a hang, an exception that is no rejection, or two decoders that accept the same bytes differently.
The parent starts a child anew behind each image that ends one, and knows by number which it was.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.fuzz.mutants import mutant, seeds

ROOT = Path(__file__).parents[2]
LIMIT_BYTES, LIMIT_PX = 5_000_000, 4_000_000
MEMORY_BYTES = 512 << 20
HANG_S, START_S = 20.0, 600.0
SLOW_MS = 2000.0


@dataclass
class Found:
    """What came out: outcomes by kind, findings by number, the slowest, and memory after the first and last images."""

    images: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    slowest_ms: float = 0.0
    grown_mb: float = 0.0

    def report(self) -> dict[str, Any]:
        return {**vars(self), "outcomes": dict(self.outcomes.most_common())}


def fuzz(first: int, count: int, seed: int = 0) -> Found:
    """Images `first` to `first + count - 1`."""
    found, at, end = Found(), first, first + count
    while at < end:
        child = _Child(at, end - at, seed)
        for message in child.messages():
            _take(found, message)
        at = child.last + 1
        if child.ended_by:
            found.findings.append({"image": child.last, "kind": child.ended_by})
        if not child.begun:
            break  # it does not even start: nothing can be said of the rest
    found.images = count
    return found


def _take(found: Found, message: dict[str, Any]) -> None:
    found.outcomes[message["outcome"]] += 1
    found.slowest_ms = max(found.slowest_ms, message["ms"])
    if message["ms"] > SLOW_MS:
        found.findings.append({"image": message["image"], "kind": "slow", "ms": message["ms"]})
    found.findings += [{"image": message["image"], "kind": finding} for finding in message.get("findings", [])]
    found.grown_mb = max(found.grown_mb, message.get("grown_mb", 0.0))


class _Child:
    """A process that examines images; `last` is the one it has or had in hand."""

    def __init__(self, first: int, count: int, seed: int) -> None:
        self.last, self.begun, self.ended_by = first - 1, False, ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.images", str(first), str(count), str(seed)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )

    def messages(self) -> Iterator[dict[str, Any]]:
        out = self._process.stdout
        assert out is not None
        rest = b""
        while True:
            # The first comes after decoders and seeds are there.
            patience_s = HANG_S if self.begun else START_S
            if not select.select([out], [], [], patience_s)[0]:
                self.ended_by = "hang"
                self._process.kill()
                break
            piece = os.read(out.fileno(), 65536)
            if not piece:
                break
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "outcome" in message:
                    yield message
                elif "begin" in message:
                    self.last, self.begun = message["begin"], True
        code = self._process.wait()
        if code and not self.ended_by:
            self.ended_by = f"died with {code}"


def _examine(body: Any, data: bytes) -> tuple[str, list[str]]:
    """The outcome, and what is wrong with how it came about."""
    from worker.errors import Rejected

    findings: list[str] = []
    pillow, dali = np.zeros((2, 224, 224, 3), np.uint8)
    try:
        header = body.read(data, LIMIT_BYTES, LIMIT_PX)
    except Rejected as rejected:
        return f"header {rejected.reason}", findings
    refused = body.decode_together([header], [dali]) if header.together else {0}
    try:
        body.decode_one(header, pillow)
    except Rejected as rejected:
        if not refused:
            findings.append(f"DALI accepts what Pillow does not: {rejected}")
        return f"decode {rejected.reason}", findings
    except MemoryError:
        return "decode memory", findings
    if not refused and not np.array_equal(dali, pillow):
        findings.append("DALI and Pillow see other pixels")
    body.findings(header, pillow, with_evidence=True)
    return f"verdict {header.info.format}", findings


def _resident_mb() -> float:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _main(first: int, count: int, seed: int) -> None:
    from worker.examine import child
    from worker.examine.body import Body
    from worker.examine.confine import confine
    from worker.examine.provenance.reader import ProvenanceReader

    output = os.dup(1)
    seeds()
    Body(device="none").warm_up()
    child._limit_memory(MEMORY_BYTES)
    refusals = confine(keep_files=[output])
    body = Body("cpu", ProvenanceReader(None))
    body.warm_up()

    def tell(**message: Any) -> None:
        os.write(output, json.dumps(message).encode() + b"\n")

    if refusals:
        tell(refused=refusals)
    settled = 0.0
    for number in range(first, first + count):
        data = mutant(number, seed)
        tell(begin=number)
        started = time.monotonic()
        try:
            outcome, findings = _examine(body, data)
        except Exception as error:  # noqa: BLE001 - what the fuzzer is for
            outcome, findings = "exception", [f"{type(error).__name__}: {error}"[:300]]
        ms = 1000 * (time.monotonic() - started)
        if number - first == min(2000, count // 2):
            settled = _resident_mb()
        grown = _resident_mb() - settled if settled else 0.0
        tell(image=number, outcome=outcome, ms=round(ms, 1), findings=findings, grown_mb=round(grown, 1))


if __name__ == "__main__":
    _main(*(int(argument) for argument in sys.argv[1:4]))
