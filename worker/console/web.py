"""What every page and every call shares: headers, sessions, what protects a change, errors as answers."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import structlog
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.console.audit import Audit
from worker.console.board import Board
from worker.console.gate import Busy
from worker.console.images import Images, NoImage
from worker.console.maps import Maps
from worker.console.originals import Originals
from worker.console.outbox import Outbox
from worker.console.sessions import Session, Sessions
from worker.console.users import Person, Users
from worker.errors import NotFound, Unavailable
from worker.policy import Policy
from worker.settings import Settings

log = structlog.get_logger(__name__)
M = TypeVar("M", bound=BaseModel)
_MOST_BODY_BYTES = 32 * 1024
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


@dataclass(frozen=True)
class Console:
    """What the handlers work with."""

    settings: Settings
    board: Board
    outbox: Outbox
    images: Images
    originals: Originals
    maps: Maps
    sessions: Sessions
    users: Users | None
    audit: Audit
    policy: Callable[[], Policy]


class Refused(Exception):
    """Answered with this status and this reason; `details` are more for the page."""

    def __init__(self, status: int, reason: str, **details: Any) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.details = details


class Headers:
    """Adds what browsers are to keep to, to every answer."""

    def __init__(self, app: ASGIApp, *, https: bool) -> None:
        self._app = app
        own = _HEADERS | ({"strict-transport-security": "max-age=31536000"} if https else {})
        self._own = [(name.encode(), value.encode()) for name, value in own.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                found = list(message.get("headers", []))
                if not any(name == b"cache-control" for name, _ in found):
                    found.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*found, *self._own]}
            await send(message)

        await self._app(scope, receive, with_headers)


def console_of(request: Request) -> Console:
    found: Console = request.app.state.console
    return found


def address_of(request: Request) -> str:
    return console_of(request).sessions.address_of(request)


async def read_body(request: Request) -> bytes:
    """Raises Refused(413) for a longer one."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MOST_BODY_BYTES:
            raise Refused(413, f"{_MOST_BODY_BYTES} bytes at most are taken")
    return bytes(data)


async def read_form(request: Request) -> dict[str, str]:
    """Raises Refused."""
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/x-www-form-urlencoded":
        raise Refused(415, "a form is expected")
    try:
        pairs = parse_qsl((await read_body(request)).decode("utf-8"), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise Refused(400, "the form cannot be read") from None
    return dict(pairs)


Work = Callable[[Console, Person, M], Any]


def call(
    model: type[M], work: Work[M], *, allowed: Callable[[Person], bool]
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that takes JSON as `model` says, from somebody who is `allowed`, and answers with JSON."""

    async def endpoint(request: Request) -> Response:
        console = console_of(request)
        session = await run_in_threadpool(console.sessions.of, request)
        if session is None:
            raise Refused(401, "log in first")
        if not console.sessions.is_ours(request, request.headers.get("x-csrf-token", ""), session):
            raise Refused(403, "this does not come from a page of the console; reload the page")
        if not allowed(session.person):
            raise Refused(403, "your roles do not allow this")
        if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
            raise Refused(415, "JSON is expected")
        body = await read_body(request)
        try:
            wanted = model.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise Refused(422, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None
        return JSONResponse(await run_in_threadpool(work, console, session.person, wanted))

    return endpoint


def page(
    work: Callable[[Request, Console, Session], Response], *, allowed: Callable[[Person], bool]
) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that shows something to somebody who is `allowed`; others are led to the log-in."""

    async def endpoint(request: Request) -> Response:
        console = console_of(request)
        session = await run_in_threadpool(console.sessions.of, request)
        if session is None:
            return RedirectResponse("/login", status_code=303)
        if not allowed(session.person):
            raise Refused(403, "your roles do not allow this")
        return await run_in_threadpool(work, request, console, session)

    return endpoint


async def on_refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": error.reason, **error.details}, status_code=error.status)


async def on_busy(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Busy)
    return JSONResponse({"error": str(error)}, status_code=503, headers={"retry-after": "2"})


async def on_away(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Unavailable)
    log.warning("dependency_away", dependency=error.dependency, error=error.detail)
    answer = {"error": f"{error.dependency} is away for a moment; nothing is lost, try again"}
    return JSONResponse(answer, status_code=503, headers={"retry-after": "2"})


async def on_no_image(_request: Request, error: Exception) -> Response:
    assert isinstance(error, NoImage)
    return JSONResponse({"error": str(error)}, status_code=404)


async def on_not_found(_request: Request, error: Exception) -> Response:
    assert isinstance(error, NotFound)
    return JSONResponse({"error": str(error)}, status_code=404)


async def on_defect(_request: Request, error: Exception) -> Response:
    log.error("console_defect", error=f"{type(error).__name__}: {error}", exc_info=error)
    return Response(
        json.dumps({"error": "this is a fault of ours; it stands in the log"}), 500, media_type="application/json"
    )
