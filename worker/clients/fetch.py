"""Images by reference (claim checks): `Fetcher(settings.references, settings.limits).fetch(reference) -> bytes`, from
any thread.

| what happens                                                            | what it means                           |
|---|---|
| unknown scheme or one that is off; host, address, bucket or root not    | Rejected(fetch_denied)                  |
|   allowed; user in the URL; a redirect while redirects are off          |                                         |
| malformed URI                                                           | Rejected(bad_reference)                 |
| larger than limits.max_image_bytes, declared or arriving                | Rejected(too_large)                     |
| nothing in it                                                           | Rejected(empty)                         |
| sha256 given and another                                                | Rejected(hash_mismatch)                 |
| https 4xx (but 408, 425, 429), compressed body, too many redirects; S3  | Rejected(fetch_failed)                  |
|   NoSuchKey, AccessDenied, other 4xx; no such file, no regular file     |                                         |
| https 425; an answer that breaks off; a name below a wildcard that does | another try, up to                      |
|   not exist                                                             |   references.max_attempts, then         |
|                                                                         |   Rejected(fetch_failed, attempts=n)    |
| no connection, no name server, no such name on the list, TLS handshake, | Unavailable("storage"): the caller      |
|   not all of it before the deadline; https and S3 408, 429, 5xx,        |   waits, then parks                     |
|   throttling, credentials refused; an allowed folder gone, disk fails   |                                         |

One try, redirects included, has references.timeout_ms; only the system's resolver has time-outs of its own.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from worker.addresses import Resolve, system_addresses
from worker.clients.fetch_body import Broken, collect_up_to
from worker.clients.fetch_file import read_file
from worker.clients.fetch_https import HttpsSource
from worker.clients.fetch_s3 import S3Source
from worker.clients.fetch_uri import FileTarget, HttpsTarget, Rules, Target
from worker.contract import ImageReference
from worker.errors import Rejected, RejectReason
from worker.item import Address
from worker.retry import backoff_s
from worker.settings import LimitSettings, ReferenceSettings

_BACKOFF_BASE_MS, _BACKOFF_MAX_MS = 200, 2_000


class Fetcher:
    """Fetches references under the rules above. Thread-safe; `references.concurrency` threads are what it is laid out
    for.

    `sleep` waits between tries and may raise worker.errors.Stopping; `clock` is monotonic, in seconds; `resolve` looks
    names up. Raises SettingsError for entries that can never match, a CA file that cannot be read, or s3 without boto3.
    """

    def __init__(
        self,
        settings: ReferenceSettings,
        limits: LimitSettings,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
        resolve: Resolve = system_addresses,
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._clock = clock
        self._collect = collect_up_to(limits.max_image_bytes)
        self._rules = Rules(settings)
        self._https = HttpsSource(settings, self._rules, clock, resolve) if "https" in settings.schemes else None
        self._s3 = S3Source(settings, clock) if "s3" in settings.schemes else None

    @property
    def allowed(self) -> list[str]:
        """Every host, bucket and folder that the settings allow, as `Address.allowed` names them."""
        return self._rules.allowed

    def address(self, reference: ImageReference) -> Address:
        """Which storage it leads to. Raises Rejected where it may not be fetched."""
        return self._rules.parse(reference.uri).address

    def fetch(self, reference: ImageReference) -> bytes:
        """The image's bytes, at least one, verified where the reference has a hash. Raises Rejected or Unavailable."""
        target = self._rules.parse(reference.uri)
        data = self._with_retries(target)
        if not data:
            raise Rejected(RejectReason.EMPTY, "there is nothing behind the reference", stage="intake")
        if reference.sha256 is not None and (actual := hashlib.sha256(data).hexdigest()) != reference.sha256:
            detail = f"the bytes behind the reference have sha256 {actual}, not {reference.sha256}"
            raise Rejected(RejectReason.HASH_MISMATCH, detail, stage="intake")
        return data

    def close(self) -> None:
        """Close the connections; fetches under way fail."""
        for source in (self._https, self._s3):
            if source is not None:
                source.close()

    def _with_retries(self, target: Target) -> bytes:
        attempt = 1
        while True:
            try:
                return self._read(target)
            except Broken as error:
                if attempt >= self._settings.max_attempts:
                    raise Rejected(RejectReason.FETCH_FAILED, str(error), stage="intake", attempts=attempt) from error
            self._sleep(backoff_s(attempt, _BACKOFF_BASE_MS, _BACKOFF_MAX_MS))
            attempt += 1

    def _read(self, target: Target) -> bytes:
        deadline = self._clock() + self._settings.timeout_ms / 1000
        if isinstance(target, FileTarget):
            return read_file(target, self._settings.file_roots, self._collect)
        if isinstance(target, HttpsTarget):
            assert self._https is not None  # the rules let only allowed schemes through
            return self._https.read(target, deadline, self._collect)
        assert self._s3 is not None
        return self._s3.read(target, deadline, self._collect)
