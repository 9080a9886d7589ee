"""What happens with an image: how much at once, what is too large, where it may come from, who decides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr

from worker.settings.types import MIB, CommaList, Group, PositiveInt, Share, split_commas


class IntakeSettings(Group):
    """From record to item: ids and batches."""

    id_sources: Annotated[list[Literal["ce_id", "key", "sha256"]], BeforeValidator(split_commas)] = Field(
        default=["ce_id", "key", "sha256"],
        min_length=1,
        description="Where the image id comes from, first that is there. A producer that keys by user must leave `key` "
        "out.",
    )
    batch_max_items: int = Field(default=32, ge=1, le=256, description="Images in one batch at most.")
    batch_max_bytes: int = Field(default=64 * MIB, ge=1024, description="Encoded bytes in one batch at most.")
    batch_max_wait_ms: int = Field(
        default=20, ge=0, description="A batch leaves when its oldest image has waited for so long."
    )


class FlowSettings(Group):
    """How much may be under way: with the fetch buffers of the consumer this bounds the worker's memory."""

    max_items: PositiveInt = Field(
        default=512,
        description="Records in work at once; at this mark consumption pauses. Slow images, and copies that wait "
        "for them (up to eight times as many), count by their bytes alone.",
    )
    max_bytes: int = Field(
        default=192 * MIB, ge=MIB, description="Encoded bytes in work at once; at this mark consumption pauses."
    )
    max_references: PositiveInt = Field(
        default=128,
        description="References in work at once, well below max_items; at this mark consumption pauses.",
    )
    low_water: Share = Field(default=0.5, description="Share of the marks at which consumption resumes.")


class DecodeSettings(Group):
    """From bytes to pixels."""

    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto", description="Where DALI decodes; `auto` takes the GPU where there is one."
    )
    processes: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Child processes that decode; 0 takes one per core that the container may use. As many more take "
        "over while slow images are there.",
    )
    timeout_ms: int = Field(
        default=10_000,
        ge=100,
        description="What one image may take, not counting the time that its process waits for a core; then the "
        "process is ended.",
    )
    max_attempts: PositiveInt = Field(
        default=3,
        description="Tries for one image that alone ends its process (crash, time-out, memory); then it is rejected as "
        "corrupt.",
    )
    memory_bytes: int = Field(
        default=2048 * MIB,
        ge=64 * MIB,
        description="Memory for images while they are decoded, of all child processes together, and the most that a "
        "single one may take.",
    )


class EvidenceSettings(Group):
    """What a file says about its origin."""

    c2pa_trust_path: Path | None = Field(
        default=None,
        description="Authorities whose signers' C2PA manifests count, as PEM certificates (docs/evidence.md says where "
        "lists come from); without one every sound manifest is `untrusted`. Read at start.",
    )


class LimitSettings(Group):
    """What is too large, checked before anything is decoded."""

    max_image_bytes: PositiveInt = Field(default=25_000_000, description="Largest encoded image.")
    max_image_pixels: PositiveInt = Field(default=100_000_000, description="Largest image, width times height.")


class ReferenceSettings(Group):
    """Images by reference. Every scheme is off until it is allowed here."""

    schemes: Annotated[list[Literal["file", "https", "s3"]], BeforeValidator(split_commas)] = Field(
        default=[], description="Allowed schemes: some of `file`, `https`, `s3`."
    )
    file_roots: CommaList = Field(default=[], description="Folders that file:// may read from, links resolved.")
    https_hosts: CommaList = Field(
        default=[],
        description="Hosts that https:// may ask: `host` (port 443) or `host:port`; `*.example.org` takes every host "
        "below.",
    )
    https_ca_path: Path | None = Field(
        default=None, description="PEM file with the authorities to trust; the system's when unset."
    )
    allow_private_addresses: bool = Field(
        default=False, description="Let host names resolve to private, loopback or link-local addresses."
    )
    max_redirects: int = Field(
        default=0, ge=0, le=10, description="Redirects to follow; each target must be allowed too."
    )
    s3_buckets: CommaList = Field(default=[], description="Buckets that s3:// may read from.")
    s3_endpoint_url: str | None = Field(default=None, description="S3 endpoint, where it is not AWS.")
    s3_region: str | None = Field(default=None, description="S3 region.")
    s3_access_key_id: str | None = Field(default=None, description="S3 key id; the usual AWS chain when unset.")
    s3_secret_access_key: SecretStr | None = Field(default=None, description="S3 secret.")
    timeout_ms: int = Field(default=10_000, ge=100, description="Deadline of one fetch.")
    max_attempts: PositiveInt = Field(
        default=4,
        description="Tries for an object that fails while its storage answers; then it is rejected as fetch_failed.",
    )
    wait_ms: int = Field(
        default=5_000,
        ge=0,
        description="How long a record waits in place for a storage that is away; then it goes to the retry topic.",
    )
    retry_delay_s: PositiveInt = Field(default=60, description="How long a parked record waits for its next try.")
    give_up_s: PositiveInt = Field(
        default=86_400,
        description="How long after its first arrival a parked record is tried; then it is rejected as fetch_failed.",
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="Fetches under way at once.")


class CacheSettings(Group):
    """The hash cache."""

    enabled: bool = Field(default=True, description="Look scores up by SHA-256 and model version before decoding.")


class PolicySettings(Group):
    """From scores to a decision."""

    path: Path | None = Field(
        default=None,
        description="Policy as a TOML file; the built-in default when unset (docs/policy.md). A changed file is taken "
        "up within 10 s, and at once after SIGHUP.",
    )
    shadow_path: Path | None = Field(
        default=None,
        description="Another policy, whose decisions are counted beside those of the first and never decide; none when "
        "unset.",
    )


class ShadowSettings(Group):
    """A second model version beside the one that decides, on a sample of the traffic."""

    share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the inferred images that the shadow model scores too, for comparison; it never decides. "
        "0: off.",
    )
    model_name: str = Field(
        default="code_shadow", min_length=1, description="Name of the shadow model on the same server (docs/models.md)."
    )
    waiting_batches: PositiveInt = Field(
        default=4,
        description="Sampled batches that may wait for the shadow model; beyond that they are dropped and counted.",
    )
    stream_max_items: PositiveInt = Field(
        default=100_000, description="Comparisons kept in the Redis stream `assay:shadow:<model>`, about."
    )
