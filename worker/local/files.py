"""Files that are whole or not there, whatever ends the process that writes them."""

from __future__ import annotations

from pathlib import Path


def replace_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Put `text` in place of what `path` holds, by one rename. `mode`: who may read it, from the first byte on."""
    partial = path.with_name(path.name + ".partial")
    partial.unlink(missing_ok=True)
    partial.touch(mode)
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
