"""Servers as they stand in production, each small and on 127.0.0.1: Kafka with TLS, SASL and ACLs; Redis with TLS and
ACL users, behind Sentinel, as a Cluster. Used by test_secured_kafka.py and test_secured_redis.py.

    with serving(SecuredKafka(directory, certificates)) as [kafka]: …
"""

from __future__ import annotations

import contextlib
import hashlib
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path

import redis
import trustme
from cryptography.hazmat.primitives import serialization as pem
from kafka.admin import ACL, ACLOperation, ACLPermissionType, KafkaAdminClient, ResourcePattern, ResourceType
from kafka.admin import UserScramCredentialUpsertion as ScramUser

from tests.integration.harness import REPO, wait_until
from worker.local import install
from worker.local.kafka_server import KafkaServer
from worker.local.redis_server import RedisServer
from worker.local.server import HOST, NotServing, Server, free_port, lines

KEY_PASSWORD = "of the key"  # made for one test


class Certificates:
    """PEM files: `ca`, a server's `server` (key and chain) for localhost, a client's `client_cert` and `client_key`, a
    `foreign_ca`.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.ca, self.foreign_ca, self.server, self.client_cert, self.client_key, self.locked_key = (
            directory / f"{name}.pem"
            for name in ("ca", "foreign-ca", "server", "client", "client-key", "client-key-locked")
        )
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.foreign_ca)
        issued = self._authority.issue_cert("localhost")
        self.server.write_bytes(
            _pkcs8(issued.private_key_pem.bytes()) + b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        )
        self.renew_client()

    def renew_client(self) -> None:
        """Another client certificate and key in the files' place."""
        issued = self._authority.issue_cert("worker.example.org", common_name="worker")
        self.client_cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        key = issued.private_key_pem.bytes()
        self.client_key.write_bytes(_pkcs8(key))
        self.locked_key.write_bytes(_pkcs8(key, pem.BestAvailableEncryption(KEY_PASSWORD.encode())))


def _pkcs8(key: bytes, encryption: pem.KeySerializationEncryption | None = None) -> bytes:
    """The form that Java reads."""
    return pem.load_pem_private_key(key, None).private_bytes(
        pem.Encoding.PEM, pem.PrivateFormat.PKCS8, encryption or pem.NoEncryption()
    )


class SecuredKafka(KafkaServer):
    """One broker with three doors: plain for the test itself (a super user), `sasl` (SASL_SSL), `mutual` (SSL with
    client certificates).
    """

    port_names = ("kafka", "kafka_controller", "sasl", "mutual")

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        super().__init__(directory, {name: free_port() for name in self.port_names}, retention_bytes=64 * 1024**2)
        self._certificates = certificates
        self.sasl, self.mutual = (f"localhost:{self.ports[name]}" for name in ("sasl", "mutual"))

    def files(self) -> dict[str, str]:
        doors = {"PLAINTEXT": self.address, "SASL": self.sasl, "MUTUAL": self.mutual}
        listeners = ",".join(f"{name}://{address}" for name, address in doors.items())
        login = "org.apache.kafka.common.security"
        properties: dict[str, object] = {
            "listeners": f"{listeners.replace('localhost', HOST)},CONTROLLER://{HOST}:{self.ports['kafka_controller']}",
            "advertised.listeners": listeners,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_SSL,MUTUAL:SSL",
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            "listener.name.sasl.plain.sasl.jaas.config": (
                f'{login}.plain.PlainLoginModule required user_worker="plain secret";'
            ),
            "listener.name.sasl.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            "listener.name.mutual.ssl.client.auth": "required",
            "ssl.principal.mapping.rules": "RULE:^.*CN=([^,]+).*$/$1/",
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self._certificates.server,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self._certificates.ca,
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        }
        found = super().files()
        return {**found, "server.properties": found["server.properties"] + lines(properties, "=")}

    def set_password(self, password: str) -> None:
        """Of the SCRAM user `worker`."""
        with self._admin() as admin:
            admin.alter_user_scram_credentials([ScramUser("worker", "SCRAM-SHA-512", password)])

    def allow(self, kind: str, name: str, operations: list[str]) -> None:
        """Allow the user `worker` these operations on a `topic` or `group`."""
        with self._admin() as admin:
            pattern = ResourcePattern(ResourceType[kind.upper()], name)
            admin.create_acls(
                [
                    ACL("User:worker", "*", ACLOperation[operation], ACLPermissionType.ALLOW, pattern)
                    for operation in operations
                ]
            )

    def forbid(self, kind: str, name: str, operation: str) -> None:
        """Take one permission back."""
        with self._admin() as admin:
            pattern = ResourcePattern(ResourceType[kind.upper()], name)
            admin.delete_acls([ACL("User:worker", "*", ACLOperation[operation], ACLPermissionType.ALLOW, pattern)])

    @contextlib.contextmanager
    def _admin(self) -> Iterator[KafkaAdminClient]:
        admin = KafkaAdminClient(bootstrap_servers=self.address)
        try:
            yield admin
        finally:
            admin.close()


