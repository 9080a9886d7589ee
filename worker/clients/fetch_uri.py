"""From the URI of a reference to what may be fetched: parsing and allow-lists. Pure, no look-ups, no I/O.

What is compared with the allow-list is what is later connected to: one parse gives both, so that no second parser can
read the same text differently. An unknown or unallowed scheme, host, bucket or root is `fetch_denied`, a malformed URI
`bad_reference`.

Use:  rules = Rules(settings.references); target = rules.parse("https://img.example.org/a.jpg")
"""

from __future__ import annotations

import ipaddress
import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

import httpx

from worker.errors import Rejected, RejectReason, SettingsError
from worker.item import Address
from worker.settings import ReferenceSettings, variable

HTTPS_PORT = 443
SCHEMES = ("file", "https", "s3")
# RFC 3986, appendix B, with the scheme's own grammar (section 3.1).
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_HOST_CHARS = 253
_MAX_KEY_BYTES = 1024  # of an S3 object


@dataclass(frozen=True, slots=True)
class FileTarget:
    """An absolute path, links not yet resolved; the root is checked when the file is open."""

    path: bytes
    address: Address = field(compare=False)


@dataclass(frozen=True, slots=True)
class HttpsTarget:
    """`host` as it is connected to: lower-case ASCII without a trailing dot, an IPv6 address without brackets.

    `request_target`: path and query, percent-encoded. `exact`: the host stands in the allow-list itself, not below a
    wildcard. `allowed`: the entry of the list.
    """

    host: str
    port: int
    request_target: bytes
    exact: bool
    allowed: str = field(compare=False)

    @property
    def address(self) -> Address:
        return Address(f"https://{self}", self.allowed)

    @property
    def url(self) -> httpx.URL:
        return httpx.URL(scheme="https", host=self.host, port=self.port, raw_path=self.request_target)

    def __str__(self) -> str:
        return host_port(self.host, self.port)


@dataclass(frozen=True, slots=True)
class S3Target:
    bucket: str
    key: str
    version_id: str | None

    @property
    def address(self) -> Address:
        return Address(f"s3://{self.bucket}", f"s3://{self.bucket}")


Target = FileTarget | HttpsTarget | S3Target


@dataclass(frozen=True, slots=True)
class _AllowedHost:
    host: str
    port: int
    below: bool  # *.host

    def __str__(self) -> str:
        return f"https://{'*.' if self.below else ''}{host_port(self.host, self.port)}"

    def matches(self, host: str, port: int) -> bool:
        return port == self.port and (host.endswith("." + self.host) if self.below else host == self.host)


