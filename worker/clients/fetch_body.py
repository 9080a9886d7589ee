"""What the sources of references share: a body read under a size limit, and the failure that is worth another try."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable

from worker.errors import Rejected, RejectReason

Collect = Callable[[Iterable[bytes], int | None], bytes]
"""(chunks, declared size in bytes or None) -> the body. Raises Rejected(too_large)."""


class Broken(Exception):
    """This object failed while its storage answers. The fetcher tries again, then rejects it; no one else sees this."""


def collect_up_to(max_bytes: int) -> Collect:
    """A reader that gives up on more than `max_bytes`: by the declared size before it reads, and by what arrives."""

    def collect(chunks: Iterable[bytes], declared_bytes: int | None) -> bytes:
        if declared_bytes is not None and declared_bytes > max_bytes:
            raise _too_large(f"{declared_bytes} bytes", max_bytes)
        body = io.BytesIO()  # getvalue() hands its buffer over without a copy; joining chunks would hold two
        size = 0
        for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(f"more than {max_bytes} bytes", max_bytes)
            body.write(chunk)
        return body.getvalue()

    return collect


def _too_large(size: str, max_bytes: int) -> Rejected:
    return Rejected(
        RejectReason.TOO_LARGE, f"the image behind the reference has {size}; the limit is {max_bytes}", stage="intake"
    )
