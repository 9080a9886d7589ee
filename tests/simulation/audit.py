"""Was the contract kept? Reads what was sent and the log of effects; shares no code with the worker.

Each record has exactly one outcome, the right one; a verdict is in Redis before it is on the topic; nothing is
committed before its outcome is acknowledged; the later record of an id wins; a record is published twice only where it
had to be redone.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.simulation import contested
from tests.simulation.plan import BY_REFERENCE, EXPECTED, Plan, Sent

Event = tuple[Any, ...]
INCOMING, RETRY = "images.incoming", "images.retry"
VERDICTS, REJECTED = "images.verdicts", "images.rejected"
MAX_ATTEMPTS = 3
TO_HALT_S = 3.0  # from the end of the drain: a last step of each stage, the last commit, leaving the group
HEADS = ("linear", "knn", "svm")
ROUNDING = 1e-6  # a score is written with as few digits as tell it from its neighbours in float32


@dataclass(frozen=True, slots=True)
class Finding:
    """A breach: the rule, what happened, and the records (partition, offset) or ids that it is about."""

    rule: str
    text: str
    about: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


class Auditor:
    """Walks once through the events of a history."""

    def __init__(self, plan: Plan, policy_version: str) -> None:
        self._plan = plan
        self._policy_version = policy_version
        self._sent = {one.trace_id: one for one in plan.sent}
        self._by_partition: dict[int, list[Sent]] = defaultdict(list)
        for one in plan.sent:
            self._by_partition[one.partition].append(one)
        self._by_id: dict[str, list[Sent]] = defaultdict(list)
        for one in plan.sent:
            self._by_id[one.image_id].append(one)
        self._parsed: dict[str, dict[str, Any]] = {}  # what was saved, by its text
        self._saved: set[str] = set()
        self._stored: dict[str, int] = {}  # by id: the offset of the record whose verdict Redis has
        self._last_saved: dict[str, int] = {}  # the same, and the last of them: also what Redis itself has forgotten
        self._records: dict[int, tuple[Sent, int | None]] = {}  # by number: what was written; its place where parked
        self._parked: dict[int, Sent] = {}  # by offset in the retry topic
        self._last_parked: dict[int, int] = {}  # by trace id: where its last copy is that was acknowledged
        self._acknowledged: set[int] = set()  # trace ids
        self._finished: set[tuple[str, int]] = set()  # and by whom
        self._written: Counter[int] = Counter()
        self._deliveries: Counter[int] = Counter()
        self._from_incoming: Counter[int] = Counter()  # of them: the deliveries that were not of a parked copy
        self._unacknowledged: Counter[int] = Counter()
        self._expelled: set[int] = set()
        self._committed: dict[Any, int] = {}
        self._rewound: set[Any] = set()
        self._stops: dict[str, float] = {}  # by worker: when it must have ended
        self._now = 0.0  # when the event was that is looked at
        self.findings: list[Finding] = []

    def audit(self, events: Iterable[Event], stored: dict[str, str], lost: Container[str]) -> list[Finding]:
        """All breaches. `stored`: the verdicts in Redis at the end; `lost`: ids that Redis itself has forgotten."""
        steps = {
            "saved": self._on_saved,
            "written": self._on_written,
            "acknowledged": self._on_acknowledged,
            "committed": self._on_committed,
            "delivered": self._on_delivered,
            "expelled": self._on_expelled,
            "rewound": self._on_rewound,
            "stop": self._on_stop,
            "ended": self._on_ended,
            "failover": self._on_failover,
        }
        for kind, self._now, _, *details in events:
            step = steps.get(kind)
            if step is not None:
                step(*details)
        self._check_outcomes()
        self._check_latest(stored, lost)
        return self.findings

    def _find(self, rule: str, text: str, *about: Any) -> None:
        self.findings.append(Finding(rule, text, about))

    # -- events

    def _on_saved(self, by: str, image_id: str, as_json: str) -> None:
        verdict = self._parsed[as_json] = json.loads(as_json)
        self._saved.add(verdict["verdict_id"])
        if verdict["image_id"] != image_id:
            self._find("redis", f"the verdict of {verdict['image_id']} is stored under {image_id}", image_id)
        offset, before = verdict["origin"]["offset"], self._stored.get(image_id, -1)
        self._stored[image_id] = offset
        self._last_saved[image_id] = max(offset, self._last_saved.get(image_id, -1))
        if offset < before and image_id not in self._plan.astray:
            one = next(one for one in self._by_id[image_id] if one.offset == offset)
            was_parked = one in self._parked.values() and self._from_incoming[one.trace_id] == 1
            if was_parked and one.partition not in self._expelled:
                self._find("overtaken", f"{by} stored {one.kind} {offset}, which was parked, over {before}", image_id)

    def _on_written(self, by: str, written: Any) -> None:
        headers = dict(written.headers)
        traced = headers.get("traceparent") or b""
        one = self._sent.get(int(traced[3:35] or b"0", 16))
        if one is None:
            self._find("trace", f"a record on {written.topic} continues no trace that was sent: {traced!r}")
            return
        where = (one.partition, one.offset)
        self._records[written.number] = (one, written.place)
        if written.topic == RETRY:
            self._check_parked(one, written, headers)
            return
        self._written[one.trace_id] += 1
        reasons = EXPECTED[one.kind]
        if written.topic == VERDICTS:
            if reasons:
                self._find("outcome", f"a verdict on {one.kind} {where}, which should be rejected", where)
            else:
                text = written.value.decode()
                self._check_verdict(one, self._parsed.get(text) or json.loads(text), written.key, headers)
        elif written.topic == REJECTED:
            self._check_rejection(one, written, headers, reasons)
        else:
            self._find("topic", f"{by} wrote to {written.topic}", where)

    def _check_verdict(self, one: Sent, verdict: dict[str, Any], key: bytes | None, headers: dict[str, Any]) -> None:
        where = (one.partition, one.offset)
        version = verdict["model"]["version"]
        expected = self._verdict_ids(one, verdict)
        if (verdict["image_id"], verdict["sha256"], key) != (one.image_id, one.sha256, one.image_id.encode()):
            told = (verdict["image_id"], verdict["sha256"][:8], key)
            self._find("outcome", f"{where} has the verdict of another record: {told}", where)
        elif verdict["verdict_id"] != headers["ce_id"].decode() or verdict["verdict_id"] not in expected:
            self._find("verdict_id", f"{where}: {verdict['verdict_id']}, expected {' or '.join(expected)}", where)
        score = (one.number + 16 * int(version)) / 128
        scores = [verdict["scores"][head] for head in HEADS]
        expected_scores = (score, score / 2, score / 4)
        if any(abs(is_ - should) > ROUNDING for is_, should in zip(scores, expected_scores, strict=True)):
            self._find("scores", f"{where}: {scores} by model {version}, expected {score} and its parts", where)
        self._check_detector(one, verdict)
        was_overtaken = self._last_saved.get(one.image_id, -1) > one.offset  # parked, or judged again
        if verdict["verdict_id"] not in self._saved and not was_overtaken:
            self._find("redis first", f"the verdict on {where} is on the topic and was never in Redis", where)

    def _verdict_ids(self, one: Sent, verdict: dict[str, Any]) -> list[str]:
        """Of a detector that might have been asked the verdict does not tell the version; the rival has none."""
        asked = verdict.get("detectors")
        versions = [verdict["model"]["version"]]
        if self._plan.has_detector and asked is not None:
            others = [found["version"] for found in asked.values()] or contested.VERSIONS
            versions = [f"{versions[0]}+{contested.NAME}:{other}" for other in others]
        texts = ("\n".join([one.image_id, one.sha256, version, self._policy_version]) for version in versions)
        return [str(uuid.uuid5(uuid.NAMESPACE_URL, f"assay:{text}")) for text in texts]

    def _check_detector(self, one: Sent, verdict: dict[str, Any]) -> None:
        """It is asked about the images that it is for, and about no others; what it says is of this image."""
        where, asked = (one.partition, one.offset), verdict.get("detectors")
        if asked is None:
            return
        is_for = self._plan.has_detector and verdict["scores"]["linear"] >= contested.FROM
        if bool(asked) != is_for:
            self._find("detector", f"{where}: {asked} with {verdict['scores']}", where)
        for found in asked.values():
            said, should = found["scores"]["linear"], contested.score(one.number, found["version"])
            if abs(said - should) > ROUNDING:
                self._find("detector", f"{where}: {said} by {found['version']}, expected {should}", where)

    def _check_rejection(self, one: Sent, written: Any, headers: dict[str, Any], reasons: Sequence[str]) -> None:
        where = (one.partition, one.offset)
        reason = headers["reject_reason"].decode()
        if reason not in reasons:
            expected = " or ".join(reasons) or "a verdict"
            self._find("outcome", f"{where} ({one.kind}) was rejected as {reason}; expected {expected}", where)
        origin = (int(headers["original_partition"]), int(headers["original_offset"]))
        if origin != where or (written.key, written.value) != (one.key, one.value):
            self._find(
                "rejection", f"{where} is not as it came: from {origin}, {written.key!r} {written.value!r}", where
            )
        attempts = int(headers["reject_attempts"])
        if reason == "inference_failed" and attempts != MAX_ATTEMPTS:
            self._find("attempts", f"{where} was rejected after {attempts} attempts, not {MAX_ATTEMPTS}", where)

    def _check_parked(self, one: Sent, written: Any, headers: dict[str, Any]) -> None:
        where = (one.partition, one.offset)
        self._parked[written.place] = one
        origin = (int(headers["original_partition"]), int(headers["original_offset"]))
        if one.kind not in BY_REFERENCE or one.kind == "denied":
            self._find("parked", f"{where} ({one.kind}) was parked", where)
        if origin != where or (written.key, written.value) != (one.key, one.value):
            self._find("parked", f"{where} is not as it came: from {origin}, {written.key!r} {written.value!r}", where)

    def _on_acknowledged(self, by: str, numbers: list[int]) -> None:
        for number in numbers:
            found = self._records.get(number)
            if found is None:
                continue
            one, place = found
            self._finished.add((by, one.trace_id))
            if place is None:
                self._acknowledged.add(one.trace_id)
            else:
                self._last_parked[one.trace_id] = max(place, self._last_parked.get(one.trace_id, -1))

    def _on_committed(self, by: str, partition: Any, offset: int, before: int | None, is_anothers: bool) -> None:
        self._committed[partition] = offset
        if is_anothers:
            self._find("commit", f"{by} committed {offset} of partition {partition}, which is another's", partition)
        if before is not None and offset < before and not is_anothers and partition not in self._rewound:
            self._find("commit", f"{by} took the commit of partition {partition} back: {before} to {offset}", partition)
        if partition.topic == RETRY:
            at = [(place, one) for place, one in self._parked.items() if (before or 0) <= place < offset]
        else:
            at = [(-1, one) for one in self._by_partition[partition.partition] if one.offset < offset]
        for place, one in at:
            if one.trace_id not in self._acknowledged and self._last_parked.get(one.trace_id, -1) <= place:
                where = (one.partition, one.offset)
                self._find("commit", f"{by} committed {offset} before the outcome of {where} was acknowledged", where)

    def _on_failover(self, forgotten: list[str]) -> None:
        for image_id in forgotten:
            self._stored.pop(image_id, None)

    def _on_delivered(self, _by: str, topic: str, traces: list[bytes]) -> None:
        numbers = [int(traced[3:35], 16) for traced in traces]
        self._deliveries.update(numbers)
        if topic == INCOMING:
            self._from_incoming.update(numbers)

    def _on_expelled(self, _by: str, partitions: list[Any]) -> None:
        self._expelled.update(one.partition for one in partitions)

    def _on_rewound(self, _by: str, partition: Any, _position: int) -> None:
        self._rewound.add(partition)  # what is read again is committed again

    def _on_stop(self, who: str, drain_s: float) -> None:
        self._stops.setdefault(who, self._now + drain_s + TO_HALT_S)

    def _on_ended(self, by: str, how: str) -> None:
        self._check_stop(by)
        self._check_drain(by, how)

    def _check_stop(self, by: str) -> None:
        late_s = self._now - self._stops.get(by, self._now)
        if late_s > 0:
            self._find("stop", f"{by} ended {late_s:.1f} s later than it has to where it is told to stop")

    def _check_drain(self, by: str, how: str) -> None:
        """Where neither Kafka nor the group is in trouble, a worker that drains commits all that it has finished."""
        plan = self._plan
        if how != "drained" or plan.kafka.windows or plan.kafka.rate or plan.moves or plan.workers > 1:
            return
        for partition, records in self._by_partition.items():
            for one in records:
                if one.offset < self._committed.get((INCOMING, partition), 0):
                    continue
                if (by, one.trace_id) not in self._finished:
                    break
                where = (partition, one.offset)
                self._find("drain", f"{by} has drained without a commit of {where}, which it had finished", where)

    # -- the end

    def _check_outcomes(self) -> None:
        for one in self._plan.sent:
            where = (one.partition, one.offset)
            if one.trace_id not in self._acknowledged:
                self._find("outcome", f"{where} ({one.kind}) has no outcome that was acknowledged", where)

    def check_repeats(self, repeats: dict[int, int]) -> None:
        """`repeats`: by trace id, how often a record had to be written again because an acknowledgement was lost."""
        for trace, times in self._written.items():
            allowed = max(1, self._deliveries[trace]) + repeats.get(trace, 0)
            if times > allowed:
                one = self._sent[trace]
                where = (one.partition, one.offset)
                self._find("once", f"{where} was published {times} times; delivered {allowed} times at most", where)

    def _check_latest(self, stored: dict[str, str], lost: Container[str]) -> None:
        for image_id, records in self._by_id.items():
            judged = [one for one in records if not EXPECTED[one.kind]]
            last = judged[-1] if judged else None
            if image_id in self._plan.astray or {one.partition for one in records} & self._expelled:
                continue  # no order between partitions, nor between a member and those who believe it dead
            as_json = stored.get(image_id)
            if last is None:
                if as_json is not None:
                    self._find("latest", f"Redis has a verdict on {image_id}, which was only rejected", image_id)
            elif as_json is None:
                if image_id not in lost:
                    self._find("latest", f"Redis has no verdict on {image_id}", image_id)
            elif self._parsed[as_json]["sha256"] != last.sha256 and image_id not in lost:
                where = (last.partition, last.offset)
                self._find("latest", f"Redis has an older verdict on {image_id} than that of {where}", image_id)
