"""The terminal: whatever text comes, nothing but printable characters and our own line breaks reach it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import strategies as st
from rich.table import Table

from tests.printed import printed
from tests.properties import given
from worker.terminal import Terminal, print_json
from worker.text import escape, escape_lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("holiday/ü 1.jpg", "holiday/ü 1.jpg"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("\u2066a\u2069", "\\u2066a\\u2069"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\udcff", "\\udcff"),
        ("a\u2028b", "a\\u2028b"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_printable_is_shown_escaped(text: str, shown: str) -> None:
    """C0, C1, bidirectional controls, line separators, tags and lone surrogates; letters of any script stay."""
    assert escape(text) == shown


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    """Whatever is said: printable characters, one line break at its end, brackets and colons as they came."""
    line = printed(lambda: Terminal(soft_wrap=True, width=80).say(text))
    assert line == escape(text) + "\n"


@given(st.text())
def test_a_table_lets_nothing_through(text: str) -> None:
    """Also what nobody escaped beforehand, and also where rich puts colours of its own around it."""
    table = Table("id")
    table.add_row(text.replace("[", "("))
    shown = printed(lambda: Terminal(width=4_000).print(table))
    assert all(character.isprintable() or character == "\n" for character in shown)


def test_our_own_colours_stay() -> None:
    """rich's control codes are not escaped."""
    terminal = Terminal(force_terminal=True, color_system="standard", _environ={})
    assert "\x1b[31m" in printed(lambda: terminal.print("x", style="red"))


def test_several_lines_stay_several() -> None:
    """The end of a log is shown as it stands, its lines without their sequences."""
    assert escape_lines("one\n\x1b[1mtwo") == "one\n\\x1b[1mtwo"


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_json_means_the_same_and_is_printable(document: object) -> None:
    """However it was written: with every character raw that JSON allows raw."""
    text = printed(lambda: print_json(json.dumps(document, ensure_ascii=False, indent=1)))
    assert json.loads(text) == document
    assert all(character.isprintable() or character == "\n" for character in text)


POSIX = {"PYTHONUTF8": "0", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize(
    ("environment", "encoding"),
    [(POSIX, "ascii"), *(({"PYTHONIOENCODING": name}, name) for name in ("ascii", "latin-1", "utf-8"))],
)
def test_a_locale_without_utf_8_ends_no_command(environment: dict[str, str], encoding: str) -> None:
    """What it cannot write is escaped; JSON stays the JSON it was, and text without such characters is as ever."""
    text = "\u4e2d\xb2\U0001f600"
    code = (
        "from worker.terminal import out, print_json, take_any_text; take_any_text(); "
        f"out.say({text!a}); print_json({json.dumps({'a': text}, ensure_ascii=False)!a}); out.print('x\\u2026')"
    )
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True, check=True)
    said, document, _ = run.stdout.decode(encoding).splitlines()
    assert json.loads(document) == {"a": text}
    assert (said == text) == (encoding == "utf-8") and said
