"""From a verdict to a review on Kafka: each once, whoever dies on the way."""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.console.harness import Console, Outside, Visitor, environment, picture
from tests.integration.harness import wait_until
from worker.clients import kafka_topics
from worker.local import stack as local_stack
from worker.review import Review
from worker.settings import KafkaSettings

pytestmark = pytest.mark.integration


def test_a_decision_is_an_event_and_a_hash(outside: Outside, open_console: Callable[..., Console]) -> None:
    """A verdict `review` is given to one person; what they decide is on Kafka before `said` says done, and in Redis."""
    console = open_console()
    verdicts = outside.judged({f"image-{n}": picture(n) for n in range(4)})
    outside.judged({"plain": picture(9)}, decision="real")
    anna, ben = Visitor(console.url, "anna"), Visitor(console.url, "ben")
    wait_until(lambda: len(anna.claim()) == 2 and len(ben.claim()) == 2, "two images for each")
    mine, theirs = anna.claim(), ben.claim()
    assert {one["image_id"] for one in mine + theirs} == verdicts.keys()
    shown = anna.client.get(f"{mine[0]['url']}/view.jpg")
    assert shown.status_code == 200 and shown.content[:2] == b"\xff\xd8"
    assert shown.content not in {picture(n) for n in range(4)}

    answer = anna.decide(mine[0], "fake", reason="artefacts", note="six <b>fingers</b>").json()
    assert not anna.is_said(answer["review_id"])
    again = anna.decide(mine[0], "fake", reason="artefacts", note="six <b>fingers</b>")
    assert again.json()["review_id"] == answer["review_id"]
    wait_until(lambda: anna.is_said(answer["review_id"]), "the review is on Kafka")
    (event,) = outside.reviews()
    image_id = mine[0]["image_id"]
    assert event["_key"] == image_id.encode() and event["_headers"]["ce_type"] == b"assay.review.v1"
    review = Review.model_validate({name: value for name, value in event.items() if not name.startswith("_")})
    assert review.verdict_id == verdicts[image_id].verdict_id and review.decision == "fake"
    assert (review.reviewer, review.reason, review.note) == ("anna", "artefacts", "six <b>fingers</b>")
    stored = outside.redis.hgetall(f"{outside.prefix}review:{image_id}")
    assert stored["review_id"] == str(review.review_id) and Review.model_validate_json(stored["json"]) == review
    assert image_id not in {one["image_id"] for one in anna.claim() + ben.claim()}
    outside.publish([verdicts[image_id]])  # redelivered: it is done
    time.sleep(2)
    assert outside.redis.zcard(f"{outside.prefix}{{console}}:age:review") == 3
    assert console.terminate() == 0


def test_undone_is_as_if_it_had_not_been(outside: Outside, open_console: Callable[..., Console]) -> None:
    """Within its seconds a decision is taken back and made anew; afterwards it is too late."""
    console = open_console(undo_s="3")
    outside.judged({"one": picture(1)})
    anna = Visitor(console.url, "anna")
    wait_until(anna.claim, "an image")
    (task,) = anna.claim()
    first = anna.decide(task, "real").json()["review_id"]
    back = anna.post("undo", {"review_id": first}).json()["task"]
    assert back["id"] == task["id"] and back["token"] != task["token"]
    assert anna.decide(task, "real").status_code == 409
    second = anna.decide(back, "fake").json()["review_id"]
    wait_until(lambda: anna.is_said(second), "the second decision is on Kafka")
    assert anna.post("undo", {"review_id": second}).status_code == 409
    assert [one["decision"] for one in outside.reviews()] == ["fake"]


