"""The figures that docs/deploy.md computes with, measured again: what a verdict and a cache entry take in a
real Redis.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.integration.harness import wait_until
from worker import contract
from worker.clients.redis import ScoredImage, Store
from worker.local import paths
from worker.local.redis_server import RedisServer
from worker.local.server import NotServing, free_port
from worker.settings import RedisSettings

pytestmark = pytest.mark.integration
IMAGES = 5_000
MODEL, POLICY = "0123456789ab", "ba9876543210"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of our own: what others write would be counted too."""
    server = RedisServer(tmp_path, {name: free_port() for name in RedisServer.port_names})

    def serves() -> bool:
        try:
            server.check()
        except NotServing:
            return False
        return True

    server.start()
    try:
        wait_until(serves, "Redis")
        yield server
    finally:
        server.stop(grace_s=5)


def _verdict(number: int, rng: random.Random) -> contract.Verdict:
    image_id, sha256 = f"uploads/2026/11/21/{number:012d}.jpg", hashlib.sha256(str(number).encode()).hexdigest()
    timings = [round(rng.uniform(1, 99), 3) for _ in range(4)]
    return contract.Verdict(
        verdict_id=contract.verdict_id(image_id, sha256, MODEL, POLICY),
        image_id=image_id,
        sha256=sha256,
        decision="fake",
        reasons=["linear 0.97 >= 0.65"],
        scores=contract.Scores(linear=rng.random(), knn=rng.random(), svm=rng.random()),
        model=contract.ModelRef(name="code", version=MODEL),
        policy=contract.PolicyRef(name="default", version=POLICY),
        image=contract.ImageInfo(format="jpeg", width=640, height=480, bytes=48211),
        source="model",
        decided_at="2026-11-21T12:00:00.000Z",
        timings_ms=contract.Timings(**dict(zip(("queued", "decode", "infer", "total"), timings, strict=True))),
    )


def test_redis_takes_what_the_docs_say(server: RedisServer) -> None:
    """Used memory per verdict and per cache entry, lifetimes and the key table included, is within a tenth of the
    page's figure.
    """
    store, rng = Store(RedisSettings(url=f"redis://{server.address}/0")), random.Random(7)
    client = redis.Redis.from_url(f"redis://{server.address}/0")
    verdicts = [_verdict(number, rng) for number in range(IMAGES)]
    used = [_used(client)]
    for start in range(0, IMAGES, 500):
        store.save([(verdict, verdict.to_json()) for verdict in verdicts[start : start + 500]], [])
    used.append(_used(client))
    for start in range(0, IMAGES, 500):
        part = verdicts[start : start + 500]
        store.save(
            [],
            [ScoredImage(verdict.sha256, verdict.image_id, MODEL, verdict.scores, verdict.image) for verdict in part],
        )
    used.append(_used(client))
    client.close()
    store.close()
    measured = {"a verdict": (used[1] - used[0]) / IMAGES, "a cache entry": (used[2] - used[1]) / IMAGES}
    page = (paths.CHECKOUT / "docs" / "deploy.md").read_text()
    for what, found in measured.items():
        stated = re.search(rf"{what} takes ([\d,]+) bytes", page)
        assert stated, f"docs/deploy.md does not say what {what} takes; measured: {measured}"
        assert found == pytest.approx(int(stated[1].replace(",", "")), rel=0.1), measured


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])
