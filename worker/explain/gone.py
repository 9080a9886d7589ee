"""What is said where an image cannot be looked at again. By itself: the decoding process imports nothing else of it."""

from __future__ import annotations

from worker.errors import AssayError


class Gone(AssayError):
    """The bytes cannot be had any more, or not be decoded; the message says why."""
