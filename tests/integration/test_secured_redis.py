"""Redis behind TLS with a least user, on a Unix socket, behind Sentinel, and as a Cluster: what is refused, and what a
fail-over costs.
"""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.integration.harness import samples, unlike, wait_until
from tests.integration.secured import (
    Certificates,
    TlsRedis,
    TlsSentinel,
    cluster_nodes,
    documented_redis_user,
    join,
    serving,
    watched,
)
from tests.twins import scores
from worker.clients import redis as redis_client
from worker.clients.redis import ScoredImage, Store, VerdictWrite
from worker.clients.redis_connect import connect
from worker.clients.redis_scripts import Scripts
from worker.contract import ImageInfo, ModelRef, Origin, PolicyRef, Timings, Verdict, overtakes
from worker.errors import Unavailable
from worker.local.server import HOST, Server
from worker.settings import RedisSettings, load

pytestmark = pytest.mark.integration
Deployment = Callable[[Path], AbstractContextManager[tuple[dict[str, str], list[Server]]]]
IMAGE = ImageInfo(format="png", width=8, height=9, bytes=1)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, redis_tls_binary: Path) -> Iterator[tuple[TlsRedis, Certificates]]:
    directory = tmp_path_factory.mktemp("tls")
    certificates = Certificates(directory / "certificates")
    server = TlsRedis(directory, certificates, redis_tls_binary, documented_redis_user("secret"))
    with serving(server):
        yield server, certificates


def by_tls(locked: tuple[TlsRedis, Certificates], **change: Any) -> RedisSettings:
    """The settings of the documented user; a fault is a `change` of one of them."""
    server, certificates = locked
    own: dict[str, Any] = {
        "url": f"rediss://localhost:{server.port}/0",
        "username": "assay-worker",
        "password": "secret",
    }
    own |= {
        "ssl_ca_path": certificates.ca,
        "ssl_cert_path": certificates.client_cert,
        "ssl_key_path": certificates.client_key,
    }
    return RedisSettings(**{**own, **change})


def image(number: int) -> ScoredImage:
    return ScoredImage(f"{number:064x}", f"id/{number}", "v1", scores(0.5), IMAGE)


def parked_verdict(offset: int, minute: int = 0, recorded: int | None = None) -> VerdictWrite:
    made = Verdict(
        verdict_id=uuid.uuid4(),
        image_id="parked",
        sha256="a" * 64,
        decision="real",
        reasons=[],
        scores=scores(0.5),
        model=ModelRef(name="code", version="0123456789ab"),
        policy=PolicyRef(name="default", version="0123456789ab"),
        image=IMAGE,
        source="model",
        decided_at=f"2026-11-21T12:{minute:02}:00.000Z",
        timings_ms=Timings(queued=None, decode=None, infer=None, total=1.0),
        origin=Origin(topic="images.incoming", partition=0, offset=offset, uri=None),
    )
    recorded_at = f"2026-11-21T12:{minute if recorded is None else recorded:02}:00.000Z"
    return VerdictWrite(made, made.to_json(), recorded_at)


def test_the_documented_user_may_do_what_the_worker_does(locked):
    """Over TLS and over a Unix socket, user in the settings or in the URL: writing, reading, replacing a foreign key;
    nothing outside the prefix.
    """
    server, _ = locked
    ways = [
        {},
        {"url": f"unix://{server.socket}"},
        {"url": f"unix://assay-worker:secret@{server.socket}", "username": None, "password": None},
    ]
    for number, way in enumerate(ways):
        for lifetime_s in (0, 60):
            with closing(Store(by_tls(locked, hash_ttl=lifetime_s, **way))) as store:
                store.save([], [image(number)])
                assert store.cached([image(number).sha256], "v1")[0] is not None
                assert store.latest_id(image(number).sha256) == f"id/{number}"
                assert store.verdicts(["nobody"]) == [store.verdict("nobody")] == [{}]
    with closing(Store(by_tls(locked))) as store, closing(Store(by_tls(locked, key_prefix="assay:shadow:"))) as other:
        store.add_comparisons(f"image:{image(9).sha256}", [{"a": "b"}], 10)  # a stream where the other has its hash
        other.save([], [image(9)])
        assert other.latest_id(image(9).sha256) == "id/9"
    with (
        closing(Store(by_tls(locked, key_prefix="elsewhere:"))) as store,
        pytest.raises(Unavailable, match=r"docs/deploy\.md"),
    ):
        store.verdict("a")


def check_that_the_later_stays(store: Store) -> None:
    store.save([parked_verdict(5)], [])
    for late, stays in ((3, 5), (8, 8), (7, 8)):
        store.save([], [], [parked_verdict(late)])
        assert json.loads(store.verdict("parked")["json"])["origin"]["offset"] == stays


