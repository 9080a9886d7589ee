"""The review console: where it listens, who may in, and how images are given to people."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from worker.settings.types import CommaList, Duration, Group, Port, PositiveInt, broken_rule, split_commas

_LEAST_SECRET_CHARACTERS = 32


def _check_networks(texts: list[str]) -> list[str]:
    for text in texts:
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text!r} is no address or network, as 10.0.0.0/8") from None
    return texts


Networks = Annotated[CommaList, AfterValidator(_check_networks)]
Decisions = Annotated[list[Literal["real", "fake", "unsure"]], BeforeValidator(split_commas)]


class ConsoleSettings(Group):
    """The review console (`python -m worker console`, docs/console.md)."""

    host: str = Field(default="127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: Port = Field(default=9470, description="Port of the pages; 0 takes a free one and logs it.")
    metrics_port: Port = Field(
        default=9471, description="Port of the console's /metrics, /livez and /readyz; 0 takes a free one and logs it."
    )
    tls_cert_path: Path | None = Field(
        default=None, description="PEM file with the certificate chain: the pages are served over TLS."
    )
    tls_key_path: Path | None = Field(default=None, description="PEM file with its key.")
    behind_tls: bool = Field(default=False, description="A proxy in front ends TLS: cookies are then for https alone.")
    auth: Literal["users", "proxy", "none"] = Field(
        default="users",
        description="Who says who somebody is: the users file, a proxy's headers, or nobody (on loopback alone, all "
        "rights for whoever comes).",
    )
    users_path: Path | None = Field(
        default=None,
        description="Users with roles and argon2 hashes; `python -m worker console user` writes it. Read anew when it "
        "changes.",
    )
    proxy_networks: Networks = Field(
        default=["127.0.0.1", "::1"],
        description="Addresses of proxies in front, comma separated: who they say somebody is (auth=proxy), and whom "
        "they forward for (X-Forwarded-For: log-ins are limited by it).",
    )
    proxy_user_header: str = Field(default="x-forwarded-user", min_length=1, description="Header with the user's name.")
    proxy_roles_header: str = Field(
        default="x-forwarded-groups", min_length=1, description="Header with the user's groups, comma separated."
    )
    proxy_role_prefix: str = Field(
        default="assay-", description="What precedes a role in the name of a group: `assay-lead` makes a lead."
    )
    secret: SecretStr | None = Field(
        default=None,
        description="Signs the sessions, 32 characters at least, the same for all consoles; when unset one is drawn at "
        "start, and sessions end with the process.",
    )
    session_ttl: Duration = Field(
        default=12 * 3600,
        ge=60,
        description="Longest session: seconds, or with a unit (`12h`).",
        json_schema_extra={"unit": "s"},
    )
    login_attempts: PositiveInt = Field(
        default=10, description="Failed log-ins of one name, or from one address, in five minutes; then it waits."
    )
    group_id: str = Field(
        default="assay-console", min_length=1, description="Consumer group of all consoles on the verdicts topic."
    )
    queues_path: Path | None = Field(
        default=None,
        description="Queues as a TOML file (docs/console.md); when unset one queue takes every verdict `review`.",
    )
    max_queued: PositiveInt = Field(
        default=200_000, description="Images that wait in one queue at most; beyond that the rest waits in Kafka."
    )
    lock_s: int = Field(
        default=60, ge=5, description="How long an image stays with someone whose page says nothing any more."
    )
    undo_s: int = Field(
        default=5, ge=0, le=60, description="How long a decision can be taken back before it goes to Kafka."
    )
    keep_ttl: Duration = Field(
        default=30 * 86400,
        ge=3600,
        description="How long a reviewed image is remembered, so that it is not asked twice and can be appealed.",
        json_schema_extra={"unit": "s"},
    )
    reasons: CommaList = Field(
        default=["artefacts", "known_source", "metadata", "context", "screenshot", "poor_quality", "other"],
        description="Reasons that a decision may have, comma separated.",
    )
    reason_required: Decisions = Field(
        default=[], description="Decisions that need a reason: some of `real`, `fake`, `unsure`."
    )
    second_share: float = Field(
        default=0.05, ge=0, le=1, description="Share of the images that two people see; where they differ, a lead does."
    )
    lead_alone_ttl: Duration = Field(
        default=86_400,
        description="How long a conflict or an appeal waits for a lead who had no part in it; then one who had may "
        "decide it too (a team with one lead: 0).",
        json_schema_extra={"unit": "s"},
    )
    golden_share: float = Field(
        default=0.02, ge=0, le=1, description="Share of the images given out that are golden: their truth is known."
    )
    near_duplicates: bool = Field(
        default=True,
        description="Pictures that wait are looked at ahead (one at a time in each console), so that near duplicates "
        "are shown as a group that can be decided at once.",
    )
    near_distance: int = Field(
        default=6, ge=0, le=16, description="In how many of 64 bits the perceptual hashes of near duplicates differ."
    )
    hide: Literal["blur", "grey", "small", "none"] = Field(
        default="blur", description="How an image is first shown; each person may choose another."
    )
    break_after_images: PositiveInt = Field(
        default=300, description="Images without a pause of five minutes, after which the page reminds of a break."
    )
    renderers: PositiveInt = Field(
        default=4,
        description="Images decoded at a time, each in a process of its own that takes ASSAY_DECODE__MEMORY_BYTES at "
        "most; others wait.",
    )
    image_cache_bytes: int = Field(
        default=128 * 1024 * 1024, ge=1024 * 1024, description="Decoded images kept ready, of all people together."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> ConsoleSettings:
        if self.tls_key_path is not None and self.tls_cert_path is None:
            raise broken_rule("tls_cert_path", "tls_key_path is set; a certificate is expected beside it")
        if self.auth == "none" and not is_loopback(self.host):
            raise broken_rule("auth", f"none is for loopback alone, and host={self.host}: users or proxy is expected")
        if self.secret is not None and len(self.secret.get_secret_value()) < _LEAST_SECRET_CHARACTERS:
            raise broken_rule("secret", f"at least {_LEAST_SECRET_CHARACTERS} characters are expected")
        return self

    @property
    def is_https(self) -> bool:
        """Do browsers see https?"""
        return self.behind_tls or self.tls_cert_path is not None


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
