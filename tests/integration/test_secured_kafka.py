"""A broker with TLS, SASL and ACLs: every way in works, every refusal names its setting, and the documented ACLs are
enough.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import SHORT_SESSION
from tests.integration.harness import REPO, Worker, samples, unlike, wait_until
from tests.integration.secured import KEY_PASSWORD, Certificates, SecuredKafka, TlsRedis, documented_redis_user, serving
from worker.clients import kafka_topics
from worker.clients.kafka_consumer import Consumer
from worker.clients.kafka_probe import diagnose
from worker.clients.kafka_producer import Outgoing, Producer
from worker.errors import Unavailable
from worker.local.server import free_port
from worker.settings import KafkaSettings

pytestmark = pytest.mark.integration
PASSWORD = "of the user"
ROW = re.compile(r"^\| (.+?) \| (topic|group)s? (.+?) \| (.+?) \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("secured") / "certificates")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[SecuredKafka]:
    kafka = SecuredKafka(tmp_path_factory.mktemp("secured"), certificates)
    with serving(kafka):
        kafka.set_password(PASSWORD)
        grant(kafka, "worker")
        yield kafka


def grant(kafka: SecuredKafka, principal: str) -> None:
    """What docs/deploy.md lists for `principal`."""
    rows = [
        row
        for row in ROW.findall((REPO / "docs" / "deploy.md").read_text())
        if row[0].split(",")[0].strip("`") == principal
    ]
    assert rows
    for _, kind, names, operations in rows:
        for name in re.findall(r"`(.+?)`", names):
            kafka.allow(kind, name, operations.split(", "))


def by_password(kafka: SecuredKafka, certificates: Certificates, **change: Any) -> KafkaSettings:
    """The settings of a user with a password; a fault is a `change` of one of them."""
    own: dict[str, Any] = {
        "bootstrap_servers": kafka.sasl,
        "security_protocol": "SASL_SSL",
        "ssl_ca_path": certificates.ca,
    }
    return KafkaSettings(**{**own, "sasl_username": "worker", "sasl_password": PASSWORD, **change})


def by_certificate(kafka: SecuredKafka, certificates: Certificates, **change: Any) -> KafkaSettings:
    """The settings of a user with a certificate."""
    own: dict[str, Any] = {
        "bootstrap_servers": kafka.mutual,
        "security_protocol": "SSL",
        "ssl_ca_path": certificates.ca,
    }
    return KafkaSettings(
        **{**own, "ssl_cert_path": certificates.client_cert, "ssl_key_path": certificates.client_key, **change}
    )


def test_every_way_in(broker, certificates):
    """SCRAM, PLAIN, a client certificate, one whose key has a password, a renewed one; names unchecked: who comes so
    sees the topics and writes.
    """
    locked = {"ssl_key_path": certificates.locked_key, "ssl_key_password": KEY_PASSWORD}
    ways = {
        "scram": lambda: by_password(broker, certificates),
        "plain": lambda: by_password(broker, certificates, sasl_mechanism="PLAIN", sasl_password="plain secret"),
        "certificate": lambda: by_certificate(broker, certificates),
        "locked key": lambda: by_certificate(broker, certificates, **locked),
        "another name": lambda: by_password(
            broker, certificates, bootstrap_servers=f"127.0.0.1:{broker.ports['sasl']}", ssl_check_hostname=False
        ),
    }
    for name, settings in ways.items():
        assert {topic.name for topic in kafka_topics.topics(settings())} == {
            "images.incoming",
            "images.verdicts",
            "images.rejected",
            "images.retry",
        }, name
    producer = Producer(by_certificate(broker, certificates))
    certificates.renew_client()
    assert producer.produce([Outgoing("images.rejected", None, b"x", [])]) == []
    producer.close()
    assert diagnose(by_certificate(broker, certificates)) == ""


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"sasl_password": "wrong"}, "ASSAY_KAFKA__SASL_PASSWORD"),
        ({"sasl_mechanism": "PLAIN"}, "ASSAY_KAFKA__SASL_PASSWORD"),
        ({"sasl_mechanism": "SCRAM-SHA-256"}, "ASSAY_KAFKA__SASL_MECHANISM to one of PLAIN, SCRAM-SHA-512"),
        ({"ssl_ca_path": "foreign"}, "not trusted .* ASSAY_KAFKA__SSL_CA_PATH"),
        ({"ssl_ca_path": None}, "not trusted .* ASSAY_KAFKA__SSL_CA_PATH"),
        ({"ssl_ca_path": Path("/missing.pem")}, "ASSAY_KAFKA__SSL_CA_PATH=/missing.pem cannot be read: no such file"),
        ({"bootstrap_servers": "by address"}, "another name .* ASSAY_KAFKA__BOOTSTRAP_SERVERS"),
        ({"security_protocol": "PLAINTEXT"}, "ASSAY_KAFKA__SECURITY_PROTOCOL=PLAINTEXT"),
        ({"security_protocol": "SASL_PLAINTEXT"}, "ASSAY_KAFKA__SECURITY_PROTOCOL=SASL_PLAINTEXT"),
        ({"security_protocol": "SSL"}, "wants SASL .* ASSAY_KAFKA__SECURITY_PROTOCOL=SSL"),
        ({"bootstrap_servers": "plain door"}, "no TLS there .* ASSAY_KAFKA__SECURITY_PROTOCOL=SASL_SSL"),
        (
            {"bootstrap_servers": "plain door", "security_protocol": "SASL_PLAINTEXT"},
            "wants no SASL .* ASSAY_KAFKA__SECURITY_PROTOCOL",
        ),
        ({"bootstrap_servers": "mutual door"}, "refuses our certificate .* ASSAY_KAFKA__SSL_CERT_PATH"),
        ({"bootstrap_servers": "localhost:1"}, "Connection refused"),
    ],
    ids=lambda value: " ".join(f"{name}={text}" for name, text in value.items()) if isinstance(value, dict) else "",
)
def test_a_refusal_names_the_setting(broker, certificates, change, expected):
    """Whatever keeps a client out is told in one line, with the setting to change."""
    real = {
        "foreign": certificates.foreign_ca,
        "by address": f"127.0.0.1:{broker.ports['sasl']}",
        "plain door": broker.address,
        "mutual door": broker.mutual,
    }
    settings = by_password(
        broker, certificates, **{name: real.get(value, value) if value else value for name, value in change.items()}
    )
    said = diagnose(settings)
    assert re.search(expected, said), said
    assert "\n" not in said


def test_a_key_that_cannot_be_opened(broker, certificates, capfd):
    """A key's wrong or missing password is told, and never asked for at the terminal."""
    for password in (None, "wrong"):
        settings = by_certificate(broker, certificates, ssl_key_path=certificates.locked_key, ssl_key_password=password)
        assert "ASSAY_KAFKA__SSL_KEY_PASSWORD do not go together" in diagnose(settings)
    with pytest.raises(Unavailable, match="ASSAY_KAFKA__SSL_KEY_PASSWORD"):
        Producer(settings)
    assert "pass phrase" not in "".join(capfd.readouterr())