def test_a_parked_record_does_not_overwrite_a_later_one(locked):
    """With the rights of the documented user: the later record's verdict stays, an earlier one's is replaced; a key of
    another type is replaced too.
    """
    with closing(Store(by_tls(locked))) as store, closing(Store(by_tls(locked, key_prefix="assay:shadow:"))) as other:
        check_that_the_later_stays(store)
        store.add_comparisons("verdict:parked", [{"a": "b"}], 10)  # a stream where the other has its hash
        other.save([], [], [parked_verdict(2)])
        assert json.loads(other.verdict("parked")["json"])["origin"]["offset"] == 2


def test_nor_does_it_in_a_cluster(tmp_path):
    """Where only the keys of one slot are written in one step."""
    with as_cluster(tmp_path) as (variables, _), closing(Store(load(environ=variables).redis)) as store:
        check_that_the_later_stays(store)


def offset_of(store: Store) -> int:
    return int(json.loads(store.verdict("parked")["json"])["origin"]["offset"])


def test_a_call_that_hung_does_not_overwrite_what_the_next_owner_wrote(locked):
    """A later record's verdict stays where it was made since our record was there: also where ours is judged again, by
    a worker that may be ended before it comes to the later one. Made before our record was, it is replaced: the topic
    was made anew. Others of the same call are written either way.
    """
    with closing(Store(by_tls(locked))) as store:
        store.save([parked_verdict(5, minute=5)], [])
        for own, stays in (((3, 4), 5), ((3, 5), 3), ((2, 9), 2), ((4, 1), 4), ((3, 9, 4), 4), ((5, 9, 4), 5)):
            store.save([parked_verdict(*own)], [image(own[0])])
            assert offset_of(store) == stays
            assert store.latest_id(image(own[0]).sha256) is not None
            store.save([parked_verdict(stays, minute=5)], [])


def test_nor_where_it_arrives_between_two_steps(locked, monkeypatch):
    """The look and the write are one step: what another worker writes in between is looked at."""
    with closing(Store(by_tls(locked))) as ours, closing(Store(by_tls(locked))) as theirs:
        ours._connected().delete(ours.verdict_key("parked"))
        ours.save([parked_verdict(1)], [])
        look, looks = ours._replaced, []

        def replaced(verdicts: Any) -> set[str]:
            """The real one, but after the first time the other worker is faster than our write."""
            looks.append(look(verdicts))
            if len(looks) == 1:
                theirs.save([parked_verdict(9, minute=9)], [])
            return looks[-1]

        monkeypatch.setattr(ours, "_replaced", replaced)
        ours.save([parked_verdict(3, minute=3)], [])
        assert looks == [set(), {ours.verdict_key("parked")}]
        assert offset_of(ours) == 9


