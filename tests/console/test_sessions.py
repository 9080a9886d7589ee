"""Whom a request is taken to come from, where nobody logs in: by its headers alone, without servers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("starlette", reason="the console is not installed: make setup")

from starlette.requests import Request

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
