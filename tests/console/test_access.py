"""Who may come in, and what is done with what they send: nothing runs, nothing leaks, each refusal has a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from itsdangerous import URLSafeTimedSerializer

from tests.console.harness import PASSWORD, Console, Outside, Visitor, picture
from tests.integration.harness import wait_until
from worker import settings as settings_module
from worker.console import users
from worker.console.queues import Queues
from worker.console.server import Server
from worker.errors import SettingsError

pytestmark = pytest.mark.integration
MARKUP = '"><script>alert(1)</script><img src=x onerror=alert(2)>\u202egpj.exe'


@pytest.fixture
def console(open_console: Callable[..., Console]) -> Console:
    return open_console(login_attempts="4", reason_required="fake")


def test_nobody_comes_in_without_a_session(console: Console) -> None:
    """Pages lead to the log-in, calls are 401, pictures too; every answer forbids inline code and framing."""
    guest = Visitor(console.url)
    for path in ("/review", "/queues", "/history", "/audit", "/image/a/b/view.jpg"):
        answer = guest.client.get(path)
        assert answer.status_code == 303 and answer.headers["location"] == "/login", path
    for call in ("claim", "renew", "decide", "undo", "give-back", "said", "appeal"):
        assert guest.post(call, {}).status_code == 401, call
    answer = guest.client.get("/login")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert answer.headers["cache-control"] == "no-store" and "server" not in answer.headers


def test_a_session_is_signed_ends_and_is_throttled(console: Console) -> None:
    """A forged or old cookie is nobody's, a log-out ends copies too, and guessing is slowed down for the right
    password as well.
    """
    anna = Visitor(console.url, "anna")
    cookie = anna.client.cookies["assay_session"]
    copy = httpx.Client(base_url=console.url, cookies={"assay_session": cookie}, trust_env=False)
    assert copy.get("/review").status_code == 200
    for forged in (cookie[:-2] + "xx", URLSafeTimedSerializer("guess").dumps({"name": "lea", "id": "1", "mark": ""})):
        other = httpx.Client(base_url=console.url, cookies={"assay_session": forged}, trust_env=False)
        assert other.get("/review").status_code == 303
    assert anna.client.post("/logout", data={"csrf": anna.csrf}).status_code == 303
    assert copy.get("/review").status_code == 303
    guest = Visitor(console.url)
    codes = [guest.log_in("ben", "wrong password!").status_code for _ in range(5)]
    assert codes == [401] * 4 + [429]
    assert guest.log_in("ben", PASSWORD).status_code == 429
    assert guest.log_in("nobody" * 10, "x").status_code == 429


def test_behind_an_ingress_each_has_a_limit_of_their_own(open_console: Callable[..., Console]) -> None:
    """Who guesses behind a trusted proxy stops themselves alone; one's own right password does not clear the address
    for guesses at others'; without trust in the proxy its header changes nothing.
    """
    console = open_console(login_attempts="4", proxy_networks="127.0.0.0/8")
    forwarded = {"x-forwarded-for": "198.51.100.1, 203.0.113.7"}
    guesser, other = Visitor(console.url), Visitor(console.url)
    guesser.client.headers.update(forwarded)
    other.client.headers["x-forwarded-for"] = "203.0.113.8"
    assert [guesser.log_in(f"name-{n}", "wrong password!").status_code for n in range(3)] == [401] * 3
    assert guesser.log_in("anna", PASSWORD).status_code == 303
    guesser.client.cookies.clear()
    assert guesser.log_in("name-4", "wrong password!").status_code == 401
    guesser.client.headers["x-forwarded-for"] = "192.0.2.99, 203.0.113.7"  # what it sends itself does not help
    assert guesser.log_in("name-5", "wrong password!").status_code == 429
    assert other.log_in("ben", PASSWORD).status_code == 303
    untrusting = open_console(login_attempts="1", proxy_networks="10.0.0.0/8")
    guest = Visitor(untrusting.url)
    for n in range(4):
        guest.client.headers["x-forwarded-for"] = f"203.0.113.{n}"
        assert guest.log_in(f"name-{n}", "wrong password!").status_code in (401, 429)
    assert guest.log_in("lea", PASSWORD).status_code == 429
    lea = Visitor(console.url)
    lea.client.headers["x-forwarded-for"] = "203.0.113.8"
    lea.log_in("lea", PASSWORD)
    assert "203.0.113.7" in lea.client.get("/audit").text


def test_what_does_not_come_from_a_page_of_ours_is_refused(console: Console, outside: Outside) -> None:
    """No token, another's token, another origin, another content type, a body that is too long, unknown fields."""
    outside.judged({"one": picture(1)})
    anna, ben = Visitor(console.url, "anna"), Visitor(console.url, "ben")
    wait_until(anna.claim, "an image")
    (task,) = anna.claim()
    body = {"task": task["id"], "token": task["token"], "decision": "real", "seconds": 1}
    post = anna.client.post
    assert post("/api/decide", json=body).status_code == 403
    assert post("/api/decide", json=body, headers={"x-csrf-token": ben.csrf}).status_code == 403
    assert anna.post("decide", body, origin="https://evil.example").status_code == 403
    plain = post("/api/decide", content=b"{}", headers={"x-csrf-token": anna.csrf, "content-type": "text/plain"})
    assert plain.status_code == 415
    assert anna.post("decide", {**body, "note": "n" * 40_000}).status_code == 413
    for wrong in (
        {"decision": "maybe"},
        {"seconds": -1},
        {"note": "n" * 2001},
        {"admin": True},
        {"task": "../x"},
        {"task": ""},
    ):
        answer = anna.post("decide", {**body, **wrong})
        assert answer.status_code == 422 and answer.json()["error"], wrong
    assert anna.post("decide", {**body, "reason": "nonsense"}).status_code == 422
    assert anna.post("decide", {**body, "decision": "fake"}).json()["error"] == "reason: fake needs one"
    assert ben.decide(task, "real").status_code == 409
    assert ben.client.get(f"{task['url']}/view.jpg").status_code == 404
    assert ben.post("give-back", {"task": task["id"], "token": task["token"], "how": "skip"}).status_code == 409
    assert anna.post("claim", {"queue": "conflicts"}).status_code == 404
    assert outside.reviews() == []


