"""The pages: log-in, the image to decide, queues, what was decided, the audit; and the pictures."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from worker.console.gate import Busy
from worker.console.images import Shown
from worker.console.queues import APPEALS, CONFLICTS
from worker.console.sessions import Session
from worker.console.users import Person
from worker.console.views import shown
from worker.console.web import Console, Refused, address_of, console_of, page, read_form

_FOLDER = Path(__file__).parent
_PAGE = 100
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
)
_TEMPLATES.filters["shown"] = shown
_TITLES = {CONFLICTS: "two people disagreed", APPEALS: "somebody appealed"}


def render(console: Console, name: str, session: Session | None, status: int = 200, **values: Any) -> Response:
    values |= {
        "person": session.person if session else None,
        "csrf": console.sessions.csrf_token(session),
        "settings": console.settings.console,
        "page": name,
    }
    return HTMLResponse(_TEMPLATES.get_template(f"{name}.html").render(**values), status_code=status)


async def home(_request: Request) -> Response:
    return RedirectResponse("/review", status_code=303)


async def login(request: Request) -> Response:
    """The form; where nobody logs in here, why somebody is not let in."""
    console = console_of(request)
    session = await run_in_threadpool(console.sessions.of, request)
    if session is not None:
        return RedirectResponse("/review", status_code=303)
    if console.settings.console.auth == "none":
        raise Refused(403, "without log-ins it answers to localhost and addresses of loopback alone, not to this name")
    if console.settings.console.auth != "users":
        raise Refused(403, "the proxy in front names nobody with a role here")
    return render(console, "login", None, problem="")


async def log_in(request: Request) -> Response:
    console, form = console_of(request), await read_form(request)
    name, password = form.get("name", "")[:64], form.get("password", "")[:1024]
    if console.users is None:
        raise Refused(404, "nobody logs in here")
    if not console.sessions.is_ours(request, form.get("csrf", ""), None):
        raise Refused(403, "this does not come from a page of the console; reload the page")

    def tried() -> Response:
        address = address_of(request)
        if not console.sessions.may_try(request, name):
            console.audit.note("login_throttled", shown(name), address)
            problem = "Too many attempts. Wait five minutes."
            return render(console, "login", None, 429, problem=problem)
        assert console.users is not None
        try:
            person = console.users.log_in(name, password)
        except Busy:
            return render(console, "login", None, 503, problem="Many log in at this moment. Try again in a moment.")
        if person is None:
            console.audit.note("login_failed", shown(name), address)
            return render(console, "login", None, 401, problem="Name or password is wrong.")
        response = RedirectResponse("/review" if person.may_review else "/queues", status_code=303)
        console.sessions.log_in(response, person)
        console.sessions.was_right(request, name)
        console.audit.note("login", person.name, address)
        return response

    return await run_in_threadpool(tried)


async def log_out(request: Request) -> Response:
    console, form = console_of(request), await read_form(request)
    session = await run_in_threadpool(console.sessions.of, request)
    if session is None:
        return RedirectResponse("/login", status_code=303)
    if not console.sessions.is_ours(request, form.get("csrf", ""), session):
        raise Refused(403, "this does not come from a page of the console; reload the page")
    response = RedirectResponse("/login", status_code=303)
    await run_in_threadpool(console.sessions.log_out, response, session)
    await run_in_threadpool(console.audit.note, "logout", session.person.name, address_of(request))
    return response


def review(_request: Request, console: Console, session: Session) -> Response:
    if not session.person.may_review:
        return RedirectResponse("/queues", status_code=303)
    queues = console.board.queues.open_to(lead=session.person.is_lead)
    return render(console, "review", session, queues=queues, lock_ms=console.settings.console.lock_s * 1000)


def queues(_request: Request, console: Console, session: Session) -> Response:
    now_ms = datetime.now(UTC).timestamp() * 1000
    rows = [
        {
            "name": state.name,
            "title": _TITLES.get(state.name, ""),
            "open": state.open,
            "waiting": state.waiting,
            "second": state.second,
            "age": _age(now_ms - state.oldest_ms) if state.oldest_ms is not None else "",
        }
        for state in console.board.states()
    ]
    return render(console, "queues", session, rows=rows)


def _age(milliseconds: float) -> str:
    minutes = max(0, int(milliseconds // 60_000))
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


def history(request: Request, console: Console, session: Session) -> Response:
    """One's own decisions; those of all for leads and auditors. Golden items are told afterwards, to their reviewer."""
    found = console.board.recent(0, 1000)
    if not session.person.may_read:
        found = [one for one in found if one["reviewer"] == session.person.name]
    wanted = request.query_params.get("image", "")[:256]
    if wanted:
        found = [one for one in found if one["image_id"] == wanted]
    return render(console, "history", session, rows=found[:_PAGE], wanted=wanted)


def audit(_request: Request, console: Console, session: Session) -> Response:
    rows = console.audit.latest(500)
    for row in rows:
        row["at"] = datetime.fromtimestamp(row["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
        row["more"] = ", ".join(f"{k}={v}" for k, v in row.items() if k not in ("at", "event", "who", "address"))
    return render(console, "audit", session, rows=rows)


def picture(request: Request, console: Console, session: Session) -> Response:
    """Pixels of an image that is one's own now. Raises NoImage."""
    task_id, token, name = (request.path_params[part] for part in ("task", "token", "name"))
    task = console.board.held_by(session.person.name, task_id, token)
    if task is None:
        raise Refused(404, "this image is not yours any more")
    verdict = task.verdict
    found: Shown = console.images.shown(verdict.sha256, lambda: console.originals.read(verdict.origin))
    if name == "map.png":
        data, kind = console.maps.drawn(found, verdict, console.policy()), "image/png"
    else:
        data, kind = (found.crop, "image/png") if name == "crop.png" else (found.view, "image/jpeg")
    return Response(data, media_type=kind, headers={"cache-control": "private, max-age=600, immutable"})


def _anybody(person: Person) -> bool:
    return bool(person.roles)


def _static(name: str, kind: str) -> Route:
    text = (_FOLDER / "static" / name).read_bytes()
    tag = f'"{secrets.token_hex(8)}"'

    async def serve(request: Request) -> Response:
        headers = {"cache-control": "no-cache", "etag": tag}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(text, media_type=kind, headers=headers)

    return Route(f"/static/{name}", serve)


ROUTES = [
    Route("/", home),
    Route("/login", login),
    Route("/login", log_in, methods=["POST"]),
    Route("/logout", log_out, methods=["POST"]),
    Route("/review", page(review, allowed=_anybody)),
    Route("/queues", page(queues, allowed=_anybody)),
    Route("/history", page(history, allowed=_anybody)),
    Route("/audit", page(audit, allowed=lambda person: person.may_read)),
    Route("/image/{task}/{token}/{name:str}", page(picture, allowed=lambda person: person.may_review)),
    _static("console.css", "text/css; charset=utf-8"),
    _static("console.js", "text/javascript; charset=utf-8"),
    _static("icon.svg", "image/svg+xml"),
]