def test_an_answer_that_comes_twice_is_one_answer(outside: Outside, open_console: Callable[..., Console]) -> None:
    """The same again, as after a network failure, is the same act: decision, undo, appeal. Another decision under the
    same token is refused, with both, before it is on Kafka and after.
    """
    console = open_console(undo_s="4")
    outside.judged({"one": picture(1)})
    anna, ben = Visitor(console.url, "anna"), Visitor(console.url, "ben")
    wait_until(anna.claim, "an image")
    (task,) = anna.claim()
    first = anna.decide(task, "real", note="sharp").json()["review_id"]
    assert ben.post("undo", {"review_id": first}).status_code == 409
    backs = [anna.post("undo", {"review_id": first}).json()["task"] for _ in range(2)]
    assert backs[0] == backs[1]
    (back, _) = backs
    said = anna.decide(back, "fake", reason="artefacts").json()["review_id"]
    assert anna.decide(back, "fake", reason="artefacts").json()["review_id"] == said
    for _ in range(2):
        answer = anna.decide(back, "real")
        assert answer.status_code == 409 and "fake (artefacts), and not real" in answer.json()["error"]
        assert answer.json()["before"] == {"decision": "fake", "reason": "artefacts"}
        assert answer.json()["now"] == {"decision": "real", "reason": None} and answer.json()["review_id"] == said
        assert anna.decide(back, "fake", reason="artefacts", note="hands").status_code == 409
        wait_until(lambda: anna.is_said(said), "it is on Kafka")
    assert anna.decide(back, "fake", reason="artefacts").status_code == 200
    appeal = {"verdict_id": task["verdict_id"], "note": "look again"}
    assert [anna.post("appeal", appeal).status_code for _ in range(2)] == [200, 200]
    assert ben.post("appeal", appeal).status_code == 409
    lea = Visitor(console.url, "lea")
    wait_until(lea.claim, "the appeal")
    done = lea.decide(lea.claim()[0], "real").json()["review_id"]
    wait_until(lambda: lea.is_said(done), "the lead's decision")
    late = anna.post("appeal", appeal)
    assert late.status_code == 409 and "since you appealed" in late.json()["error"] and lea.claim() == []
    assert [one["decision"] for one in sorted(outside.reviews(), key=lambda one: one["decided_at"])] == ["fake", "real"]


def test_a_wiped_redis_is_filled_again(outside: Outside, open_console: Callable[..., Console]) -> None:
    """Redis loses everything under a running console whose verdicts are older than any look back: all that waited waits
    again, what was decided does not; a console that starts with `latest` takes back what consoles took, and no more.
    """
    before = outside.judged({f"before-{n}": picture(80 + n) for n in range(2)}, at=time.time() - 9000)
    env = {**outside.env, "ASSAY_KAFKA__AUTO_OFFSET_RESET": "latest"}
    outside.env = env
    console = open_console(undo_s="0")
    age = f"{outside.prefix}{{console}}:age:review"
    fed = f"{outside.prefix}{{console}}:fed"
    wait_until(lambda: outside.redis.hlen(fed) == 3, "three partitions")
    waiting = outside.judged({f"image-{n}": picture(n) for n in range(6)})
    wait_until(lambda: outside.redis.zcard(age) == 6, "six wait")
    anna = Visitor(console.url, "anna")
    task = anna.claim()[0]
    said = anna.decide(task, "real").json()["review_id"]
    wait_until(lambda: anna.is_said(said), "one is decided")
    ours = list(outside.redis.scan_iter(f"{outside.prefix}*"))
    outside.redis.delete(*ours)
    time.sleep(1)  # a console that dies meanwhile changes nothing: nothing says that this Redis was filled
    console.kill()
    console.start().wait_ready()
    left = waiting.keys() - {task["image_id"]}
    wait_until(lambda: outside.redis.zcard(age) >= len(left), "all wait again")
    time.sleep(1)
    seen: set[str] = set()
    anna = Visitor(console.url, "anna")
    while len(seen) < len(left):
        wait_until(anna.claim, "the next")
        one = anna.claim()[0]
        seen.add(one["image_id"])
        again = anna.decide(one, "fake").json()["review_id"]
        wait_until(lambda again=again: anna.is_said(again), "it is decided")  # type: ignore[misc]
    assert seen == left and not seen & before.keys() and anna.claim() == []