class Redis(RedisServer):
    """A Redis with more lines in its configuration."""

    def __init__(self, directory: Path, more: Mapping[str, object] | None = None) -> None:
        super().__init__(directory, {"redis": free_port()})
        # Replicas are served at once, not after waiting five seconds for others.
        self.more = {"repl-diskless-sync-delay": 0, **(more or {})}

    def files(self) -> dict[str, str]:
        return {"redis.conf": super().files()["redis.conf"] + lines(self.more, " ")}


class TlsRedis(Redis):
    """`binary` behind TLS alone, client certificates required, with one ACL user: the default one is off."""

    def __init__(self, directory: Path, certificates: Certificates, binary: Path, user: str) -> None:
        super().__init__(directory)
        self._binary = binary
        self._certificates = certificates
        self.socket = self.directory / "redis.sock"
        self.tls = {
            "tls-cert-file": certificates.server,
            "tls-key-file": certificates.server,
            "tls-ca-cert-file": certificates.ca,
            "tls-auth-clients": "yes",
        }
        self.more = {
            **self.tls,
            "port": 0,
            "tls-port": self.port,
            "unixsocket": self.socket,
            "user": f"{user}\nuser default off",
        }

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [str(self._binary), str(self.directory / "redis.conf")], {"LD_LIBRARY_PATH": str(self._binary.parent)}

    def check(self) -> None:
        context = ssl.create_default_context(cafile=str(self._certificates.ca))
        context.load_cert_chain(self._certificates.client_cert, self._certificates.client_key)
        try:
            context.wrap_socket(self.connect(), server_hostname="localhost").close()
        except OSError as error:
            raise NotServing(str(error)) from error


class Sentinel(Server):
    """Watches one master under the name `verdicts`; `QUORUM` of them must agree that it is gone."""

    QUORUM = 2

    name = "sentinel"
    port_names = ("sentinel",)

    def __init__(self, directory: Path, master: RedisServer) -> None:
        super().__init__(directory, {"sentinel": free_port()})
        self._master = master

    @property
    def env(self) -> dict[str, str]:
        return {}

    def files(self) -> dict[str, str]:
        watched = {
            "monitor verdicts": f"{HOST} {self._master.port} {self.QUORUM}",
            "down-after-milliseconds verdicts": 1_000,
            "failover-timeout verdicts": 3_000,
        }
        own = {"bind": HOST, "port": self.port, "dir": f'"{self.directory}"', "requirepass": "sentinels"}
        return {
            "sentinel.conf": lines(
                own
                | {f"sentinel {name}": value for name, value in watched.items()}
                | {"sentinel sentinel-pass": "sentinels"},
                " ",
            )
        }

    def command(self) -> tuple[list[str], dict[str, str]]:
        return [str(install.redis_server()), str(self.directory / "sentinel.conf"), "--sentinel"], {}

    def check(self) -> None:
        """It knows the replica and both other sentinels."""
        with contextlib.closing(redis.Redis(HOST, self.port, password="sentinels", decode_responses=True)) as client:
            try:
                seen = client.sentinel_master("verdicts")
            except redis.RedisError as error:
                raise NotServing(str(error)) from error
        if seen["num-slaves"] < 1 or seen["num-other-sentinels"] < 2:
            raise NotServing("it has not met the others yet")