class Rules:
    """The allow-lists of the settings. Raises SettingsError for an entry that could never match, with every problem at
    once.
    """

    def __init__(self, settings: ReferenceSettings) -> None:
        problems: list[str] = []
        self._schemes = frozenset(settings.schemes)
        self._buckets = frozenset(settings.s3_buckets)
        self._hosts: list[_AllowedHost] = []
        self._roots = settings.file_roots
        for entry in settings.https_hosts:
            try:
                self._hosts.append(_allowed_host(entry))
            except ValueError as error:
                problems.append(
                    f"{variable('references', 'https_hosts')}={entry!r}: {error}; "
                    "`host`, `host:port`, `*.example.org` or `[v6]:port` is expected"
                )
        problems += [
            f"{variable('references', 'file_roots')}={root!r}: an absolute folder is expected"
            for root in settings.file_roots
            if not Path(root).is_absolute()
        ]
        if problems:
            raise SettingsError(problems)

    def parse(self, uri: str) -> Target:
        """What `uri` names. Raises Rejected(fetch_denied or bad_reference)."""
        if any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in uri) or uri != uri.strip():
            _bad("the uri has control characters or white space around it")
        match = _URI.fullmatch(uri)
        if match is None:
            _bad("the uri has no scheme; s3://, https:// or file:/// is expected")
        scheme, authority, path, query, fragment = match[1].lower(), match[2], match[3], match[4], match[5]
        if scheme not in SCHEMES:
            _denied(f"scheme {scheme}: only {', '.join(SCHEMES)} can be fetched")
        if scheme not in self._schemes:
            _denied(f"scheme {scheme} is off; {variable('references', 'schemes')} allows it")
        if scheme == "file":
            return self._file(authority, path, query, fragment)
        if scheme == "s3":
            return self._s3(authority, path, query, fragment)
        return self.https(httpx_url(uri, authority))

    def https(self, url: httpx.URL) -> HttpsTarget:
        """The target of an absolute URL, of the reference or of a redirect. Raises Rejected like `parse`."""
        if url.scheme != "https":
            _denied(f"a redirect to scheme {url.scheme or '(none)'}: only https is followed")
        if "https" not in self._schemes:
            _denied(f"scheme https is off; {variable('references', 'schemes')} allows it")
        if url.userinfo:
            _denied("user and password in a URL are not allowed")
        try:
            host, port = _normalised_host(url.raw_host.decode("ascii")), _port(url)
        except ValueError as error:
            _bad(f"the uri names no host: {error}")
        matching = [entry for entry in self._hosts if entry.matches(host, port)]
        if not matching:
            _denied(
                f"host {host_port(host, port)} is not on the list; {variable('references', 'https_hosts')} allows it"
            )
        exact = next((entry for entry in matching if not entry.below), None)
        allowed = str(exact or matching[0])
        return HttpsTarget(host, port, url.raw_path or b"/", exact=exact is not None, allowed=allowed)

    def _file(self, authority: str | None, path: str, query: str | None, fragment: str | None) -> FileTarget:
        if authority and authority.lower() != "localhost":
            _denied(f"file://{authority}: another host's files cannot be read; file:///path is expected")
        if query is not None or fragment is not None:
            _bad("a ? in a path is written %3F, a # %23")
        decoded = unquote_to_bytes(path)
        if not decoded.startswith(b"/"):
            _bad("the path is not absolute; file:///path is expected")
        if b"\0" in decoded:
            _bad("the path holds a NUL")
        # By the path's text alone, for the books: whether the root may be read is decided when the file is open.
        below = (root for root in self._roots if decoded.startswith(os.fsencode(root).rstrip(b"/") + b"/"))
        root = f"file://{next(below, '')}"
        return FileTarget(decoded, Address(root, root))

    @property
    def allowed(self) -> list[str]:
        """Every entry of the lists whose scheme is on, as addresses name them."""
        entries = {
            "file": [f"file://{root}" for root in self._roots],
            "https": [str(host) for host in self._hosts],
            "s3": [f"s3://{bucket}" for bucket in sorted(self._buckets)],
        }
        return [entry for scheme in SCHEMES if scheme in self._schemes for entry in entries[scheme]]

    def _s3(self, authority: str | None, path: str, query: str | None, fragment: str | None) -> S3Target:
        if not authority:
            _bad("the uri names no bucket; s3://bucket/key is expected")
        if authority not in self._buckets:
            _denied(f"bucket {authority} is not on the list; {variable('references', 's3_buckets')} allows it")
        if not _BUCKET.fullmatch(authority):
            _bad(f"{authority} is no name of a bucket")
        if fragment is not None:
            _bad("a # in a key is written %23")
        try:
            key = unquote(path.removeprefix("/"), errors="strict")
        except UnicodeDecodeError:
            _bad("the key is not UTF-8 once percent-decoded")
        if not 1 <= len(key.encode()) <= _MAX_KEY_BYTES or "\0" in key:
            _bad(f"a key has 1 to {_MAX_KEY_BYTES} bytes, none of them 0")
        if any(segment in (".", "..") for segment in key.split("/")):
            _denied("a key with . or .. between slashes: a proxy might take it for another bucket's")
        version_id = None
        for name, value in parse_qsl(query or "", keep_blank_values=True):
            if name != "versionId" or not value or version_id is not None:
                _bad(f"query {name}: only one versionId=… can follow a key; a ? in a key is written %3F")
            version_id = value
        return S3Target(authority, key, version_id)


def host_port(host: str, port: int) -> str:
    """As it stands in a URL or in the allow-list: without the default port, IPv6 in brackets."""
    name = f"[{host}]" if ":" in host else host
    return name if port == HTTPS_PORT else f"{name}:{port}"


def httpx_url(uri: str, authority: str | None) -> httpx.URL:
    """`uri` parsed for the request. Raises Rejected(bad_reference), or fetch_denied for a user in the authority."""
    if not authority:
        _bad("the uri names no host; https://host/path is expected")
    if "@" in authority:
        _denied("user and password in a URL are not allowed")
    try:
        return httpx.URL(uri)
    except httpx.InvalidURL as error:
        _bad(f"the uri is no URL: {error}")


def _allowed_host(entry: str) -> _AllowedHost:
    below = entry.startswith("*.")
    name = entry.removeprefix("*.")
    if name.count(":") > 1 and not name.startswith("["):
        name = f"[{name}]"
    if any(char in name for char in "/?#@"):
        raise ValueError("it is no host")
    try:
        url = httpx.URL(f"https://{name}/")
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from None
    host = _normalised_host(url.raw_host.decode("ascii"))
    if below and _is_address(host):
        raise ValueError("a wildcard cannot stand before an address")
    return _AllowedHost(host, _port(url), below)


def _port(url: httpx.URL) -> int:
    port = HTTPS_PORT if url.port is None else url.port
    if not 1 <= port <= 65535:
        raise ValueError(f"{port} is no port")
    return port


def _normalised_host(host: str) -> str:
    """Lower case, no trailing dot, IPv6 in its short form. Raises ValueError for what cannot be looked up."""
    if ":" in host:
        return str(ipaddress.IPv6Address(host))
    host = host.lower().removesuffix(".")
    if not host or len(host) > _MAX_HOST_CHARS or not all(_LABEL.fullmatch(label) for label in host.split(".")):
        raise ValueError(f"{host[:64]!r} is no host name")
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _bad(detail: str) -> NoReturn:
    raise Rejected(RejectReason.BAD_REFERENCE, detail, stage="intake") from None


def _denied(detail: str) -> NoReturn:
    raise Rejected(RejectReason.FETCH_DENIED, detail, stage="intake") from None