def test_a_conflict_goes_to_a_lead_and_an_appeal_overrules(
    outside: Outside, open_console: Callable[..., Console]
) -> None:
    """Two who differ make a lead's case, which reviewers do not see; every decision stays on the topic."""
    console = open_console(second_share="1", undo_s="0", lead_alone_ttl="10")
    outside.judged({"one": picture(1)})
    anna, ben, lea = (Visitor(console.url, name) for name in ("anna", "ben", "lea"))
    wait_until(anna.claim, "an image")
    anna.decide(anna.claim()[0], "fake")
    wait_until(ben.claim, "a second opinion")
    assert anna.claim() == []
    ben.decide(ben.claim()[0], "real")
    wait_until(lea.claim, "the conflict")
    assert anna.claim() == [] and ben.claim() == []
    (task,) = lea.claim()
    assert task["queue"] == "conflicts"
    done = lea.decide(task, "fake").json()["review_id"]
    wait_until(lambda: lea.is_said(done), "the lead's decision")
    assert anna.post("appeal", {"verdict_id": task["verdict_id"], "note": "look at the hands"}).status_code == 200
    assert lea.claim() == []  # another lead's, at first; there is none, so it is hers in the end
    wait_until(lea.claim, "the appeal")
    (task,) = lea.claim()
    assert task["queue"] == "appeals" and task["appeal"] == "look at the hands"
    last = lea.decide(task, "real").json()["review_id"]
    wait_until(lambda: lea.is_said(last), "the appeal's decision")
    events = sorted(outside.reviews(), key=lambda one: one["decided_at"])
    assert [(one["reviewer"], one["decision"], one["opinion"], one["appeal"]) for one in events] == [
        ("anna", "fake", 1, False),
        ("ben", "real", 2, False),
        ("lea", "fake", 3, False),
        ("lea", "real", 4, True),
    ]
    assert outside.redis.hget(f"{outside.prefix}review:one", "decision") == "real"


def test_a_full_queue_leaves_the_others_alone(
    outside: Outside, open_console: Callable[..., Console], tmp_path: Path
) -> None:
    """What finds its queue full waits in Kafka, behind it the other queue is filled; each verdict comes in the end, in
    a console that was killed meanwhile too, and no offset is committed before its verdict waits in Redis.
    """
    queues = tmp_path / "queues.toml"
    queues.write_text('[[queues]]\nname = "small"\n[[queues]]\nname = "spot"\ndecisions = ["real"]\n')
    console = open_console(max_queued="3", undo_s="0", queues_path=str(queues))
    age = f"{outside.prefix}{{console}}:age:"
    outside.judged({f"small-{n}": picture(n) for n in range(9)})
    wait_until(lambda: outside.redis.zcard(f"{age}small") == 3, "a full queue")
    outside.judged({f"spot-{n}": picture(20 + n) for n in range(3)}, decision="real")
    wait_until(lambda: outside.redis.zcard(f"{age}spot") == 3, "the other queue behind it")
    assert outside.redis.zcard(f"{age}small") == 3
    console.kill()
    console.start().wait_ready()
    anna = Visitor(console.url, "anna")
    seen: list[str] = []
    while len(seen) < 9:
        wait_until(lambda: anna.claim("small"), f"the next after {seen}")
        task = anna.claim("small")[0]
        assert outside.redis.zcard(f"{age}small") <= 3
        seen.append(task["image_id"])
        said = anna.decide(task, "real").json()["review_id"]
        wait_until(lambda said=said: anna.is_said(said), "the review is on Kafka")  # type: ignore[misc]
    assert sorted(seen) == [f"small-{n}" for n in range(9)]
    time.sleep(2)
    assert outside.redis.zcard(f"{age}small") == 0 and outside.redis.zcard(f"{age}spot") == 3


def test_what_nobody_looks_at_goes_to_others(outside: Outside, open_console: Callable[..., Console]) -> None:
    """A lock ends by itself; renewed it stays, and a late decision is refused once somebody else has it."""
    console = open_console(lock_s="5")
    outside.judged({"one": picture(1)})
    anna, ben = Visitor(console.url, "anna"), Visitor(console.url, "ben")
    wait_until(anna.claim, "an image")
    (task,) = anna.claim()
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:
        kept = anna.post("renew", {"held": [{"task": task["id"], "token": task["token"]}]}).json()["held"]
        assert kept == [task["id"]] and ben.claim() == []
        time.sleep(0.5)
    wait_until(ben.claim, "the lock ends", timeout_s=15)
    assert anna.post("renew", {"held": [{"task": task["id"], "token": task["token"]}]}).json()["held"] == []
    assert anna.decide(task, "fake").status_code == 409
    assert ben.decide(ben.claim()[0], "fake").status_code == 200


