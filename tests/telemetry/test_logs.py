"""Logs as another process sees them on stderr, and the masking of secrets."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.telemetry.logs import mask

PROGRAM = """
import logging, sys, warnings
import structlog
from pydantic import SecretStr
from worker.telemetry import logs
logs.configure("info", "json")
logs.configure(*sys.argv[1:])
log = structlog.get_logger()
log.debug("debugged")
log.info("verdict_published", image_id="ä.jpg", score=0.5, password="hunter2", secret=SecretStr("hunter2"),
         url="redis://user:hunter2@host:6379/0", nested={"urls": ["https://h/a?X-Amz-Signature=hunter2&b=1"]},
         value=b"hunter2")
logging.getLogger("kafka.conn").info("chatter")
logging.getLogger("kafka.conn").warning("lost %s", "https://user:hunter2@host/")
warnings.warn("old")
def fail(image):
    raise ValueError("no rediss://:hunter2@host")
try:
    fail("hunter2")
except ValueError as error:
    log.exception("failed", error=error)
    logging.getLogger("urllib3").exception("failed too")
print("stdout is for the command")
"""


def run(level: str, form: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, form], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "stdout is for the command\n"
    return done.stderr


@pytest.mark.parametrize("form", ["json", "auto"])
def test_json_lines(form: str) -> None:
    """One JSON document a line with time, level and event first, libraries included; `auto` is JSON where there is no
    terminal.
    """
    lines = [json.loads(line) for line in run("info", form).splitlines()]
    assert [line["event"].split("\n")[0] for line in lines[:2]] == ["verdict_published", "lost https://user:***@host/"]
    assert all(list(line)[:3] == ["time", "level", "event"] for line in lines)
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    first = lines[0]
    assert (first["level"], first["image_id"], first["score"], first["value"]) == ("info", "ä.jpg", 0.5, "7 bytes")
    assert first["url"] == "redis://user:***@host:6379/0"
    assert first["nested"] == {"urls": ["https://h/a?X-Amz-Signature=***&b=1"]}
    assert (lines[1]["level"], lines[1]["logger"]) == ("warning", "kafka.conn")
    assert [line["event"] for line in lines[-2:]] == ["failed", "failed too"]
    assert all("ValueError: no rediss://:***@host" in line["exception"] for line in lines[-2:])


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize("level", ["debug", "info"])
def test_no_secret_is_shown(level: str, form: str) -> None:
    """Passwords stay out of fields, URLs and tracebacks, and so do the values of local variables."""
    text = run(level, form)
    assert "hunter2" not in text.replace('fail("hunter2")', "")
    assert ("debugged" in text) == (level == "debug")
    assert "chatter" not in text


HOSTILE = "a\x1b]0;owned\x07\u202egpj\x9b2J\nforged"
HOSTILE_PROGRAM = f"""
import logging, sys
import structlog
from worker.telemetry import logs
logs.configure("info", sys.argv[1])
text = {HOSTILE!r}
structlog.get_logger().info("image_rejected", image_id=text, nested={{"ids": [text], text: text}}, pair=(text, text))
logging.getLogger("kafka").warning("lost %s", text)
try:
    raise ValueError(text)
except ValueError:
    structlog.get_logger().exception("failed")
"""


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_hostile_text_does_not_reach_the_terminal(form: str) -> None:
    """Ids and headers are anyone's: no control sequence, and no forged line but in a traceback."""
    command = [sys.executable, "-c", HOSTILE_PROGRAM, form]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr
    assert all(character.isprintable() or character == "\n" for character in text)
    fields, _, traceback = text.partition("Traceback")
    assert "forged" in traceback
    assert not any(line.startswith("forged") for line in fields.splitlines())
    if form == "json":
        assert json.loads(text.splitlines()[0])["image_id"] == HOSTILE


def test_the_level_holds_for_libraries_too() -> None:
    """At `error` a library's warning stays away."""
    lines = [json.loads(line)["event"] for line in run("error", "json").splitlines()]
    assert lines == ["failed", "failed too"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:p@host", "redis://:***@host"),
        ("redis://u:p@ss:w@host/0", "redis://u:***@host/0"),
        ("see 'https://u:p@h/x' and https://v:q@h", "see 'https://u:***@h/x' and https://v:***@h"),
        ("https://h/a?token=x&y=1#f", "https://h/a?token=***&y=1#f"),
        (
            "rediss://h/0?db=1&ssl_password=x&X-Amz-Security-Token=y",
            "rediss://h/0?db=1&ssl_password=***&X-Amz-Security-Token=***",
        ),
        ("https://h:443/a@b", "https://h:443/a@b"),
        ("user@host: 12:30", "user@host: 12:30"),
    ],
)
def test_mask(text: str, masked: str) -> None:
    """Only what is secret is replaced."""
    assert mask(text) == masked


@given(
    st.text(),
    st.text(alphabet=st.characters(blacklist_characters="/?#'\"", blacklist_categories=["Z", "C"]), min_size=1),
    st.text(),
)
def test_no_password_survives(before: str, password: str, after: str) -> None:
    """Whatever stands around a URL, its password is gone; masking twice changes nothing more."""
    marker = f"<{password}>"
    masked = mask(f"{before} redis://user:{marker}@host/ {after}")
    assert f":{marker}@host" not in masked
    assert mask(masked) == masked
