"""Logs: structlog events with fields, as JSON lines or for a console, on stderr; passwords are masked in every line.

Libraries that log through the standard library (kafka, urllib3, …) take the same way, from WARNING on.
Tracebacks come without the values of local variables: those hold image bytes and credentials.

Use:  configure("info", "auto"); structlog.get_logger().info("verdict_published", image_id="a.jpg")
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Any, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from worker.telemetry.repeats import Repeats
from worker.text import escape, escape_json, escape_lines

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

MASK = "***"
# user:password@ of any URL; a password may itself hold an @, so the last one before the path counts.
_USERINFO = re.compile(r"""(://[^:/?#@\s'"]*):[^/?#\s'"]*@""")
# Signatures and tokens in the query of a pre-signed URL.
_QUERY = re.compile(
    r"""([?&](?:x-(?:amz|goog)-(?:signature|credential)|sig|signature|[\w-]*(?:password|passwd|secret|token))=)[^&#\s'"]+""",
    re.IGNORECASE,
)
_SECRET_FIELD = re.compile(r"password|passwd|secret|token|authorization|api_?key", re.IGNORECASE)


def mask(text: str) -> str:
    """`text` with passwords, signatures and tokens in URLs replaced by ***."""
    if "://" not in text and "=" not in text:
        return text
    return _QUERY.sub(rf"\1{MASK}", _USERINFO.sub(rf"\1:{MASK}@", text))


def configure(level: Level, format: Format) -> None:  # noqa: A002 - named as the setting is
    """Set logging up for the process: events from `level` on, `auto` is a console on a terminal and JSON elsewhere. May
    be called again.
    """
    numeric = logging.getLevelNamesMapping()[level.upper()]
    console = format == "console" or (format == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _mask_event,
    ]
    renderer: Processor = _console if console else _json
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(numeric),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(Repeats())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.WARNING, numeric))
    logging.captureWarnings(capture=True)


def _json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    line = structlog.processors.JSONRenderer(default=str, ensure_ascii=False)(logger, method, event)
    return escape_json(line if isinstance(line, str) else line.decode())


def _console(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """Escaped field by field: what the renderer adds, colours too, is its own."""
    render = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), timestamp_key="time", exception_formatter=structlog.dev.plain_traceback
    )
    return render(logger, method, {key: _printable(key, value) for key, value in event.items()})


def _printable(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return (escape_lines if key in ("exception", "stack") else escape)(value)
    if isinstance(value, Mapping):
        return {escape(str(inner)): _printable(str(inner), item) for inner, item in value.items()}
    return [_printable(key, item) for item in value] if isinstance(value, list) else value


def _mask_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {key: event[key] for key in ("time", "level", "event") if key in event}
    return {key: _masked(key, value) for key, value in {**first, **event}.items()}


def _masked(key: str, value: Any) -> Any:
    if key.startswith("_"):  # structlog's own bookkeeping of records from the standard library
        return value
    if isinstance(value, str):
        return MASK if value and _SECRET_FIELD.search(key) else mask(value)
    if isinstance(value, Mapping):
        return {inner: _masked(str(inner), item) for inner, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_masked(key, item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"  # images have no place in a log
    if value is None or isinstance(value, bool | int | float):
        return value
    return mask(str(value))
