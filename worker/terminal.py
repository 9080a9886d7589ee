"""What a person reads on a terminal: two consoles that no text from outside can break out of (text.py).

Use:  out.say(f"{image_id}: done"); out.print(table); print_json(document)
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from worker.text import ascii_json, escape, escape_json, escape_lines

COLOURS = {"fake": "red", "real": "green", "review": "yellow", "rejected": "magenta"}


def print_json(document: str) -> None:
    """A JSON document on stdout. What a terminal would obey stands escaped in it: it means the same to a reader."""
    text = escape_json(document.rstrip("\n"))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a locale without UTF-8
        text = ascii_json(text)
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def take_any_text() -> None:
    """What a locale without UTF-8 cannot write is escaped on stdout, as Python does on stderr, and ends no command."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")


class Terminal(Console):
    """A console that escapes whatever is printed on it."""

    def say(self, text: str, style: str = "") -> None:
        """Exactly one line, taken as it is: no markup, no emoji codes."""
        self.print(Text(escape(text), style=style))

    def say_lines(self, text: str) -> None:
        """The same for a text that may have several lines, such as the end of a log."""
        self.print(Text(escape_lines(text)))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does, with the texts escaped; rich's own control codes are no texts."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else escape_lines(text), style, control)


out = Terminal(soft_wrap=True)
err = Terminal(stderr=True, soft_wrap=True)