def test_a_missing_permission_is_named(broker, certificates):
    """A topic that ACLs hide, one that may not be read, a group, a topic that may not be written to: each is told, with
    where to look.
    """
    settings = by_password(broker, certificates, session_timeout_ms=3000, heartbeat_interval_ms=500)

    def refusal(consumer: Consumer) -> str:
        try:
            consumer.poll(100, 1)
        except Unavailable as error:
            return error.detail
        return ""

    def consume(kind: str, name: str) -> None:
        broker.forbid(kind, name, "READ")
        consumer = Consumer(settings, lambda _new: None, lambda _gone: None)
        try:
            wait_until(lambda: f"{name}" in refusal(consumer), f"no READ on {name}", 20)
            assert "docs/deploy.md" in refusal(consumer)
        finally:
            consumer.close()
            broker.allow(kind, name, ["READ"])

    consume("group", "assay-worker")
    consume("topic", "images.incoming")  # DESCRIBE is left
    hidden = Consumer(
        by_password(broker, certificates, incoming_topic="images.hidden"), lambda _new: None, lambda _gone: None
    )
    assert "images.hidden is not there, or hidden by ACLs" in hidden.obstacle()
    hidden.close()
    producer = Producer(settings)
    broker.forbid("topic", "images.verdicts", "WRITE")

    def denied() -> bool:
        try:
            producer.produce([Outgoing("images.verdicts", None, b"{}", [])])
        except Unavailable as error:
            return "images.verdicts" in error.detail and "docs/deploy.md" in error.detail
        return False

    wait_until(denied, "no WRITE on images.verdicts", 20)
    broker.allow("topic", "images.verdicts", ["WRITE"])
    wait_until(lambda: not denied(), "WRITE again", 20)
    producer.close()


