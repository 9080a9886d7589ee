"""`policy backtest`: the stored verdicts of `images.verdicts`, the latest of each image, decided anew.

In flat memory, whatever the topic holds: verdicts are laid into files by a hash of their image id, and one file after
the other is read, which has all verdicts of its images. With a limit the images with the lowest hashes are taken: the
same ones for every policy, from all of the topic.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

from pydantic import ValidationError

from worker.clients.kafka_topics import Reader
from worker.contract import Record, Verdict
from worker.errors import SettingsError
from worker.policy.comparison import Comparison
from worker.settings import KafkaSettings
from worker.stages.decide import timestamp

_CLOCKS_MS = 600_000  # how far a record's timestamp may be off the time in its verdict
_CARD_DIGITS = 16  # of a SHA-256, on the card that `train.main calibrate` writes
_PER_FILE = 8192
_MAX_FILES = 512
_HEAD = struct.Struct(">16sIqqI")  # hash of the id, partition, offset, timestamp in ms, size of what follows
Progress = Callable[[int, int], None]  # (done, of how many)


@dataclass(frozen=True, slots=True)
class Skipped:
    """Records that were no verdict, and verdicts that a later one of their image replaced."""

    unreadable: int
    replaced: int


def backtest(
    settings: KafkaSettings, comparison: Comparison, *, since_ms: int | None, limit: int | None, report: Progress
) -> Skipped:
    """Let `comparison` decide the stored verdicts anew. Raises Unavailable."""
    start_ms = None if since_ms is None else max(0, since_ms - _CLOCKS_MS)
    with contextlib.closing(Reader(settings, settings.verdicts_topic, start_ms)) as reader:
        expected = sum(reader.end.values())
        with LatestVerdicts(expected) as verdicts:
            for number, record in enumerate(reader.until_end(), 1):
                verdicts.add(record)
                if not number % 1000:
                    report(number, 2 * expected)
            for number, verdict in enumerate(verdicts.latest(), 1):
                if since_ms is not None and verdict.decided_at < timestamp(since_ms / 1000):
                    continue
                if limit is not None and comparison.judged >= limit:
                    break
                comparison.add(verdict)
                if not number % 1000:
                    report(expected + number, 2 * expected)
            return Skipped(verdicts.unreadable, verdicts.replaced)


class LatestVerdicts:
    """Verdict records in any number, on disk; `latest` gives those that no later one of their image replaced."""

    def __init__(self, expected: int) -> None:
        self._count = max(1, min(_MAX_FILES, expected // _PER_FILE))
        self._closing = contextlib.ExitStack()
        self._files: list[BinaryIO] = []
        self.unreadable = 0
        self.replaced = 0

    def __enter__(self) -> Self:
        directory = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="assay-backtest-")))
        self._files = [
            self._closing.enter_context((directory / str(number)).open("w+b")) for number in range(self._count)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def add(self, record: Record) -> None:
        """Keep one record."""
        if not record.value:
            self.unreadable += 1
            return
        # By the key, which is the image id: nothing has to be parsed to know which verdicts belong together.
        digest = hashlib.blake2b(record.key or b"", digest_size=16).digest()
        file = self._files[int.from_bytes(digest[:4]) * self._count >> 32]
        file.write(_HEAD.pack(digest, record.partition, record.offset, record.timestamp_ms, len(record.value)))
        file.write(record.value)

    def latest(self) -> Iterator[Verdict]:
        """In the order of the ids' hashes."""
        for file in self._files:
            file.seek(0)
            newest: dict[bytes, tuple[int, int, int, bytes]] = {}
            for digest, partition, offset, timestamp_ms, value in _entries(file):
                held = newest.get(digest)
                if held is not None:
                    self.replaced += 1
                # Within a partition the offset says which is later; between two only the clocks do.
                if held is None or (offset > held[1] if partition == held[0] else timestamp_ms >= held[2]):
                    newest[digest] = (partition, offset, timestamp_ms, value)
            for digest in sorted(newest):
                try:
                    yield Verdict.model_validate_json(newest[digest][3])
                except ValidationError:
                    self.unreadable += 1


def _entries(file: BinaryIO) -> Iterator[tuple[bytes, int, int, int, bytes]]:
    while head := file.read(_HEAD.size):
        digest, partition, offset, timestamp_ms, size = _HEAD.unpack(head)
        yield digest, partition, offset, timestamp_ms, file.read(size)


def calibrated_on(policy_file: Path, labels: Mapping[str, bool]) -> int:
    """How many of these images (by SHA-256) the policy was calibrated on, as the card beside it says; 0 without one."""
    try:
        photographs = json.loads(policy_file.with_suffix(".card.json").read_text())["photographs"]
        known = {str(name) for names in photographs.values() for name in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0
    return sum(sha256[:_CARD_DIGITS] in known for sha256 in labels)


def labels_of(folder: Path) -> dict[str, bool]:
    """SHA-256 -> is it fake?, of the images below `folder/real` and `folder/fake`. Raises SettingsError."""
    found: dict[str, bool] = {}
    for kind in ("real", "fake"):
        for path in (folder / kind).rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    found[hashlib.file_digest(file, "sha256").hexdigest()] = kind == "fake"
    if not found:
        raise SettingsError([f"--labels {folder}: a folder with real/ and fake/ inside is expected"])
    return found