def test_a_later_record_that_is_judged_meanwhile_is_not_overwritten(locked, monkeypatch):
    """The retry topic may be another worker's than the images': its check and its write are one step."""
    with closing(Store(by_tls(locked))) as ours, closing(Store(by_tls(locked))) as theirs:
        ours._connected().delete(ours.verdict_key("parked"))
        ours.save([parked_verdict(1)], [])
        checks = []

        def check(stored_json: object, verdict: Verdict) -> bool:
            """The real one, but after the first time the other worker is faster than our write."""
            answer = overtakes(stored_json, verdict)
            checks.append(answer)
            if len(checks) == 1:
                theirs.save([parked_verdict(9)], [])
            return answer

        monkeypatch.setattr(redis_client, "overtakes", check)
        ours.save([], [], [parked_verdict(3)])
        assert checks == [False, True]
        assert json.loads(ours.verdict("parked")["json"])["origin"]["offset"] == 9


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"password": "wrong"}, "ASSAY_REDIS__PASSWORD"),
        ({"username": None, "password": None}, "ASSAY_REDIS__USERNAME"),
        ({"ssl_ca_path": None}, "ASSAY_REDIS__SSL_CA_PATH"),
        ({"ssl_ca_path": Path("/missing.pem")}, "ASSAY_REDIS__SSL_CA_PATH=/missing.pem is not there"),
        ({"ssl_cert_path": None, "ssl_key_path": None}, "ASSAY_REDIS__SSL_CERT_PATH"),
        ({"ssl_key_path": "locked"}, "ASSAY_REDIS__SSL_KEY_PATH"),
        ({"url": "by address"}, "not valid for '127.0.0.1'.*ASSAY_REDIS__URL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_refusal_names_the_setting(locked, change, expected, capfd):
    """Whatever keeps the worker out is told in one line, with the setting to change; no key's password is asked for at
    the terminal.
    """
    server, certificates = locked
    real = {"locked": certificates.locked_key, "by address": f"rediss://{server.address}/0"}
    settings = by_tls(locked, **{name: real.get(value, value) if value else value for name, value in change.items()})
    with closing(Store(settings)) as store, pytest.raises(Unavailable, match=expected) as refused:
        store.ping()
    assert "\n" not in refused.value.detail
    assert "pass phrase" not in "".join(capfd.readouterr())


@contextmanager
def behind_sentinel(directory: Path) -> Iterator[tuple[dict[str, str], list[Server]]]:
    """Variables, and whom to kill: the master and the sentinel that is asked first."""
    with watched(directory) as (master, sentinels):
        own = {"MODE": "sentinel", "SENTINELS": ",".join(s.address for s in sentinels), "SENTINEL_SERVICE": "verdicts"}
        yield (
            {f"ASSAY_REDIS__{name}": value for name, value in {**own, "SENTINEL_PASSWORD": "sentinels"}.items()},
            [master, sentinels[0]],
        )


def test_scripts_name_the_node_that_has_their_keys(tmp_path):
    """Of a cluster: another master that is started anew has lost nothing of theirs."""
    with as_cluster(tmp_path) as (variables, _):
        settings = load(environ=variables).redis
        client = connect(settings, settings.timeout_ms)
        named = {}
        for tag in map(str, range(30)):
            with closing(Scripts(settings, tag, {"where": "return redis.call('SET', KEYS[1], 1)"})) as scripts:
                scripts.call("where")
                named[tag] = scripts.run_id()
                node = client.get_node_from_key(scripts.base)
                assert redis.Redis(port=node.port, decode_responses=True).info("server")["run_id"] == named[tag]
        assert len(set(named.values())) == 3
        client.close()


@contextmanager
def as_cluster(directory: Path) -> Iterator[tuple[dict[str, str], list[Server]]]:
    """Variables, and whom to kill: the master that has a replica."""
    nodes = cluster_nodes(directory)
    with serving(*nodes):
        join(nodes)
        yield {"ASSAY_REDIS__MODE": "cluster", "ASSAY_REDIS__URL": f"redis://{HOST}:{nodes[1].port}"}, [nodes[0]]


@pytest.mark.parametrize("deployment", [behind_sentinel, as_cluster])
def test_a_worker_outlives_a_master(deployment: Deployment, outside, start_worker, run_cli, tmp_path):
    """kill -9 of a master under a worker: it waits for the fail-over, every image gets its verdict, in Redis too, and
    none is rejected.
    """
    jpegs = [data for name, data in samples().items() if name.endswith(".jpg")]
    images = {f"image/{number}": unlike(jpegs[number % len(jpegs)], number) for number in range(24)}
    before, after = dict(list(images.items())[:12]), dict(list(images.items())[12:])
    with deployment(tmp_path / "servers") as (variables, victims):
        worker = start_worker(**variables)
        outside.send_all(before)
        outside.wait_verdicts(before)
        for server in victims:
            process = server.running()
            assert process is not None
            process.signal(signal.SIGKILL)
        outside.send_all(after)
        outside.wait_verdicts(images)
        wait_until(outside.all_committed, "every offset committed")
        assert outside.rejections() == {}
        settings = load(environ={name: value for name, value in worker.env.items() if name.startswith("ASSAY_")}).redis
        with closing(Store(settings)) as store:
            assert [stored.get("json") is not None for stored in store.verdicts(list(images))] == [True] * len(images)
        wait_until(worker.is_ready, "ready again")
        photo = tmp_path / "photo.jpg"
        photo.write_bytes(unlike(jpegs[0], 99))
        for command in (("send", str(photo), "--wait"), ("query", "--file", str(photo))):
            done = run_cli(*command, "--json", env=worker.env)
            assert done.returncode == 0, done.stderr
            assert "photo.jpg" in done.stdout
        assert worker.terminate() == 0


def test_sentinels_are_asked_over_tls_too(locked, tmp_path):
    """With rediss:// the sentinels are behind TLS as well: the master is found and written to; without the authority
    the setting is named.
    """
    server, _ = locked
    sentinel = TlsSentinel(tmp_path, server)
    with serving(sentinel):
        own = {
            "url": "rediss://localhost/0",
            "mode": "sentinel",
            "sentinels": f"localhost:{sentinel.port}",
            "sentinel_service": "verdicts",
        }
        with closing(Store(by_tls(locked, **own, sentinel_password="sentinels"))) as store:
            store.save([], [image(20)])
            assert store.latest_id(image(20).sha256) == "id/20"
        foreign = Store(by_tls(locked, **own, sentinel_password="sentinels", ssl_ca_path=None))
        with closing(foreign) as store, pytest.raises(Unavailable, match="ASSAY_REDIS__SSL_CA_PATH"):
            store.ping()


def test_sentinels_that_refuse_are_told(tmp_path):
    """A wrong password of the sentinels, a name that they do not watch: one line with their addresses and the
    settings.
    """
    with behind_sentinel(tmp_path) as (variables, _):
        for change, expected in (
            ({"SENTINEL_PASSWORD": "wrong"}, "AuthenticationError"),
            ({"SENTINEL_SERVICE": "other"}, "watch no master"),
        ):
            changed = {**variables, **{f"ASSAY_REDIS__{name}": value for name, value in change.items()}}
            with (
                closing(Store(load(environ=changed).redis)) as store,
                pytest.raises(Unavailable, match=expected) as refused,
            ):
                store.ping()
            assert f"sentinels {HOST}:" in refused.value.detail
            assert "ASSAY_REDIS__SENTINEL_PASSWORD" in refused.value.detail
            assert len(refused.value.detail) < 450
