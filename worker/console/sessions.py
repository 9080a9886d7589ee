"""Who asks: a session in a signed cookie, or a trusted proxy's headers; and what protects what they send.

The cookie holds name, session id and a mark of the password; it is signed, not secret. A request that changes something
carries a token that belongs to its session and comes from a page of ours, as its Origin says.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request
from starlette.responses import Response

from worker.console import client
from worker.console.board import Board
from worker.console.users import NAME, ROLES, Person, Users
from worker.settings import ConsoleSettings
from worker.settings.console import is_loopback

_SALT = "assay-console-session"
_LOGIN_WINDOW_S = 300
LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is in. `id` names the session."""

    person: Person
    id: str


class Sessions:
    """See above. `users` is None where others say who somebody is."""

    def __init__(self, settings: ConsoleSettings, users: Users | None, board: Board) -> None:
        self._settings = settings
        self._users = users
        self._board = board
        secret = settings.secret.get_secret_value() if settings.secret else secrets.token_urlsafe(32)
        self._key = hashlib.sha256(f"{_SALT}\n{secret}".encode()).digest()
        self._signer = URLSafeTimedSerializer(self._key.hex(), salt=_SALT)
        self._networks = [ipaddress.ip_network(text, strict=False) for text in settings.proxy_networks]
        self.cookie = "__Host-assay" if settings.is_https else "assay_session"

    # Who it is.

    def of(self, request: Request) -> Session | None:
        """The session of a request, or None. Raises Unavailable where Redis is away."""
        if self._settings.auth == "none":
            return Session(Person(LOCAL, frozenset(ROLES)), LOCAL) if _asks_loopback(request) else None
        if self._settings.auth == "proxy":
            return self._by_proxy(request)
        text = request.cookies.get(self.cookie, "")
        try:
            found: Any = self._signer.loads(text, max_age=self._settings.session_ttl) if text else None
        except BadSignature:
            return None
        if self._users is None or not isinstance(found, dict) or not {"name", "id", "mark"} <= found.keys():
            return None
        person = self._users.person(found["name"])
        if person is None or not hmac.compare_digest(found["mark"], self._users.mark_of(person.name)):
            return None
        if self._board.scripts.do("exists", f"ended:{found['id']}"):
            return None
        return Session(person, found["id"])

    def _by_proxy(self, request: Request) -> Session | None:
        if not self._is_proxy(request):
            return None
        names = request.headers.getlist(self._settings.proxy_user_header)
        lists = request.headers.getlist(self._settings.proxy_roles_header)
        if len(names) != 1 or len(lists) != 1:  # a second one is what its client sent: nobody knows which is whose
            return None
        name = names[0].strip()
        if not NAME.fullmatch(name):
            return None
        prefix = self._settings.proxy_role_prefix
        groups = {part.strip() for part in lists[0].split(",")}
        roles = frozenset(role for role in ROLES if f"{prefix}{role}" in groups)
        return Session(Person(name, roles), name) if roles else None

    def _is_proxy(self, request: Request) -> bool:
        return client.is_among(client.parsed(request.client.host if request.client else ""), self._networks)

    def address_of(self, request: Request) -> str:
        """Of whoever asks, behind trusted proxies too."""
        return client.address(request, self._networks)

    # Coming and going.

    def may_try(self, request: Request, name: str) -> bool:
        """Counts a log-in that failed or is about to. False where there were too many."""
        counts = [self._board.counted(key, _LOGIN_WINDOW_S) for key in self._tries(request, name)]
        return max(counts) <= self._settings.login_attempts

    def was_right(self, request: Request, name: str) -> None:
        """What was counted of the name does not count any more; of the address, this once alone: who has one account
        does not guess at others' without end.
        """
        of_address, of_name = self._tries(request, name)
        self._board.scripts.do("delete", of_name)
        self._board.uncount(of_address)

    def _tries(self, request: Request, name: str) -> tuple[str, str]:
        address = client.counted_as(self.address_of(request))
        return f"logins:address:{address}", f"logins:name:{hashlib.sha256(name.encode()).hexdigest()[:24]}"

    def log_in(self, response: Response, person: Person) -> Session:
        assert self._users is not None
        session = Session(person, secrets.token_urlsafe(12))
        mark = self._users.mark_of(person.name)
        self._set(response, self._signer.dumps({"name": person.name, "id": session.id, "mark": mark}))
        return session

    def log_out(self, response: Response, session: Session) -> None:
        """The session ends everywhere, a copied cookie too."""
        self._board.scripts.do("set", f"ended:{session.id}", "1", ex=self._settings.session_ttl)
        response.delete_cookie(self.cookie, path="/", secure=self._settings.is_https, httponly=True, samesite="strict")

    def _set(self, response: Response, value: str) -> None:
        response.set_cookie(
            self.cookie,
            value,
            max_age=self._settings.session_ttl,
            path="/",
            secure=self._settings.is_https,
            httponly=True,
            samesite="strict",
        )

    # What protects a request that changes something.

    def csrf_token(self, session: Session | None) -> str:
        """Belongs to the session; before there is one, to nobody."""
        return hmac.new(self._key, f"csrf\n{session.id if session else ''}".encode(), hashlib.sha256).hexdigest()

    def is_ours(self, request: Request, token: str, session: Session | None) -> bool:
        """Does a request come from a page of ours?"""
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != request.headers.get("host", ""):
            return False
        return hmac.compare_digest(token.encode(), self.csrf_token(session).encode())


def _asks_loopback(request: Request) -> bool:
    """Was the console asked by a name of this machine? A stranger's own name can be led here (rebinding)."""
    try:
        return is_loopback(urlsplit(f"//{request.headers.get('host', '')}").hostname or "")
    except ValueError:
        return False
