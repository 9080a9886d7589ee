"""The web application out of its parts. `build` is pure of sockets: tests call it in their own process."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.middleware import Middleware

from worker.console import actions, pages
from worker.console.gate import Busy
from worker.console.images import NoImage
from worker.console.web import (
    Console,
    Headers,
    Refused,
    on_away,
    on_busy,
    on_defect,
    on_no_image,
    on_not_found,
    on_refused,
)
from worker.errors import NotFound, Unavailable


def build(console: Console) -> Starlette:
    """The application that serves this console."""
    app = Starlette(
        routes=[*pages.ROUTES, *actions.ROUTES],
        middleware=[Middleware(Headers, https=console.settings.console.is_https)],
        exception_handlers={
            Refused: on_refused,
            Unavailable: on_away,
            Busy: on_busy,
            NoImage: on_no_image,
            NotFound: on_not_found,
            Exception: on_defect,
        },
    )
    app.state.console = console
    return app
