"""The loop of docs/console.md on real servers: what people decide becomes the model that serves."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.console.harness import Console, Visitor
from tests.integration.conftest import SHORT_SESSION
from tests.integration.harness import REPO, Outside, running_worker, wait_until
from triton_models import build
from worker.clients import kafka_topics
from worker.local import stack as local_stack
from worker.local.server import free_port
from worker.settings import KafkaSettings

pytest.importorskip("torch", reason="training is not installed: make setup-all")
pytest.importorskip("starlette", reason="the console is not installed: make setup")
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1500)]
DEMO = REPO / "triton_models" / "weights" / "demo"
POLICY = 'name = "all"\n[[rules]]\nwhen = "true"\ndecision = "review"\n'


def upload(number: int, *, fake: bool) -> bytes:
    """A soft picture like no other; a generated one has a fine grid over it, as the demo's weights have not learnt."""
    rng = np.random.default_rng(number)
    soft = Image.fromarray(rng.integers(30, 220, (7, 7, 3), np.uint8)).resize((256, 256), Image.Resampling.BICUBIC)
    pixels = np.asarray(soft).astype(np.int16)
    if fake:
        pixels = pixels + 25 * ((np.indices((256, 256)).sum(0) % 2) * 2 - 1)[:, :, None]
    out = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def run(env: Mapping[str, str], *command: str) -> str:
    line = [sys.executable, "-m", *command]
    done = subprocess.run(line, env=dict(env), cwd=REPO, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def decided(console: Console, outside: Outside, count: int) -> None:
    """Somebody who is always right: the truth stands in the ids."""
    anna = Visitor(console.url, "anna")
    said: set[str] = set()
    while len(said) < count:
        wait_until(anna.claim, "the next image")
        task = anna.claim()[0]
        said.add(anna.decide(task, task["image_id"].split("-")[0]).json()["review_id"])
    wait_until(lambda: all(anna.is_said(one) for one in said), "all are on Kafka")


def test_from_review_to_roll_out(private_stack: Path, tmp_path: Path) -> None:
    """Judged, decided by a person, exported with a part held out; heads refitted on the one part and measured against
    the old on the other; the new version beside the old one, in its place, and in the verdicts.
    """
    live, new = tmp_path / "live", tmp_path / "new"
    old_version = build.build(DEMO, "cpu", live)["model_version"]
    status = local_stack.up(private_stack, models=live)
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY)
    topics = {
        f"ASSAY_KAFKA__{kind.upper()}_TOPIC": f"images.{kind}"
        for kind in ("incoming", "verdicts", "rejected", "retry", "reviews")
    }
    env = {**os.environ, **status.env, **SHORT_SESSION, **topics}
    env |= {"ASSAY_KAFKA__GROUP_ID": "loop", "ASSAY_REDIS__KEY_PREFIX": "assay:", "ASSAY_HTTP__PORT": str(free_port())}
    env |= {"ASSAY_POLICY__PATH": str(policy), "ASSAY_SHADOW__SHARE": "1.0"}
    servers = [status.env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]]
    kafka_topics.create_topics(KafkaSettings(bootstrap_servers=servers), topics.values(), 3)
    outside = Outside(env)
    uploads = {f"{'fake' if n % 2 else 'real'}-{n}": upload(n, fake=bool(n % 2)) for n in range(60)}
    with running_worker(outside.env, tmp_path / "worker.log") as worker:
        outside.send_all(uploads)
        first = outside.wait_verdicts(uploads)
        assert {one["decision"] for one in first.values()} == {"review"}

        console = Console(outside.env, tmp_path, undo_s="0").start().wait_ready()
        decided(console, outside, len(uploads))
        reviewed = tmp_path / "reviewed"
        run(console.env, "worker", "reviews", "export", str(reviewed), "--held-out", "0.4")
        console.kill()
        parts = {part: _groups(reviewed / part) for part in ("fit", "held-out")}
        assert len(parts["fit"]) + len(parts["held-out"]) == 60 and not parts["fit"] & parts["held-out"]

        weights = tmp_path / "weights"
        run(env, "train.main", "heads", "--encoder", str(DEMO), "--data", str(reviewed / "fit"), "--out", str(weights))
        results = []
        for name, folder in (("old", DEMO), ("new", weights)):
            results.append(str(tmp_path / f"results-{name}"))
            where = ("--data", str(reviewed / "held-out"), "--out", results[-1])
            options = ("--no-bias-control", "--resamples", "0", "--json")
            run(env, "train.main", "evaluate", "--weights", str(folder), *where, *options)
        compared = json.loads(run(env, "train.main", "compare", *results, "--json"))
        linear = next(pair for pair in compared if pair["head"] == "linear")
        assert linear["images"] >= 15
        assert linear["auc"]["difference"] >= 0
        assert linear["balanced_accuracy"]["difference"] > 0.1, "what people decided taught it nothing"

        new_version = build.build(weights, "cpu", new)["model_version"]
        assert new_version != old_version
        rollout = ("--repository", str(live), "--server", env["ASSAY_TRITON__URL"])
        run(env, "triton_models.rollout", "shadow", *rollout, "--new", str(new))
        later = {f"later-{n}": upload(1000 + n, fake=bool(n % 2)) for n in range(8)}
        outside.send_all(later)
        assert {one["model"]["version"] for one in outside.wait_verdicts(later).values()} == {old_version}
        wait_until(lambda: outside.redis.xlen("assay:shadow:code_shadow") == len(later), "each was compared")

        run(env, "triton_models.rollout", "load", *rollout, "--new", str(new))
        wait_until(lambda: worker.events("model_version")[-1]["version"] == new_version, "the worker follows")
        last = {f"last-{n}": upload(2000 + n, fake=bool(n % 2)) for n in range(8)}
        outside.send_all(last)
        judged = outside.wait_verdicts(last)
        assert {one["model"]["version"] for one in judged.values()} == {new_version}
        right = [(judged[name]["scores"]["linear"] > 0.5) == bool(int(name.split("-")[1]) % 2) for name in last]
        assert sum(right) >= 6
        assert worker.terminate() == 0
    outside.close()


def _groups(folder: Path) -> set[str]:
    return {json.loads(line)["group"] for line in (folder / "manifest.jsonl").read_text().splitlines()}