IMAGES = int(os.environ.get("KILLS_IMAGES", "120"))  # `make kills`: 200


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_people_while_everything_is_killed(tmp_path: Path) -> None:
    """Two consoles, Kafka and Redis die in turns: every decision once on Kafka, no image with two people, none lost."""
    directory = tmp_path / "stack"
    services = ("kafka", "redis")
    try:
        events, acknowledged = _reviewed_under_kills(directory, services, tmp_path)
    finally:
        local_stack.down(directory, purge=True)
    assert Counter(one["review_id"] for one in events).most_common(1)[0][1] == 1
    assert Counter(one["image_id"] for one in events).most_common(1)[0][1] == 1
    assert acknowledged <= {one["review_id"] for one in events}
    assert {one["reviewer"] for one in events} == {"anna", "ben"}


def _reviewed_under_kills(
    directory: Path, services: tuple[str, str], folder: Path
) -> tuple[list[dict[str, Any]], set[str]]:
    """The reviews on Kafka once every image has one, and the ids that people were told to be done."""
    env = environment(local_stack.up(directory, services=services).env, "kills")
    names = [value for name, value in env.items() if name.endswith("_TOPIC")]
    kafka_topics.create_topics(KafkaSettings(bootstrap_servers=[env["ASSAY_KAFKA__BOOTSTRAP_SERVERS"]]), names, 3)
    outside = Outside(env)
    consoles = [Console(env, folder, number, lock_s="20").start() for number in range(2)]
    for console in consoles:
        console.wait_ready()
    verdicts = outside.judged({f"image-{n}": picture(n, (64, 64)) for n in range(IMAGES)})
    people = [Person(name, console.url) for name, console in zip(("anna", "ben"), consoles, strict=True)]
    for person in people:
        person.start()
    rng = random.Random(7)
    for _ in range(6):
        time.sleep(rng.uniform(1.5, 4))
        victim = rng.choice(["console", "kafka", "redis"])
        if victim == "console":
            one = rng.choice(consoles)
            one.kill()
            one.start().wait_ready()
        else:
            service = local_stack.status(directory).services[victim]
            assert service is not None
            subprocess.run(["kill", "-9", str(service.pid)], check=True)
            local_stack.up(directory, services=services)
    wait_until(lambda: {one["image_id"] for one in outside.reviews()} == verdicts.keys(), "every image", 240)
    for person in people:
        person.stop()
    events = outside.reviews()
    for console in consoles:
        console.kill()
    outside.close()
    return events, set().union(*(person.done for person in people))


class Person(threading.Thread):
    """Decides whatever it is given, patiently, and remembers what the console called done."""

    def __init__(self, name: str, url: str) -> None:
        super().__init__(daemon=True)
        self._visitor = Visitor(url, name)
        self._stopping = threading.Event()
        self.done: set[str] = set()

    def stop(self) -> None:
        self._stopping.set()
        self.join(30)

    def run(self) -> None:
        waiting: set[str] = set()
        while not self._stopping.is_set():
            try:
                answer = self._visitor.post("claim", {"queue": None})
                tasks = answer.json()["tasks"] if answer.status_code == 200 else []
                for task in tasks[:1]:
                    decided = self._visitor.decide(task, "fake" if "1" in task["image_id"] else "real")
                    if decided.status_code == 200:
                        waiting.add(decided.json()["review_id"])
                said = {one for one in waiting if self._visitor.is_said(one)}
                self.done |= said
                waiting -= said
            except (httpx.HTTPError, KeyError, ValueError):  # whatever a dying server does to a connection
                time.sleep(0.2)
            time.sleep(0.05)
