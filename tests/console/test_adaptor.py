"""The example that hands verdicts to Coop and Osprey, as a process, to a real HTTP server and a real Kafka."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer

from tests.console.harness import Outside, picture
from tests.integration.harness import REPO, wait_until
from worker.contract import Verdict

pytestmark = pytest.mark.integration


class CoopServer(ThreadingHTTPServer):
    """Answers reports in turn with `answers`, then with 201."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Reports)
        self.answers: list[int] = []
        self.taken: list[dict[str, Any]] = []
        self.asked: list[tuple[int, str | None, str]] = []


class _Reports(BaseHTTPRequestHandler):
    server: CoopServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        status = self.server.answers.pop(0) if self.server.answers else 201
        self.server.asked.append((status, self.headers["x-api-key"], self.path))
        if status == 201:
            self.server.taken.append(body)
        said = b'{"reportId": "1"}' if status == 201 else b'{"errors": [{"status": 400, "title": "no such field"}]}'
        self.send_response(status)
        self.send_header("content-length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def coop() -> Iterator[CoopServer]:
    server = CoopServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def start(outside: Outside, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
    env = {**outside.env, "PYTHONPATH": str(REPO), "COOP_API_KEY": "secret"}
    command = [sys.executable, "-m", "deploy.examples.adaptor", *arguments]
    with log.open("ab") as out:
        return subprocess.Popen(command, env=env, cwd=REPO, stdout=out, stderr=out)


def test_coop_gets_a_report_of_each_verdict(outside: Outside, coop: CoopServer, tmp_path: Path) -> None:
    """In the shape of its Report API, only the decisions that are asked for; an answer 503 or 429 is tried again, a 400
    is said and left, and a process that is killed between delivery and commit delivers again under the same ids.
    """
    log = tmp_path / "adaptor.log"
    url = f"http://127.0.0.1:{coop.server_port}"
    arguments = [
        "coop",
        "--url",
        url,
        "--item-type",
        "img",
        "--reporter-type",
        "usr",
        "--image-url",
        "https://cdn/{image_id}",
    ]
    verdicts = outside.judged({f"a/{n}.jpg": picture(n) for n in range(4)})
    outside.judged({"plain": picture(9)}, decision="real")
    coop.answers = [503, 201, 429, 201, 400]
    process = start(outside, log, *arguments)
    wait_until(lambda: len(coop.asked) >= 6, "the reports")
    assert [one[0] for one in coop.asked[:6]] == [503, 201, 429, 201, 400, 201]
    assert {one[1:] for one in coop.asked} == {("secret", "/api/v1/report")}
    by_id = {one["reportedItem"]["id"]: one for one in coop.taken}
    assert len(by_id) == 3 and by_id.keys() < verdicts.keys()
    for image_id, body in by_id.items():
        one: Verdict = verdicts[image_id]
        assert body["reporter"] == {"kind": "user", "id": "assay", "typeId": "usr"}
        assert body["reportedAt"] == one.decided_at
        assert body["reportedItem"]["typeId"] == "img"
        assert body["reportedItem"]["data"]["verdict_id"] == str(one.verdict_id)
        assert body["reportedItem"]["data"]["images"] == [f"https://cdn/{image_id}"]
    assert "left out, Coop says 400" in log.read_text()
    coop.answers = [201, 503]
    outside.judged({f"b/{n}.jpg": picture(20 + n) for n in range(2)})
    wait_until(lambda: len(coop.asked) >= 8, "one taken, one refused")
    process.kill()
    process.wait(10)
    coop.answers = []
    process = start(outside, log, *arguments)
    wait_until(lambda: {one["reportedItem"]["id"] for one in coop.taken} >= {"b/0.jpg", "b/1.jpg"}, "both", 60)
    process.terminate()
    assert process.wait(20) == 0
    coop.answers = [403]
    outside.judged({"c": picture(40)})
    process = start(outside, log, *arguments)
    assert process.wait(60) != 0 and "refuses COOP_API_KEY" in log.read_text()


def test_osprey_gets_an_action_of_each_verdict(outside: Outside, tmp_path: Path) -> None:
    """On its input topic, in its envelope; a verdict that is read again is the same action."""
    verdicts = outside.judged({f"image-{n}": picture(n) for n in range(3)})
    topic = outside.topic("retry")  # any other topic of this test
    for group in ("one", "two"):
        process = start(outside, tmp_path / "log", "osprey", "--topic", topic, "--group", f"{outside.prefix}{group}")
        wait_until(lambda group=group: len(_records(outside, topic)) == (3 if group == "one" else 6), "actions")  # type: ignore[misc]
        process.terminate()
        assert process.wait(20) == 0
    records = _records(outside, topic)
    assert {key.decode() for key, _ in records} == verdicts.keys()
    ids = {}
    for key, body in records:
        assert body.keys() == {"send_time", "data"} and body["data"]["action_name"] == "assay_verdict"
        assert 0 <= body["data"]["action_id"] < 2**63
        ids.setdefault(key, set()).add(body["data"]["action_id"])
        one = Verdict.model_validate(body["data"]["data"])
        assert one == verdicts[key.decode()] and body["send_time"] == one.decided_at
    assert all(len(found) == 1 for found in ids.values()) and len(set().union(*ids.values())) == 3


def _records(outside: Outside, topic: str) -> list[tuple[bytes, dict[str, Any]]]:
    consumer = KafkaConsumer(
        topic, bootstrap_servers=outside.servers, auto_offset_reset="earliest", consumer_timeout_ms=3000
    )
    found = [(one.key, json.loads(one.value)) for one in consumer]
    consumer.close()
    return found
