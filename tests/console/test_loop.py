"""What comes back: golden items, the report, and the export that training reads."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.console.harness import Console, Outside, Visitor, picture
from tests.integration.harness import REPO, wait_until
from worker.clients.redis import Store, VerdictWrite
from worker.contract import Verdict
from worker.settings import load

pytestmark = pytest.mark.integration


def _run(console: Console, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker", *arguments]
    done = subprocess.run(command, env=console.env, cwd=REPO, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return done


def _store(console: Console, verdicts: dict[str, Verdict]) -> None:
    own = {name: value for name, value in console.env.items() if name.startswith("ASSAY_") and "__" in name}
    store = Store(load(None, own).redis)
    store.save([VerdictWrite(one, one.to_json(), one.decided_at) for one in verdicts.values()], [])
    store.close()


def test_from_reviews_to_folders_and_a_report(
    outside: Outside, open_console: Callable[..., Console], tmp_path: Path
) -> None:
    """Decided images are files below real/ and fake/ with a line each, as calibration and heads read them; a golden
    item looks like any other, is told of afterwards, and decides nothing.
    """
    console = open_console(undo_s="0", golden_share="1")
    images = {f"image-{n}": picture(n) for n in range(4)}
    verdicts = outside.judged(images)
    tests = outside.judged({"known": picture(50)}, decision="fake")
    _store(console, verdicts | tests)
    _run(console, "console", "golden", "known", "--truth", "fake")
    anna = Visitor(console.url, "anna")
    wait_until(lambda: outside.redis.zcard(f"{outside.prefix}{{console}}:wait:review") == 4, "four wait")
    decisions = {"known": "real", "image-0": "fake", "image-1": "real", "image-2": "fake", "image-3": "unsure"}
    said = {}
    while len(said) < 5:
        task = anna.claim()[0]
        assert "truth" not in task and task["queue"] == "review"
        assert anna.client.get(f"{task['url']}/view.jpg").status_code == 200
        answer = anna.decide(task, decisions[task["image_id"]]).json()["review_id"]
        wait_until(lambda answer=answer: anna.is_said(answer), "it is on Kafka")
        said[task["image_id"]] = anna.post("said", {"review_ids": [answer]}).json()["said"][answer]
    assert said["known"] == {"state": "done", "truth": "fake"} and said["image-0"] == {"state": "done"}
    assert not outside.redis.exists(f"{outside.prefix}review:known")

    found = json.loads(_run(console, "reviews", "report", "--json").stdout)
    assert found["decisions"] == {"fake": 2, "real": 1, "unsure": 1}
    assert found["queues"]["review"] == {"images": 0, "oldest_seconds": None}
    outside.judged({"old": picture(60)}, at=time.time() - 7200)
    age = f"{outside.prefix}{{console}}:age:review"
    wait_until(lambda: outside.redis.zcard(age) == 1, "an old one waits")
    waiting = json.loads(_run(console, "reviews", "report", "--json").stdout)["queues"]["review"]
    assert waiting["images"] == 1 and 7200 <= waiting["oldest_seconds"] < 8400
    assert "1 wait, the oldest for 2." in _run(console, "reviews", "report").stdout
    assert (found["reviewers"]["anna"]["golden"], found["reviewers"]["anna"]["golden_right"]) == (1, 0)

    folder = tmp_path / "reviewed"
    _run(console, "reviews", "export", str(folder))
    entries = [json.loads(line) for line in outside.redis.lrange(f"{outside.prefix}{{console}}:audit", 0, -1)]
    (entry,) = [one for one in entries if one["event"] == "export"]
    assert entry["who"] and (entry["folder"], entry["reviews"]) == (str(folder), 5)
    lines = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert {line["image_id"]: line["decision"] for line in lines} == {
        "image-0": "fake",
        "image-1": "real",
        "image-2": "fake",
    }
    for line in lines:
        assert (folder / line["path"]).read_bytes() == images[line["image_id"]]
        assert line["path"].startswith(f"{line['decision']}/review/") and line["weight"] == 1
    pytest.importorskip("torch", reason="training is not installed: make setup-all")
    from train.calibration.reviews import of_queue
    from train.data.folder import scan_folder

    scanned = scan_folder(folder)[0].images
    reviewed = of_queue(folder, scanned, "review")
    assert reviewed is not None and len(reviewed.images) == 3 and reviewed.decided == {"review": 3}
