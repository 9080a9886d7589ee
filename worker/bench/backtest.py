"""`bench backtest`: memory and speed of `policy backtest` over many stored verdicts, by the command itself on a topic
of its own; a tenth as many first, so that memory that grows with the topic is seen.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from worker.bench import load
from worker.clients.kafka_producer import Outgoing, Producer
from worker.clients.kafka_topics import publish
from worker.contract import ImageInfo, ModelRef, Origin, Scores, Timings, Verdict, verdict_id
from worker.policy import Facts, load_policy
from worker.settings import Settings, variable

_BATCH = 2000
_MODEL = ModelRef(name="code", version="0123456789ab")
_FORMATS = ("jpeg", "jpeg", "jpeg", "png", "webp")
_POLICY = """
[[rules]]
when = 'evidence.declared == "generated" || (has(headers.tenant) && headers.tenant == "kids" && scores.linear >= 0.5)'
decision = "fake"
[[rules]]
when = 'scores.linear >= 0.7'
decision = "fake"
[[rules]]
when = 'scores.linear < 0.3'
decision = "real"
"""


@dataclass(frozen=True, slots=True)
class BacktestRun:
    """One run of the command. `peak_bytes`: resident; `cpu_s`: user and system; `verdicts_per_s`: by the wall clock."""

    verdicts: int
    judged: int
    changed: int
    peak_bytes: int
    cpu_s: float
    verdicts_per_s: float


def measure_backtest(
    settings: Settings, config: Path | None, *, images: int, report: Callable[[str], None]
) -> list[BacktestRun]:
    """The command over a tenth of `images` verdicts, then over all. Raises Unavailable where Kafka does not answer."""
    runs = []
    for count in (max(1, images // 10), images):
        runs.append(_run(settings, config, count))
        report(f"{count} verdicts: {runs[-1].peak_bytes / 1e6:.0f} MB, {runs[-1].verdicts_per_s:.0f} a second")
    return runs


def stored_verdicts(count: int) -> Iterator[Verdict]:
    """As a worker with the built-in policy writes them: each of another image, scores and formats in turn."""
    policy = load_policy(None)
    for number in range(count):
        linear = (number * 7919 % 10_000) / 10_000
        side = 100 + number * 31 % 1500
        image = ImageInfo(format=_FORMATS[number % 5], width=side, height=side + 9, bytes=48_211, frames=1)
        scores = Scores(linear=linear, knn=0.5, svm=0.5)
        found = policy.decide(Facts(scores, image))
        sha256 = f"{number:064x}"
        yield Verdict(
            verdict_id=verdict_id(f"upload/{number}", sha256, _MODEL.version, policy.ref.version),
            image_id=f"upload/{number}",
            sha256=sha256,
            decision=found.decision,
            reasons=list(found.reasons),
            scores=scores,
            model=_MODEL,
            policy=policy.ref,
            image=image,
            source="model",
            decided_at="2026-11-21T12:00:00.000Z",
            timings_ms=Timings(queued=3.1, decode=1.9, infer=22.4, total=30.2),
            origin=Origin(topic="images.incoming", partition=number % load.PARTITIONS, offset=number, uri=None),
        )


def _run(settings: Settings, config: Path | None, count: int) -> BacktestRun:
    with load.own_topics(settings) as environment, tempfile.TemporaryDirectory(prefix="assay-bench-") as folder:
        producer = Producer(settings.kafka)
        try:
            _fill(producer, environment[variable("kafka", "verdicts_topic")], count)
        finally:
            producer.close()
        policy = Path(folder) / "policy.toml"
        policy.write_text(_POLICY)
        command = [sys.executable, "-m", "worker", "policy", "backtest", str(policy), "--json"]
        command += ["--config", str(config)] if config else []
        answer = Path(folder) / "answer.json"
        started = time.monotonic()
        with answer.open("wb") as out:
            process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"policy backtest ended with {process.returncode}")
        seconds = time.monotonic() - started
        document = json.loads(answer.read_text())
    return BacktestRun(
        verdicts=count,
        judged=document["judged"],
        changed=document["changed"],
        peak_bytes=used.ru_maxrss * 1024,
        cpu_s=used.ru_utime + used.ru_stime,
        verdicts_per_s=count / seconds,
    )


def _fill(producer: Producer, topic: str, count: int) -> None:
    verdicts = stored_verdicts(count)
    while batch := list(itertools.islice(verdicts, _BATCH)):
        records = [Outgoing(topic, one.image_id.encode(), one.to_json().encode(), []) for one in batch]
        publish(producer, records)
