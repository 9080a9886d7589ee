"""What the console's tests share: verdicts as a worker writes them, consoles as processes, and people who use them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import redis
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from PIL import Image

from tests.integration.harness import REPO, wait_until
from worker.console import users
from worker.contract import ImageInfo, ModelRef, Origin, PolicyRef, Scores, Timings, Verdict, verdict_id
from worker.local.server import free_port

PASSWORD = "correct horse battery"
SECRET = "s" * 40
TEAM = {"anna": ["reviewer"], "ben": ["reviewer"], "lea": ["lead"], "otto": ["auditor"]}


def picture(number: int, size: tuple[int, int] = (320, 240)) -> bytes:
    """A JPEG that is like no other."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8))
    out = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
    return out.getvalue()


def smaller(data: bytes, scale: float, quality: int = 75) -> bytes:
    """The same picture as a JPEG of another size and quality."""
    image = Image.open(io.BytesIO(data))
    out = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(out, "JPEG", quality=quality)
    return out.getvalue()


def verdict(image_id: str, data: bytes, origin: Origin | None, at: float | None = None, **changed: Any) -> Verdict:
    """As a worker decides; `changed` are fields of the verdict."""
    sha256 = hashlib.sha256(data).hexdigest()
    moment = time.time() if at is None else at
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment * 1000) % 1000:03d}Z"
    fields = {
        "verdict_id": verdict_id(image_id, sha256, "a" * 12, "b" * 12),
        "image_id": image_id,
        "sha256": sha256,
        "decision": "review",
        "reasons": ["otherwise"],
        "scores": Scores(linear=0.61, knn=0.48, svm=0.55),
        "model": ModelRef(name="code", version="a" * 12),
        "policy": PolicyRef(name="default", version="b" * 12),
        "image": ImageInfo(format="jpeg", width=320, height=240, bytes=len(data), jpeg_quality=85, frames=1),
        "source": "model",
        "decided_at": stamp,
        "timings_ms": Timings(queued=1.0, decode=1.0, infer=2.0, total=5.0),
        "origin": origin,
    }
    return Verdict(**{**fields, **changed})