def test_a_worker_behind_locks(broker, certificates, stack, redis_tls_binary, run_cli, tmp_path):
    """SASL_SSL and rediss, with the documented ACLs alone: it waits until its password is right, judges and rejects;
    then send, query, replay.
    """
    secret = tmp_path / "password"
    secret.write_text("not yet set\n")
    outside = KafkaSettings(bootstrap_servers=broker.address)
    store = TlsRedis(tmp_path / "redis", certificates, redis_tls_binary, documented_redis_user("redis secret"))
    with serving(store):
        env = {
            **{name: value for name, value in stack.items() if "TRITON" in name},
            **SHORT_SESSION,
            "ASSAY_KAFKA__BOOTSTRAP_SERVERS": broker.sasl,
            "ASSAY_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
            "ASSAY_KAFKA__SASL_USERNAME": "worker",
            "ASSAY_KAFKA__SASL_PASSWORD_FILE": str(secret),
            "ASSAY_KAFKA__SSL_CA_PATH": str(certificates.ca),
            "ASSAY_REDIS__URL": f"rediss://localhost:{store.port}/0",
            "ASSAY_REDIS__USERNAME": "assay-worker",
            "ASSAY_REDIS__PASSWORD": "redis secret",
            "ASSAY_REDIS__SSL_CA_PATH": str(certificates.ca),
            "ASSAY_REDIS__SSL_CERT_PATH": str(certificates.client_cert),
            "ASSAY_REDIS__SSL_KEY_PATH": str(certificates.client_key),
            "ASSAY_HTTP__PORT": str(free_port()),
        }
        worker = Worker(env, tmp_path / "worker.log")
        try:
            wait_until(
                lambda: _told(worker, "waiting_for", "error", "ASSAY_KAFKA__SASL_PASSWORD"), "it says what it waits for"
            )
            checked = run_cli("check", "--json", env=worker.env)
            assert checked.returncode == 3
            finding = next(finding for finding in json.loads(checked.stdout)["findings"] if finding["name"] == "kafka")
            assert "check ASSAY_KAFKA__SASL_USERNAME and ASSAY_KAFKA__SASL_PASSWORD" in finding["detail"]
            assert finding["hint"] == "", "no advice for a broker that is away"
            for operation in ("READ", "DESCRIBE"):
                broker.forbid("topic", "images.incoming", operation)
            broker.set_password("not yet set")
            wait_until(
                lambda: _told(worker, "nothing_to_consume", "reason", "hidden by ACLs"),
                "it says why it has no partitions",
            )
            grant(broker, "worker")
            worker.wait_ready()
            images = [unlike(data, 1) for data in samples(6).values()]
            producer = Producer(outside)
            sent = [
                Outgoing("images.incoming", b"%d" % number, data, [])
                for number, data in enumerate([*images, b"no image"])
            ]
            assert producer.produce(sent) == []
            producer.close()
            wait_until(lambda: {b"%d" % number for number in range(6)} <= _keys(outside, "images.verdicts"), "verdicts")
            wait_until(lambda: b"6" in _keys(outside, "images.rejected"), "the rejection")
            wait_until(lambda: worker.metric("assay_commits_total") >= 1, "commits")
            assert worker.metric("assay_commit_failures_total") == 0
            for principal in ("send", "send --wait", "replay"):
                grant(broker, principal)
            photo = tmp_path / "photo.jpg"
            photo.write_bytes(unlike(images[0], 2))
            for command in (("send", str(photo), "--wait"), ("query", "photo.jpg"), ("replay",)):
                done = run_cli(*command, "--json", env=worker.env)
                assert done.returncode == 0, done.stderr
                assert ("photo.jpg" if command[0] != "replay" else '"replayed": true') in done.stdout
            assert worker.terminate() == 0
        finally:
            broker.set_password(PASSWORD)
            if worker.process.poll() is None:
                worker.kill()


def _told(worker: Worker, event: str, field: str, text: str) -> bool:
    return any(text in str(line[field]) for line in worker.events(event))


def _keys(settings: KafkaSettings, topic: str) -> set[bytes | None]:
    """Of all records in `topic`."""
    reader = kafka_topics.Reader(settings, topic)
    try:
        return {record.key for record in reader.until_end()}
    finally:
        reader.close()
