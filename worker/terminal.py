"""What a person reads on a terminal: two consoles that no text from outside can break out of.

Ids, headers and file names are anyone's: escape sequences would move the cursor or change the title, bidirectional
controls turn a name around, a line break forges a line. What is not printable is therefore shown as Python writes it.

Use:  out.say(f"{image_id}: done"); out.print(table); print_json(document)
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_SPECIAL = re.compile(r"[^ -~\n]")  # a first look, far quicker than a question for every character


def escape(text: str) -> str:
    r"""`text` on one line: what is not printable as `\x1b`, `\u202e` or `\n`."""
    return escape_lines(text).replace("\n", "\\n")


def escape_lines(text: str) -> str:
    """The same for a text of ours that may have several lines."""
    return _SPECIAL.sub(lambda match: _escaped(match[0]), text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")


def print_json(document: str) -> None:
    """A JSON document on stdout. What a terminal would obey stands escaped in it: it means the same to a reader."""
    spaced = document.rstrip("\n").translate({ord("\t"): " ", ord("\r"): " "})  # raw ones stand between tokens only
    escaped = _SPECIAL.sub(lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], spaced)
    sys.stdout.write(escaped + "\n")
    sys.stdout.flush()


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
