"""Every error the worker raises on purpose, and what each one means for the record at hand.

AssayError
├── SettingsError        stop: the settings are wrong (exit 2); `problems` has one line for each
├── Rejected             reject: this image alone is bad; it goes to the rejected topic with a reason
├── Unavailable          wait: a dependency is away; back off, pause consumption, try again (exit 3 from a command)
├── Stopping             stop: the wait was cut short because the worker is shutting down or lost the partition
└── NotFound             tell: what was asked for does not exist (exit 4 from a command)

Anything else is a defect: it ends the process with exit 1, uncommitted work is redelivered.
"""

from __future__ import annotations

from enum import StrEnum


class RejectReason(StrEnum):
    """Why an image was rejected: the closed list of the contract (header `reject_reason`)."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    TOO_MANY_PIXELS = "too_many_pixels"
    UNSUPPORTED_FORMAT = "unsupported_format"
    CORRUPT = "corrupt"
    BAD_REFERENCE = "bad_reference"
    FETCH_DENIED = "fetch_denied"
    FETCH_FAILED = "fetch_failed"
    HASH_MISMATCH = "hash_mismatch"
    BAD_IMAGE_ID = "bad_image_id"
    INFERENCE_FAILED = "inference_failed"
    UNREADABLE_RECORD = "unreadable_record"


class AssayError(Exception):
    """Base of all errors below."""


class SettingsError(AssayError):
    """The settings are wrong. `problems`: one line each, naming the variable, the value and what is expected."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class Rejected(AssayError):
    """This image alone is bad.

    `stage` is the one that found out (`intake`, `decode`, `infer`), `detail` a sentence for a person,
    `attempts` how often it was tried.
    """

    def __init__(self, reason: RejectReason, detail: str, *, stage: str, attempts: int = 1) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.stage = stage
        self.attempts = attempts


class Unavailable(AssayError):
    """A dependency (`kafka`, `redis`, `triton`, `storage`) does not answer. Never a reason to reject an image."""

    def __init__(self, dependency: str, detail: str) -> None:
        super().__init__(f"{dependency}: {detail}")
        self.dependency = dependency
        self.detail = detail


class Stopping(AssayError):
    """A wait ended because the worker stops. The item stays uncommitted and is redelivered."""


class NotFound(AssayError):
    """What was asked for is not there."""