def test_roles(console: Console) -> None:
    """A reviewer does not read the audit, an auditor decides nothing; what they did stands in the audit."""
    anna, otto, lea = (Visitor(console.url, name) for name in ("anna", "otto", "lea"))
    assert anna.client.get("/audit").status_code == 403
    assert otto.client.get("/audit").status_code == 200 and otto.post("claim", {"queue": None}).status_code == 403
    Visitor(console.url).log_in(MARKUP, "x")
    text = lea.client.get("/audit").text
    assert "login_failed" in text and "otto" in text and "<script>alert" not in text and "\u202e" not in text


def test_hostile_ids_and_images_stay_text_and_pixels(console: Console, outside: Outside) -> None:
    """Markup in ids, reasons, labels and headers comes out as visible text; an SVG, a bomb's header, a cut file and a
    page that calls itself a picture give no image, and a reason.
    """
    sound = picture(1)
    polyglot = sound + b"<script>alert(3)</script>"
    images = {
        MARKUP: polyglot,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
        "cut": sound[:200],
        "bomb": b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + b"\xff\xff\xff\x7f" * 2 + b"\x08\x02\x00\x00\x00" + b"0000",
    }
    outside.judged(images, reasons=[MARKUP], labels=[MARKUP], headers={MARKUP: MARKUP})
    anna = Visitor(console.url, "anna")
    seen = {}
    while len(seen) < len(images):
        wait_until(anna.claim, "an image")
        task = anna.claim()[0]
        answer = anna.client.get(f"{task['url']}/view.jpg")
        seen[task["image_id"]] = answer
        assert "\u202e" not in str(task) and "\\u202e" in task["reasons"][0]
        assert anna.decide(task, "real", note=MARKUP).status_code == 200
    assert seen["svg"].status_code == seen["cut"].status_code == seen["bomb"].status_code == 404
    assert all(answer.json()["error"] for name, answer in seen.items() if name in ("svg", "cut", "bomb"))
    hostile = next(answer for name, answer in seen.items() if "script" in name)
    assert hostile.status_code == 200 and b"script" not in hostile.content
    assert hostile.headers["content-type"] == "image/jpeg"
    wait_until(lambda: len(outside.reviews()) == 4, "all are decided")
    text = anna.client.get("/history").text
    assert "<script>alert" not in text and "onerror=alert(2)&gt;" in text and "\u202e" not in text


def test_users_change_while_it_runs(console: Console) -> None:
    """Who is taken out is out at once, and a changed password ends the sessions before it."""
    path = Path(console.env["ASSAY_CONSOLE__USERS_PATH"])
    anna, ben = Visitor(console.url, "anna"), Visitor(console.url, "ben")
    users.put(path, "anna", ["reviewer"], "another password")
    users.remove(path, "ben")
    assert anna.client.get("/review").status_code == 303 and ben.client.get("/review").status_code == 303
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def test_a_proxy_says_who_it_is(open_console: Callable[..., Console]) -> None:
    """Headers of a trusted address count, with roles by group; from elsewhere, or without a role, nobody is let in."""
    trusted = open_console(auth="proxy")
    headers = {"x-forwarded-user": "pia@example.org", "x-forwarded-groups": "staff,assay-lead"}
    client = httpx.Client(base_url=trusted.url, trust_env=False)
    assert client.get("/audit", headers=headers).status_code == 200
    assert client.get("/audit", headers={**headers, "x-forwarded-groups": "staff"}).status_code == 303
    assert client.get("/audit", headers={**headers, "x-forwarded-user": "<b>"}).status_code == 303
    assert client.get("/audit").status_code == 303
    other = open_console(auth="proxy", proxy_networks="10.0.0.0/8")
    assert httpx.get(f"{other.url}/audit", headers=headers, trust_env=False).status_code == 303


def _refused(**values: str) -> str:
    environ = {f"ASSAY_CONSOLE__{name.upper()}": value for name, value in values.items()}
    with pytest.raises(SettingsError) as caught:
        Server(settings_module.load(None, environ))
    return str(caught.value)


def test_it_does_not_open_without_users_or_wide_open(tmp_path: Path) -> None:
    """No users, an empty or damaged file, a short secret, `none` beyond loopback: each is refused by name."""
    assert "ASSAY_CONSOLE__USERS_PATH is not set" in _refused()
    empty = tmp_path / "empty.toml"
    empty.write_text("[users]\n")
    assert "nobody is in it" in _refused(users_path=str(empty))
    empty.write_text('[users.anna]\nroles = ["boss"]\npassword = "$argon2id$secret"\n')
    said = _refused(users_path=str(empty))
    assert "users.anna.roles.0" in said and "$argon2id$secret" not in said
    assert "32 characters" in _refused(secret="short")
    assert "loopback" in _refused(auth="none", host="0.0.0.0")
    queues = tmp_path / "queues.toml"
    queues.write_text('[[queues]]\nname = "kids"\nwhen = "scores.lineal > 0.3"\n')
    with pytest.raises(SettingsError, match="did you mean linear"):
        Queues.load(queues, 0.1)
