"""Where https:// references may lead: redirects, names and the addresses behind them, proxies."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from tests.clients.tls_server import BODY, HOST, Make, Server, get, rejected
from worker.errors import RejectReason, Unavailable


def test_redirects_are_off(server: Server, make: Make) -> None:
    """A redirect is denied, even to the same host, and names the setting that allows it."""
    refusal = rejected(make(), server, "/redirect//ok")
    assert refusal.reason is RejectReason.FETCH_DENIED
    assert "ASSAY_REFERENCES__MAX_REDIRECTS" in refusal.detail
    assert server.handler.requests == {"/redirect//ok": 1}


def test_allowed_redirects_are_followed(server: Server, make: Make) -> None:
    """Relative and absolute targets on the list are followed, up to the number allowed."""
    fetcher = make(max_redirects=2)
    assert get(fetcher, server, "/redirect//ok") == BODY
    assert get(fetcher, server, f"/redirect/https://a.wild.example:{server.port}/ok") == BODY
    refusal = rejected(fetcher, server, "/hop/0")
    assert refusal.reason is RejectReason.FETCH_FAILED
    assert server.handler.requests["/hop/2"] == 1
    assert "/hop/3" not in server.handler.requests


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("https://evil.example/", RejectReason.FETCH_DENIED),
        (f"https://{HOST}/", RejectReason.FETCH_DENIED),
        ("http://img.example.org/", RejectReason.FETCH_DENIED),
        ("file:///etc/passwd", RejectReason.FETCH_DENIED),
        ("s3://bucket/key", RejectReason.FETCH_DENIED),
        ("//127.0.0.1/", RejectReason.FETCH_DENIED),
        ("https://u:p@img.example.org/", RejectReason.FETCH_DENIED),
        ("https://[::1/", RejectReason.FETCH_FAILED),
    ],
)
def test_each_hop_is_checked(server: Server, make: Make, location: str, reason: RejectReason) -> None:
    """A redirect leads nowhere that the reference itself may not name."""
    assert rejected(make(max_redirects=5), server, f"/redirect/{location}").reason is reason
    assert sum(server.handler.requests.values()) == 1


def test_a_redirect_without_a_location_fails(server: Server, make: Make) -> None:
    """A redirect to nothing is the object's fault."""
    assert rejected(make(max_redirects=5), server, "/nowhere").reason is RejectReason.FETCH_FAILED


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1%lo"]
)
def test_names_that_lead_inside_are_denied(server: Server, make: Make, address: str) -> None:
    """An allowed name with a private address is denied, and no connection is made."""
    refusal = rejected(make(allow_private_addresses=False, resolve=lambda *_: [address]), server, "/ok")
    assert refusal.reason is RejectReason.FETCH_DENIED
    assert "ASSAY_REFERENCES__ALLOW_PRIVATE_ADDRESSES" in refusal.detail
    assert server.handler.connections["tls"] == 0


def test_a_literal_address_needs_both_permissions(server: Server, make: Make) -> None:
    """A listed address is still checked; an unlisted one is denied although its range is allowed."""
    listed = [f"127.0.0.1:{server.port}"]
    resolve = lambda host, _: [host]  # noqa: E731 - shorter than a function
    assert get(make(https_hosts=listed, resolve=resolve), server, "/ok", host="127.0.0.1") == BODY
    assert (
        rejected(
            make(https_hosts=listed, resolve=resolve, allow_private_addresses=False), server, "/ok", host="127.0.0.1"
        ).reason
        is RejectReason.FETCH_DENIED
    )
    assert rejected(make(resolve=resolve), server, "/ok", host="127.0.0.1").reason is RejectReason.FETCH_DENIED


def test_rebinding_the_name_does_not_help(server: Server, make: Make) -> None:
    """The name is looked up once a connection: the address that was checked is the one that is connected to."""
    answers = [["127.0.0.1"], ["0.0.0.0"]]
    asked: list[str] = []

    def rebind(host: str, _port: int) -> list[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    fetcher = make(resolve=rebind)
    assert get(fetcher, server, "/ok") == BODY
    assert asked == [HOST]
    fetcher = make(resolve=rebind)  # no connection is kept: the second answer is checked in its turn
    assert rejected(fetcher, server, "/ok").reason is RejectReason.FETCH_DENIED
    assert server.handler.connections["tls"] == 1


def test_a_forbidden_address_among_others_is_left_out(server: Server, make: Make) -> None:
    """Only the allowed addresses of a name are connected to: the allowed one is dead, and 0.0.0.0 would have reached
    the server.
    """
    with pytest.raises(Unavailable, match="cannot be reached"):
        get(make(resolve=lambda *_: ["0.0.0.0", "127.0.0.2"]), server, "/ok")
    assert server.handler.connections["tls"] == 0


def test_the_next_address_is_tried(server: Server, make: Make) -> None:
    """A name with a dead address and a living one works."""
    assert get(make(resolve=lambda *_: ["127.0.0.2", "127.0.0.1"]), server, "/ok") == BODY


def test_names_that_cannot_be_looked_up(server: Server, make: Make) -> None:
    """A name on the list is waited for; one that a producer invents below a wildcard is rejected after its tries."""

    def unknown(*_: Any) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    def failing(*_: Any) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    with pytest.raises(Unavailable, match=f"{HOST}.*Name or service not known"):
        get(make(resolve=unknown), server, "/ok")
    refusal = rejected(make(resolve=unknown), server, "/ok", host="invented.wild.example")
    assert (refusal.reason, refusal.attempts) == (RejectReason.FETCH_FAILED, 3)
    with pytest.raises(Unavailable, match="Temporary failure"):
        get(make(resolve=failing), server, "/ok", host="invented.wild.example")


def test_proxies_of_the_environment_are_ignored(server: Server, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets between by setting a variable."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert get(make(), server, "/ok") == BODY
