"""The AIGC label that China's GB 45438-2025 asks for in the metadata of generated content.

A JSON object `{"Label": "1", "ContentProducer": …}`, as property `AIGC` in XMP, as a text chunk of that name, or inside
`{"AIGC": {…}}` in an EXIF comment. `Label`: 1 generated, 2 possibly generated, 3 suspected of being generated.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

MAX_LABEL_CHARS = 16_384
_LABELS = ("1", "2", "3")


def label(texts: Iterable[str]) -> str | None:
    """`1`, `2` or `3` of the first text that is such a label, else None. `texts`: those that may be one."""
    for text in texts:
        if len(text) > MAX_LABEL_CHARS or "Label" not in text:
            continue
        for form in (text, html.unescape(text)):
            found = _label(_json(form))
            if found:
                return found
    return None


def _json(text: str) -> Any:
    start = text.find("{")
    try:
        return json.loads(text[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return None


def _label(document: Any) -> str | None:
    if not isinstance(document, dict):
        return None
    inner = document.get("AIGC", document)
    if isinstance(inner, str):
        inner = _json(inner)
    value = str(inner.get("Label", "")).strip() if isinstance(inner, dict) else ""
    return value if value in _LABELS else None
