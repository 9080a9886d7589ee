"""Whom a request is taken to come from, where nobody logs in: by its headers alone, without servers."""

from __future__ import annotations

import ipaddress
import threading
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the console is not installed: make setup")

from starlette.requests import Request

from tests.integration.harness import wait_until
from worker.console import client
from worker.console.gate import Busy, Gate
from worker.console.sessions import Session, Sessions
from worker.settings import ConsoleSettings

PROXIED = [("x-forwarded-user", "pia"), ("x-forwarded-groups", "staff,assay-lead")]


def _session(auth: Any, headers: list[tuple[str, str]]) -> Session | None:
    no_board: Any = None  # neither way looks into Redis
    sessions = Sessions(ConsoleSettings(auth=auth), None, no_board)
    raw = [(name.encode(), value.encode()) for name, value in headers]
    return sessions.of(Request({"type": "http", "headers": raw, "client": ("127.0.0.1", 1234)}))


def test_a_header_that_comes_twice_makes_nobody() -> None:
    """A proxy that appends its header to what the client sent: which of the two is true cannot be told."""
    found = _session("proxy", PROXIED)
    assert found is not None and found.person.is_lead and found.person.name == "pia"
    assert _session("proxy", [("x-forwarded-user", "boss"), *PROXIED]) is None
    assert _session("proxy", [("x-forwarded-groups", "assay-lead"), *PROXIED]) is None


@pytest.mark.parametrize("host", ["localhost:9470", "127.0.0.1:9470", "[::1]:9470", "localhost"])
def test_without_log_ins_whoever_asks_this_machine_is_let_in(host: str) -> None:
    """By a name or an address of loopback."""
    assert _session("none", [("host", host)]) is not None


@pytest.mark.parametrize("host", ["evil.example:9470", "localhost.evil.example", "192.0.2.1", "[::1", ""])
def test_another_name_that_leads_here_lets_nobody_in(host: str) -> None:
    """DNS rebinding: the page of a stranger's name would have all rights."""
    assert _session("none", [("host", host)]) is None


def _address(peer: str, *forwarded: str, proxies: tuple[str, ...] = ("10.0.0.0/8",)) -> str:
    networks = [ipaddress.ip_network(text) for text in proxies]
    raw = [(b"x-forwarded-for", text.encode()) for text in forwarded]
    return client.address(Request({"type": "http", "headers": raw, "client": (peer, 1234)}), networks)


def test_whom_a_proxy_forwards_for_is_who_asks() -> None:
    """Only what trusted proxies wrote counts; what a client sends itself stands before it and does not."""
    assert _address("10.1.1.1", "203.0.113.7") == "203.0.113.7"
    assert _address("10.1.1.1", "6.6.6.6, 203.0.113.7, 10.2.2.2") == "203.0.113.7"
    assert _address("10.1.1.1", "6.6.6.6", "203.0.113.7") == "203.0.113.7"
    assert _address("203.0.113.9", "6.6.6.6") == "203.0.113.9"
    assert _address("10.1.1.1") == _address("10.1.1.1", "nonsense") == "10.1.1.1"
    assert _address("::ffff:10.1.1.1", "[2001:db8::7]:4711") == "2001:db8::7"
    assert _address("unix", "203.0.113.7") == "?"


def test_an_ipv6_customer_is_counted_once() -> None:
    """Whoever has a /64 has more addresses than any limit."""
    assert client.counted_as("2001:db8:1:2:3::4") == client.counted_as("2001:db8:1:2::ffff") == "2001:db8:1:2::/64"
    assert client.counted_as("2001:db8:1:3::1") != client.counted_as("2001:db8:1:2::1")
    assert client.counted_as("203.0.113.7") == "203.0.113.7"


def test_a_gate_bounds_those_inside_and_those_who_wait() -> None:
    """A third waits for one of two to leave, in vain in the end or not; who finds the places taken is told at once."""
    gate = Gate("many come", at_once=2, waiting=1, wait_s=0.05)
    with gate.passing():
        with gate.passing(), pytest.raises(Busy, match="many come; try again"), gate.passing():
            pass
        with gate.passing():
            pass
    patient = Gate("many come", at_once=1, waiting=1, wait_s=30)
    inside = threading.Event()

    def wait() -> None:
        with patient.passing():
            inside.set()

    with patient.passing():
        third = threading.Thread(target=wait)
        third.start()
        wait_until(lambda: not patient._places.acquire(blocking=False) or patient._places.release(), "the third waits")
        with pytest.raises(Busy), patient.passing():
            pass
        assert not inside.is_set()
    third.join(30)
    assert inside.is_set()
