"""Text from outside on its way to a terminal or a log: what is not printable is shown as Python writes it.

Ids, headers and file names are anyone's: escape sequences would move the cursor or change the title, bidirectional
controls turn a name around, a line break forges a line.
"""

from __future__ import annotations

import json
import re

_SPECIAL = re.compile(r"[^ -~\n]")  # a first look, far quicker than a question for every character


def escape(text: str) -> str:
    r"""`text` on one line: what is not printable as `\x1b`, `\u202e` or `\n`."""
    return escape_lines(text).replace("\n", "\\n")


def escape_lines(text: str) -> str:
    """The same for a text of ours that may have several lines."""
    return _SPECIAL.sub(lambda match: _escaped(match[0]), text)


def escape_json(document: str) -> str:
    """A JSON document that means the same and is printable, but for its line breaks."""
    spaced = document.translate({ord("\t"): " ", ord("\r"): " "})  # raw ones stand between tokens only
    return _SPECIAL.sub(lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], spaced)


def ascii_json(document: str) -> str:
    """The same document in ASCII."""
    return _SPECIAL.sub(lambda match: match[0] if match[0].isspace() else json.dumps(match[0])[1:-1], document)


def _escaped(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
