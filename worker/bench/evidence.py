"""`bench evidence`: what reading evidence costs a child, beside reading the header and decoding the crop of the same
image, turn by turn in one run, for the sample images that carry no mark.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from worker.crop import CROP_PX
from worker.demo import SAMPLES
from worker.errors import SettingsError
from worker.examine.body import Body, Header
from worker.examine.provenance.marks import find_marks
from worker.examine.provenance.reader import ProvenanceReader

ROUNDS = 5
_ENOUGH = 1 << 30


def measure_evidence(rounds: int = ROUNDS) -> dict[str, Any]:
    """Microseconds of processor time an image: the best of the rounds. Raises SettingsError without samples."""
    images = [path.read_bytes() for path in sorted(SAMPLES.rglob("*")) if path.is_file()]
    if not images:
        raise SettingsError([f"bench: no sample images at {SAMPLES}: run it in a checkout"])
    body = Body("cpu", ProvenanceReader(None))
    body.warm_up()
    headers = [body.read(data, _ENOUGH, _ENOUGH) for data in images]
    plain = [header for header in headers if not find_marks(header.data, header.info.format)]
    row = np.zeros((CROP_PX, CROP_PX, 3), np.uint8)

    def decode(header: Header) -> None:
        header = body.read(header.data, _ENOUGH, _ENOUGH)
        if not header.together or body.decode_together([header], [row]):
            body.decode_one(header, row)

    def read(header: Header) -> None:
        body.findings(header, row, with_evidence=True)

    decode_us = evidence_us = float(_ENOUGH)
    for _ in range(rounds):
        decode_us = min(decode_us, _microseconds(decode, plain))
        evidence_us = min(evidence_us, _microseconds(read, plain))
    body.close()
    return {
        "images": len(images),
        "images_without_marks": len(plain),
        "decode_us": decode_us,
        "evidence_us": evidence_us,
        "evidence_share_of_decode": evidence_us / decode_us,
    }


def _microseconds(work: Callable[[Header], None], headers: list[Header]) -> float:
    started = time.process_time()
    for header in headers:
        work(header)
    return (time.process_time() - started) / len(headers) * 1e6