class Outside:
    """The topics and Redis of one test, seen without the console."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = env
        self.servers = env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]
        self.redis = redis.Redis.from_url(env["ASSAY_REDIS__URL"], decode_responses=True)
        self.prefix = env["ASSAY_REDIS__KEY_PREFIX"]
        self._producer = KafkaProducer(bootstrap_servers=self.servers, acks="all", linger_ms=5)

    def topic(self, kind: str) -> str:
        return self.env[f"ASSAY_KAFKA__{kind.upper()}_TOPIC"]

    def judged(self, images: Mapping[str, bytes], **changed: Any) -> dict[str, Verdict]:
        """Images on the incoming topic, and verdicts on them on theirs."""
        sent = {name: self._producer.send(self.topic("incoming"), value=data) for name, data in images.items()}
        self._producer.flush()
        found = {}
        for name, data in images.items():
            place = sent[name].get(timeout=20)
            origin = Origin(topic=place.topic, partition=place.partition, offset=place.offset, uri=None)
            found[name] = verdict(name, data, origin, **changed)
        self.publish(found.values())
        return found

    def publish(self, verdicts: Any) -> None:
        for one in verdicts:
            self._producer.send(self.topic("verdicts"), key=one.image_id.encode(), value=one.to_json().encode())
        self._producer.flush()

    def reviews(self) -> list[dict[str, Any]]:
        """All of the topic, in no order across partitions."""
        consumer = KafkaConsumer(bootstrap_servers=self.servers, enable_auto_commit=False)
        topic = self.topic("reviews")
        places = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(places)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(places)
        found = []
        while any(consumer.position(place) < ends[place] for place in places):
            for records in consumer.poll(timeout_ms=500).values():
                found += [{**json.loads(one.value), "_headers": dict(one.headers), "_key": one.key} for one in records]
        consumer.close()
        return found

    def close(self) -> None:
        self._producer.close()
        self.redis.close()


class Console:
    """`python -m worker console` as a process."""

    def __init__(self, env: Mapping[str, str], folder: Path, number: int = 0, **settings: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.metrics_port = free_port()
        self.log_path = folder / f"console-{number}.log"
        users_path = folder / "users.toml"
        if not users_path.exists():
            for name, roles in TEAM.items():
                users.put(users_path, name, roles, PASSWORD)
        self.env = {
            **env,
            "PYTHONPATH": str(REPO),
            "ASSAY_LOG__FORMAT": "json",
            "ASSAY_CONSOLE__PORT": str(self.port),
            "ASSAY_CONSOLE__METRICS_PORT": str(self.metrics_port),
            "ASSAY_CONSOLE__USERS_PATH": str(users_path),
            "ASSAY_CONSOLE__SECRET": SECRET,
            "ASSAY_CONSOLE__GROUP_ID": f"{env['ASSAY_KAFKA__GROUP_ID']}-console",
            "ASSAY_CONSOLE__SECOND_SHARE": "0",
            "ASSAY_CONSOLE__NEAR_DUPLICATES": "false",
            "ASSAY_CONSOLE__GOLDEN_SHARE": "0",
            "ASSAY_CONSOLE__UNDO_S": "1",
            "ASSAY_KAFKA__SESSION_TIMEOUT_MS": "6000",
            **{f"ASSAY_CONSOLE__{name.upper()}": value for name, value in settings.items()},
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Console:
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "worker", "console"], env=self.env, stdout=log, stderr=log, cwd=REPO
            )
        return self

    def is_ready(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log()
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.metrics_port}/readyz", timeout=5, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.is_success

    def wait_ready(self) -> Console:
        wait_until(self.is_ready, f"console ready: {self.log()}")
        return self

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")[-5000:] if self.log_path.exists() else ""

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def terminate(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


class Visitor:
    """Somebody with a browser's manners, without a browser."""

    def __init__(self, url: str, name: str = "") -> None:
        self.name = name
        self.client = httpx.Client(base_url=url, timeout=20, trust_env=False, follow_redirects=False)
        self.csrf = ""
        if name:
            answer = self.log_in(name, PASSWORD)
            assert answer.status_code == 303, answer.text
            self.csrf = self.token("/history")

    def token(self, path: str) -> str:
        found = re.search(r'name="csrf" content="([0-9a-f]+)"', self.client.get(path).text)
        assert found
        return found[1]

    def log_in(self, name: str, password: str) -> httpx.Response:
        form = {"name": name, "password": password, "csrf": self.token("/login")}
        return self.client.post("/login", data=form)

    def post(self, call: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        return self.client.post(f"/api/{call}", json=body, headers={"x-csrf-token": self.csrf, **headers})

    def claim(self, queue: str | None = None) -> list[dict[str, Any]]:
        answer = self.post("claim", {"queue": queue})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["tasks"]
        return found

    def decide(self, task: dict[str, Any], decision: str, **more: Any) -> httpx.Response:
        body = {"task": task["id"], "token": task["token"], "decision": decision, "seconds": 1.5, **more}
        return self.post("decide", body)

    def is_said(self, review_id: str) -> bool:
        answer = self.post("said", {"review_ids": [review_id]})
        return answer.status_code == 200 and answer.json()["said"][review_id]["state"] == "done"


def environment(stack: Mapping[str, str], unique: str) -> dict[str, str]:
    """For a process on this stack, with names of its own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")}
    topics = {
        f"ASSAY_KAFKA__{kind.upper()}_TOPIC": f"t{unique}.images.{kind}"
        for kind in ("incoming", "verdicts", "rejected", "retry", "reviews")
    }
    return {
        **own,
        **stack,
        **topics,
        "ASSAY_KAFKA__GROUP_ID": f"g{unique}",
        "ASSAY_REDIS__KEY_PREFIX": f"t{unique}:",
    }
