"""What the values of settings are made of: lists, durations, addresses, and a group of settings.

A validator here names what is expected; `loading` adds the variable and the value.
"""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_core import PydanticCustomError

from worker.durations import parse_duration

MIB = 1024 * 1024
BROKEN_RULE = "broken_rule"


def split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _seconds(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def check_redis_url(url: SecretStr) -> SecretStr:
    text = url.get_secret_value().strip()
    if not text.startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("a URL that begins with redis://, rediss:// or unix:// is expected")
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018  # raises for what is no port
    except ValueError:
        raise ValueError("a port from 1 to 65535 is expected in the URL") from None
    if parts.scheme != "unix" and not (parts.hostname and re.fullmatch(r"(/\d*)?", parts.path)):
        raise ValueError("a host and, behind it, nothing or the number of a database are expected in the URL")
    if parts.query:
        from redis import ConnectionPool  # noqa: PLC0415  # options are the client's own, and rare

        try:
            ConnectionPool.from_url(text).make_connection()
        except (TypeError, ValueError) as error:
            raise ValueError(f"the client does not know an option of the URL ({error})") from None
    return SecretStr(text)


def _check_server(address: str) -> str:
    """`host:port` with a port that exists; an IPv6 address stands in brackets."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError(f"{address!r} is no host:port")
    if not port.isdigit() or not 1 <= int(port) <= 65_535:
        raise ValueError(f"{address!r} needs a port from 1 to 65535")
    return address


def check_servers(addresses: list[str]) -> list[str]:
    return [_check_server(address) for address in addresses]


def check_triton_url(url: str) -> str:
    scheme, separator, address = url.rpartition("://")
    if separator and scheme not in ("grpc", "grpcs"):
        raise ValueError(f"{scheme}:// is neither grpc:// nor grpcs://")
    _check_server(address)
    return url


CommaList = Annotated[list[str], BeforeValidator(split_commas)]
Topic = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Duration = Annotated[int, BeforeValidator(_seconds), Field(ge=0)]
Port = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
Servers = Annotated[CommaList, AfterValidator(check_servers)]
RedisUrl = Annotated[SecretStr, AfterValidator(check_redis_url)]
TritonUrl = Annotated[str, AfterValidator(check_triton_url)]


class Group(BaseModel):
    """A group of settings: unknown names are refused, so that a misspelt one cannot be silently ignored."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


def broken_rule(setting: str, problem: str) -> PydanticCustomError:
    """What a rule over several settings of a group raises; `setting` is the one to change."""
    return PydanticCustomError(BROKEN_RULE, "{problem}", {"setting": setting, "problem": problem})
