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
from worker.clients.redis import ScoredImage, Store, VerdictWrite
from worker.evidence import Evidence, Nearest, Neighbour
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
        image=contract.ImageInfo(format="jpeg", width=640, height=480, bytes=48211, jpeg_quality=92, frames=1),
        source="model",
        decided_at="2026-11-21T12:00:00.000Z",
        timings_ms=contract.Timings(**dict(zip(("queued", "decode", "infer", "total"), timings, strict=True))),
        origin=contract.Origin(topic="images.incoming", partition=number % 12, offset=number, uri=None),
        evidence=Evidence(
            nearest=Nearest(
                real=Neighbour(distance=rng.random(), label="laion2b-en"),
                fake=Neighbour(distance=rng.random(), label="stable-diffusion-xl"),
            )
        ),
    )


def test_redis_takes_what_the_docs_say(server: RedisServer) -> None:
    """Used memory per verdict and per cache entry, lifetimes and the key table included, is within a tenth of what the
    page says for this server; of a version that it does not name, within what it says for the others.
    """
    store, rng = Store(RedisSettings(url=f"redis://{server.address}/0")), random.Random(7)
    client = redis.Redis.from_url(f"redis://{server.address}/0")
    verdicts = [_verdict(number, rng) for number in range(IMAGES)]
    used = [_used(client)]
    for start in range(0, IMAGES, 500):
        store.save(
            [VerdictWrite(verdict, verdict.to_json(), verdict.decided_at) for verdict in verdicts[start : start + 500]],
            [],
        )
    used.append(_used(client))
    for start in range(0, IMAGES, 500):
        part = verdicts[start : start + 500]
        store.save(
            [],
            [
                ScoredImage(
                    verdict.sha256,
                    verdict.image_id,
                    MODEL,
                    verdict.scores,
                    verdict.image,
                    verdict.evidence,
                    reader="0123456789ab",
                )
                for verdict in part
            ],
        )
    used.append(_used(client))
    name = _name(client)
    client.close()
    store.close()
    measured = [(used[1] - used[0]) / IMAGES, (used[2] - used[1]) / IMAGES]
    stated = _stated()
    rows = [stated[name]] if name in stated else list(stated.values())
    for number, found in enumerate(measured):
        figures = [row[number] for row in rows]
        assert min(figures) * 0.9 <= found <= max(figures) * 1.1, f"{name}: {measured}; docs/deploy.md says {stated}"


def _name(client: redis.Redis) -> str:
    """As the page names it: `Valkey 9.1`, `Redis 7.0`."""
    about = client.info("server")
    version = about.get("valkey_version", about["redis_version"])
    return f"{'Valkey' if 'valkey_version' in about else 'Redis'} {'.'.join(version.split('.')[:2])}"


def _stated() -> dict[str, tuple[int, int]]:
    """Bytes of a verdict and of a cache entry by server, as docs/deploy.md says."""
    page = (paths.CHECKOUT / "docs" / "deploy.md").read_text()
    rows = re.findall(r"^\| ((?:Valkey|Redis) [\d.]+)[^|]*\| ([\d,]+) \| ([\d,]+) \|$", page, re.MULTILINE)
    assert len(rows) >= 2, "docs/deploy.md has no table of what a verdict and a cache entry take"
    return {name: (int(verdict.replace(",", "")), int(entry.replace(",", ""))) for name, verdict, entry in rows}


def _used(client: redis.Redis) -> int:
    return int(client.info("memory")["used_memory"])
