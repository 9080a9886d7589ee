"""s3:// references through boto3 (extra `s3`), with boto3's own retries off: who waits and who gives up is decided in
fetch.py. boto3 names and signs; the bytes travel over connections of ours, which know a deadline.

Use:  source = S3Source(settings, clock); source.read(target, deadline, collect)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from worker.clients.fetch_body import Broken, Collect
from worker.clients.fetch_s3_transport import AWAY, BROKEN_OFF, S3Transport
from worker.clients.fetch_uri import S3Target
from worker.errors import Rejected, RejectReason, SettingsError, Unavailable
from worker.settings import ReferenceSettings, variable

if TYPE_CHECKING:
    from botocore.exceptions import ClientError
    from botocore.response import StreamingBody

_CHUNK_BYTES = 64 * 1024
_THROTTLED = frozenset(
    {
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "RequestLimitExceeded",
        "TooManyRequestsException",
        "BandwidthLimitExceeded",
    }
)
# 403 and 400 answers that speak of us, not of the object: rejecting every image because a key expired would be wrong.
_OUR_CREDENTIALS = frozenset(
    {
        "AuthFailure",
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidClientTokenId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)


class S3Source:
    """Reads s3:// targets. Thread-safe, as boto3's clients are. Raises SettingsError when boto3 is missing or refuses
    the settings.
    """

    def __init__(self, settings: ReferenceSettings, clock: Callable[[], float]) -> None:
        try:
            import boto3  # noqa: PLC0415 - an optional extra
            from botocore import awsrequest, config, exceptions  # noqa: PLC0415 - an optional extra
        except ImportError as error:
            name = variable("references", "schemes")
            problem = f"{name}={','.join(settings.schemes)}: s3 needs boto3; run pip install 'assay-worker[s3]'"
            raise SettingsError([problem]) from error
        secret = settings.s3_secret_access_key
        if (settings.s3_access_key_id is None) != (secret is None):
            names = (variable("references", "s3_access_key_id"), variable("references", "s3_secret_access_key"))
            raise SettingsError([f"{names[0]}: {names[1]} belongs to it; set both, or neither for the usual AWS chain"])
        self._errors = exceptions
        self._where = settings.s3_endpoint_url or f"S3 in {settings.s3_region or 'the default region'}"
        seconds = settings.timeout_ms / 1000
        try:
            self._client = boto3.client(
                "s3",
                endpoint_url=settings.s3_endpoint_url,
                region_name=settings.s3_region,
                aws_access_key_id=settings.s3_access_key_id,
                aws_secret_access_key=None if secret is None else secret.get_secret_value(),
                config=config.Config(
                    connect_timeout=seconds,
                    read_timeout=seconds,
                    retries={"total_max_attempts": 1, "mode": "standard"},
                    max_pool_connections=settings.concurrency,
                    # Other endpoints seldom have a name for each bucket.
                    s3={"addressing_style": "path" if settings.s3_endpoint_url else "auto"},
                ),
            )
            self._transport = S3Transport(clock, awsrequest.AWSResponse, settings.concurrency)
            self._client.meta.events.register("before-send.s3.GetObject", self._transport.send)
        except (ValueError, exceptions.BotoCoreError) as error:
            endpoint = f"{variable('references', 's3_endpoint_url')}={settings.s3_endpoint_url!r}"
            region = f"{variable('references', 's3_region')}={settings.s3_region!r}"
            raise SettingsError([f"{endpoint}, {region}: {error}"]) from error

    def read(self, target: S3Target, deadline: float, collect: Collect) -> bytes:
        """The object's bytes. `deadline`: on the clock, for everything together.

        Raises Rejected, Unavailable, or Broken for what is worth another try.
        """
        version: dict[str, Any] = {} if target.version_id is None else {"VersionId": target.version_id}
        self._transport.deadline = deadline
        try:
            answer = self._client.get_object(Bucket=target.bucket, Key=target.key, **version)
            with contextlib.closing(answer["Body"]) as body:
                return collect(self._chunks(body), answer["ContentLength"])
        except self._errors.ClientError as error:
            raise self._refusal(error) from error
        except self._errors.ParamValidationError as error:
            raise Rejected(RejectReason.BAD_REFERENCE, f"S3 takes no such name: {error}", stage="intake") from error
        except (self._errors.BotoCoreError, *AWAY) as error:
            raise Unavailable("storage", f"{self._where}: {error or type(error).__name__}") from error

    def close(self) -> None:
        self._client.close()
        self._transport.close()

    def _chunks(self, body: StreamingBody) -> Iterator[bytes]:
        try:
            yield from body.iter_chunks(_CHUNK_BYTES)
        except (self._errors.IncompleteReadError, *BROKEN_OFF) as error:
            raise Broken(f"{self._where} broke off: {error}") from error

    def _refusal(self, error: ClientError) -> Rejected | Unavailable:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if status >= 500 or status in (408, 429) or code in _THROTTLED:
            return Unavailable("storage", f"{self._where} answers {status} {code}")
        if code in _OUR_CREDENTIALS:
            return Unavailable(
                "storage",
                f"{self._where} refuses the credentials ({code}); see {variable('references', 's3_access_key_id')}",
            )
        return Rejected(RejectReason.FETCH_FAILED, f"{self._where} answers {status} {code}", stage="intake")