class TlsSentinel(Sentinel):
    """Alone before a TlsRedis, and itself behind TLS."""

    QUORUM = 1

    def __init__(self, directory: Path, master: TlsRedis) -> None:
        super().__init__(directory, master)
        self._master: TlsRedis = master

    def files(self) -> dict[str, str]:
        own = {"port": 0, "tls-port": self.port, "tls-replication": "yes", **self._master.tls}
        own |= {f"sentinel {name}": "yes" for name in ("resolve-hostnames", "announce-hostnames")}
        text = super().files()["sentinel.conf"].replace(f"verdicts {HOST}", "verdicts localhost")
        return {"sentinel.conf": lines(own, " ") + text.replace(f"port {self.port}\n", "", 1)}

    def command(self) -> tuple[list[str], dict[str, str]]:
        argv, extra = self._master.command()
        return [argv[0], str(self.directory / "sentinel.conf"), "--sentinel"], extra

    def check(self) -> None:
        self.connect().close()


@contextlib.contextmanager
def watched(directory: Path) -> Iterator[tuple[Redis, list[Sentinel]]]:
    """A master with a replica, and three sentinels, all serving. Sentinels see at once a replica that was there before
    them, else after 10 s.
    """
    master = Redis(directory / "master")
    replica = Redis(directory / "replica", {"replicaof": f"{HOST} {master.port}"})
    sentinels = [Sentinel(directory / f"sentinel-{number}", master) for number in range(3)]
    with serving(master, replica), contextlib.closing(redis.Redis(HOST, replica.port)) as client:
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", "the replica follows", 20)
        with serving(*sentinels):
            yield master, sentinels


def cluster_nodes(directory: Path) -> list[Redis]:
    """Three masters and a replica (of the first, once `join` was called), not started."""
    common = {"cluster-enabled": "yes", "cluster-node-timeout": 1_000, "cluster-replica-validity-factor": 0}
    return [Redis(directory / f"node-{number}", {**common, "cluster-port": free_port()}) for number in range(4)]


def join(nodes: list[Redis]) -> None:
    """Make one cluster of running nodes, and wait until all of them say so."""
    clients = [redis.Redis(HOST, node.port, decode_responses=True) for node in nodes]
    for number, client in enumerate(clients[:3]):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * 16_384 // 3, (number + 1) * 16_384 // 3 - 1)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for node in nodes[1:]:
        clients[0].execute_command("CLUSTER", "MEET", HOST, node.port, int(str(node.more["cluster-port"])))
    wait_until(
        lambda: all(len(client.cluster("NODES")) == len(nodes) for client in clients), "the nodes know each other", 20
    )
    clients[3].execute_command("CLUSTER", "REPLICATE", clients[0].cluster("MYID"))
    ready = lambda: all(client.cluster("INFO")["cluster_state"] == "ok" for client in clients)  # noqa: E731
    wait_until(
        lambda: ready() and clients[3].info("replication").get("master_link_status") == "up",
        "slots and replica are served",
        20,
    )
    for client in clients:
        client.close()


@contextlib.contextmanager
def serving(*servers: Server) -> Iterator[None]:
    """All of them serve; ended by their pids, whatever happens."""
    try:
        for server in servers:
            server.start()
        for server in servers:
            wait_until(lambda server=server: _serves(server), f"{server.name} serves", server.boot_s)
        yield
    finally:
        for server in servers:
            server.stop(grace_s=0)


def _serves(server: Server) -> bool:
    if server.running() is None:
        raise AssertionError(f"{server.name} ended: {server.log_tail()}")
    try:
        server.check()
    except NotServing:
        return False
    return True


def documented_redis_user(password: str) -> str:
    """The ACL user of docs/deploy.md, as a line of redis.conf."""
    line = next(
        line for line in (REPO / "docs" / "deploy.md").read_text().splitlines() if line.startswith("ACL SETUSER ")
    )
    return line.removeprefix("ACL SETUSER ").replace(">PASSWORD", "#" + hashlib.sha256(password.encode()).hexdigest())
