"""Verdicts for somebody else's moderation system: reports for Coop, actions for Osprey. An example to be changed.

    COOP_API_KEY=… python -m deploy.examples.adaptor coop --url https://coop.example.org --item-type IMAGE_TYPE \
        --reporter-type USER_TYPE --decisions fake,review
    python -m deploy.examples.adaptor osprey --topic osprey.actions_input

Kafka is that of the worker's settings (ASSAY_KAFKA__…). Each verdict is handed over at least once: its offset is
committed afterwards, so what a crash leaves open comes again, under the same ids. docs/adaptors.md has the shapes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import httpx
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from worker import settings as settings_module
from worker.clients.kafka import as_unavailable, consumer_options
from worker.clients.kafka_fetcher import RecordConsumer
from worker.clients.kafka_producer import Outgoing, Producer
from worker.clients.kafka_topics import publish
from worker.contract import Verdict
from worker.errors import AssayError, Unavailable
from worker.settings import Settings

Deliver = Callable[[list[Verdict]], None]
_AT_ONCE = 100
_LONGEST_WAIT_S = 60.0


def report(verdict: Verdict, *, item_type: str, reporter_type: str, image_url: str) -> dict[str, Any]:
    """The body of Coop's `POST /api/v1/report`. The item's id is the image's: reports on one image meet at one item."""
    data: dict[str, Any] = {
        "verdict_id": str(verdict.verdict_id),
        "decision": verdict.decision,
        "scores": verdict.scores.model_dump(),
        "model": f"{verdict.model.name} {verdict.model.version}",
        "sha256": verdict.sha256,
    }
    if image_url:
        data["images"] = [image_url.replace("{image_id}", verdict.image_id).replace("{sha256}", verdict.sha256)]
    return {
        "reporter": {"kind": "user", "id": "assay", "typeId": reporter_type},
        "reportedAt": verdict.decided_at,
        "reportedForReason": {"reason": "; ".join([verdict.decision, *verdict.reasons])},
        "reportedItem": {"id": verdict.image_id, "typeId": item_type, "data": data},
    }


def action(verdict: Verdict) -> dict[str, Any]:
    """The record that Osprey's worker reads from Kafka. `action_id`: 63 bits of the verdict's id."""
    return {
        "send_time": verdict.decided_at,
        "data": {
            "action_id": action_id(verdict.verdict_id),
            "action_name": "assay_verdict",
            "data": json.loads(verdict.to_json()),
        },
    }


def action_id(verdict_id: uuid.UUID) -> int:
    """From 0 to 2**63 - 1."""
    return verdict_id.int >> 65


class Coop:
    """Use as Deliver. Waits while the server is away or says 429; 401 and 403 end the program, 400 is said and left."""

    def __init__(self, url: str, key: str, body: Callable[[Verdict], dict[str, Any]]) -> None:
        self._client = httpx.Client(base_url=url, headers={"X-API-KEY": key}, timeout=30)
        self._body = body

    def __call__(self, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            self._report(verdict)

    def _report(self, verdict: Verdict) -> None:
        wait_s = 0.5
        while True:
            try:
                answer = self._client.post("/api/v1/report", json=self._body(verdict))
            except httpx.TransportError as error:
                said = str(error)
            else:
                if answer.is_success:
                    return
                said = f"{answer.status_code} {answer.text[:300]}"
                if answer.status_code in (401, 403):
                    raise SystemExit(f"Coop refuses COOP_API_KEY: {said}")
                if answer.status_code < 500 and answer.status_code != 429:
                    print(f"{verdict.image_id}: left out, Coop says {said}", file=sys.stderr)
                    return
            print(f"Coop is away, next try in {wait_s:g} s: {said}", file=sys.stderr)
            time.sleep(wait_s)
            wait_s = min(_LONGEST_WAIT_S, 2 * wait_s)


class Osprey:
    """Use as Deliver: onto a topic, acknowledged by all replicas. Raises Unavailable."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._producer = Producer(settings.kafka)
        self._topic = topic

    def __call__(self, verdicts: list[Verdict]) -> None:
        records = [
            Outgoing(self._topic, one.image_id.encode(), json.dumps(action(one)).encode(), []) for one in verdicts
        ]
        publish(self._producer, records)


def forward(
    settings: Settings, group: str, decisions: Sequence[str], deliver: Deliver, stop: Callable[[], bool]
) -> None:
    """Hands over what is on the verdicts topic, from its beginning for a new group. Raises Unavailable."""
    kafka = settings.kafka
    with as_unavailable(kafka):
        consumer = RecordConsumer(**consumer_options(kafka), group_id=group, auto_offset_reset="earliest")
        consumer.subscribe([kafka.verdicts_topic])
    try:
        while not stop():
            with as_unavailable(kafka):
                records = consumer.poll_records(500, _AT_ONCE, kafka.fetch_max_bytes)
            found = []
            for record in records:
                try:
                    found.append(Verdict.model_validate_json(record.value or b""))
                except ValueError:
                    print(f"{record.topic}/{record.partition}/{record.offset}: no verdict", file=sys.stderr)
            deliver([one for one in found if one.decision in decisions])
            ends = {TopicPartition(one.topic, one.partition): one.offset + 1 for one in records}
            with as_unavailable(kafka):
                consumer.commit({place: OffsetAndMetadata(end, "", -1) for place, end in ends.items()})
    finally:
        consumer.close(autocommit=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", choices=("coop", "osprey"))
    parser.add_argument("--decisions", default="review", help="comma separated: real, fake, review")
    parser.add_argument("--group", default="", help="consumer group; else assay-to-coop or assay-to-osprey")
    parser.add_argument("--url", default="", help="of Coop, without /api/v1/report")
    parser.add_argument("--item-type", default="", help="Coop's item type of images")
    parser.add_argument("--reporter-type", default="", help="Coop's item type of users")
    parser.add_argument(
        "--image-url", default="", help="where Coop's people see it: https://cdn/{image_id} or {sha256}"
    )
    parser.add_argument("--topic", default="osprey.actions_input", help="Osprey's input topic")
    given = parser.parse_args(arguments)
    settings = settings_module.load()
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: stopping.append(number))
    deliver: Deliver
    if given.to == "coop":
        wanted = {"--url": given.url, "--item-type": given.item_type, "--reporter-type": given.reporter_type}
        wanted["COOP_API_KEY"] = os.environ.get("COOP_API_KEY", "")
        if missing := [name for name, value in wanted.items() if not value]:
            parser.error(f"{', '.join(missing)}: expected for coop")
        types = {"item_type": given.item_type, "reporter_type": given.reporter_type, "image_url": given.image_url}
        deliver = Coop(given.url, wanted["COOP_API_KEY"], lambda verdict: report(verdict, **types))
    else:
        deliver = Osprey(settings, given.topic)
    while not stopping:
        try:
            forward(
                settings,
                given.group or f"assay-to-{given.to}",
                given.decisions.split(","),
                deliver,
                lambda: bool(stopping),
            )
        except Unavailable as error:
            print(f"{error}; again in 2 s", file=sys.stderr)
            time.sleep(2)


if __name__ == "__main__":
    try:
        main()
    except AssayError as error:
        raise SystemExit(str(error)) from None
