"""Allow-lists and URI parsing: whatever a producer writes gives a target, a clean rejection, and never anything
else.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.clients.fetch_uri import FileTarget, HttpsTarget, Rules, S3Target
from worker.errors import Rejected, RejectReason, SettingsError
from worker.item import Address
from worker.settings import ReferenceSettings

RULES = Rules(
    ReferenceSettings(
        schemes=["file", "https", "s3"],
        file_roots=["/srv/images"],
        https_hosts=[
            "img.example.org",
            "cdn.example.org:8443",
            "*.wild.example",
            "[2001:DB8::1]:444",
            "2001:db8::2",
            "München.de",
            "192.0.2.7",
        ],
        s3_buckets=["photos"],
    )
)

ROOT = Address("file:///srv/images", "file:///srv/images")


def refusal(uri: str, rules: Rules = RULES) -> RejectReason:
    with pytest.raises(Rejected) as caught:
        rules.parse(uri)
    assert caught.value.stage == "intake"
    return caught.value.reason


@pytest.mark.parametrize(
    ("uri", "host", "port", "target", "exact"),
    [
        ("https://img.example.org/a.jpg?x=1#f", "img.example.org", 443, b"/a.jpg?x=1", True),
        ("HTTPS://IMG.Example.ORG.:443", "img.example.org", 443, b"/", True),
        ("https://cdn.example.org:8443/%2Fa b", "cdn.example.org", 8443, b"/%2Fa%20b", True),
        ("https://a.b.wild.example/", "a.b.wild.example", 443, b"/", False),
        ("https://[2001:db8:0::1]:444/", "2001:db8::1", 444, b"/", True),
        ("https://[2001:db8::2]/", "2001:db8::2", 443, b"/", True),
        ("https://münchen.de/", "xn--mnchen-3ya.de", 443, b"/", True),
        ("https://192.0.2.7/", "192.0.2.7", 443, b"/", True),
    ],
)
def test_allowed_hosts(uri: str, host: str, port: int, target: bytes, exact: bool) -> None:
    """Hosts are compared in one form: lower case, IDNA, no trailing dot, short IPv6; the port is part of the entry."""
    assert RULES.parse(uri) == HttpsTarget(host, port, target, exact, allowed="")


@pytest.mark.parametrize(
    "uri",
    [
        "https://img.example.org:8443/",
        "https://cdn.example.org/",
        "https://wild.example/",
        "https://evilwild.example/",
        "https://img.example.org.evil.example/",
        "https://user:secret@img.example.org/",
        "https://@img.example.org/",
        "https://img.example.org@evil.example/",
        "https://127.0.0.1/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://[::ffff:127.0.0.1]/",
        "http://img.example.org/",
        "ftp://img.example.org/",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "s3://other/key",
        "s3://photos:443/key",
        "s3://me@photos/key",
        "file://fileserver/share/a.jpg",
    ],
)
def test_denied(uri: str) -> None:
    """An unknown scheme, an unlisted host, port or bucket and any user in the URL are denied."""
    assert refusal(uri) is RejectReason.FETCH_DENIED


@pytest.mark.parametrize(
    "uri",
    [
        "a.jpg",
        "//img.example.org/a",
        ":",
        " https://img.example.org/",
        "https://img.example.org/\n",
        "ht\ttps://img.example.org/",
        "https:///a.jpg",
        "https:img.example.org",
        "https://img.example.org:0/",
        "https://img.example.org:99999/",
        "https://img..example.org/",
        "https://img example.org/",
        "https://img%2eexample.org/",
        "https://evil.example\\.img.example.org/",
        "https://[::1/",
        "https://-a.wild.example/",
        f"https://{'a' * 64}.wild.example/",
        f"https://{'a.' * 130}wild.example/",
        "s3://photos",
        "s3://photos/",
        "s3:///key",
        "s3:key",
        "s3://photos/a#b",
        "s3://photos/%FF",
        "s3://photos/a%00b",
        "s3://photos/a?versionId=",
        "s3://photos/a?versionId=1&versionId=2",
        "s3://photos/a?acl",
        "file:a.jpg",
        "file://localhost",
        "file:///srv/images/a%00.jpg",
        "file:///srv/images/a.jpg?x",
        "file:///srv/images/a.jpg#x",
    ],
)
def test_malformed(uri: str) -> None:
    """A URI that names nothing that could be fetched is a bad reference."""
    assert refusal(uri) is RejectReason.BAD_REFERENCE


@pytest.mark.parametrize(
    ("uri", "target"),
    [
        ("s3://photos/a/b%20c+d.jpg", S3Target("photos", "a/b c+d.jpg", None)),
        ("s3://photos//a", S3Target("photos", "/a", None)),
        ("S3://photos/ä?versionId=v%2F1", S3Target("photos", "ä", "v/1")),
        ("file:///srv/images/a%20b%3F.jpg", FileTarget(b"/srv/images/a b?.jpg", ROOT)),
        ("file://LOCALHOST/srv/images/%FF", FileTarget(b"/srv/images/\xff", ROOT)),
        ("file:/srv/images/a", FileTarget(b"/srv/images/a", ROOT)),
    ],
)
def test_buckets_and_paths(uri: str, target: FileTarget | S3Target) -> None:
    """Keys and paths are percent-decoded once; a path may hold bytes that are no text."""
    assert RULES.parse(uri) == target


@pytest.mark.parametrize(
    "key", ["../other/a", "a/../../other/a", "a/./b", "..", ".", "a/..", "%2e%2e/other", "a/%2E/b"]
)
def test_a_key_that_a_proxy_might_shorten_is_denied(key: str) -> None:
    """What normalises paths before the storage would read it as another bucket's key."""
    assert refusal(f"s3://photos/{key}") is RejectReason.FETCH_DENIED
    assert RULES.parse("s3://photos/a..b/.c/d.") == S3Target("photos", "a..b/.c/d.", None)


def test_each_reference_says_which_storage_it_leads_to() -> None:
    """The host that is asked, and the entry of the settings that allows it."""
    rules = Rules(
        ReferenceSettings(
            schemes=["file", "https", "s3"],
            file_roots=["/srv/images"],
            https_hosts=["img.example.org:8443", "*.example.com"],
            s3_buckets=["photos"],
        )
    )
    found = [
        rules.parse(uri).address
        for uri in (
            "https://IMG.example.org:8443/a",
            "https://a.example.com/a",
            "s3://photos/a",
            "file:///srv/images/a",
            "file:///elsewhere/a",
        )
    ]
    assert [(address.host, address.allowed) for address in found] == [
        ("https://img.example.org:8443", "https://img.example.org:8443"),
        ("https://a.example.com", "https://*.example.com"),
        ("s3://photos", "s3://photos"),
        ("file:///srv/images", "file:///srv/images"),
        ("file://", "file://"),
    ]
    assert rules.allowed == [
        "file:///srv/images",
        "https://img.example.org:8443",
        "https://*.example.com",
        "s3://photos",
    ]


@pytest.mark.parametrize("uri", ["file:///srv/images/a", "https://img.example.org/", "s3://photos/a"])
def test_every_scheme_is_off_until_allowed(uri: str) -> None:
    """Lists alone allow nothing: the scheme must be switched on too."""
    rules = Rules(ReferenceSettings(file_roots=["/srv/images"], https_hosts=["img.example.org"], s3_buckets=["photos"]))
    assert refusal(uri, rules) is RejectReason.FETCH_DENIED


def test_entries_that_can_never_match_stop_the_start() -> None:
    """Each impossible entry of the lists is named with its variable, all at once."""
    bad = ["*", "https://a.example", "a b", "*.10.0.0.1", "a:0", "a:b", "u@a", ""]
    with pytest.raises(SettingsError) as caught:
        Rules(ReferenceSettings(https_hosts=bad, file_roots=["relative"]))
    assert len(caught.value.problems) == len(bad) + 1
    assert all(
        problem.startswith(("ASSAY_REFERENCES__HTTPS_HOSTS=", "ASSAY_REFERENCES__FILE_ROOTS="))
        for problem in caught.value.problems
    )


PIECES = st.sampled_from(
    [
        "https",
        "s3",
        "file",
        "://",
        ":",
        "/",
        "//",
        "img.example.org",
        "photos",
        "wild.example",
        "@",
        "#",
        "?",
        "%",
        "%00",
        "%2e",
        "..",
        "[",
        "]",
        "::1",
        "\\",
        ".",
        "*",
        ":8443",
        "versionId=",
        "\uff20",
        "\u3002",
        "ß",
        "\0",
    ]
)


@given(st.one_of(st.text(max_size=200), st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=12).map("".join)))
@example("https://[v1.x]/")
@example("https://[fe80::1%25eth0]/")
@example("https://xn--\u00df.wild.example/")
def test_any_text_gives_a_target_or_a_clean_rejection(uri: str) -> None:
    """No text makes the parser raise anything but a rejection, and what it lets through is on the lists."""
    try:
        target = RULES.parse(uri)
    except Rejected as rejected:
        reason = rejected.reason
    else:
        reason = None
    if reason is not None:
        assert reason in (RejectReason.BAD_REFERENCE, RejectReason.FETCH_DENIED)
        return
    if isinstance(target, S3Target):
        assert target.bucket == "photos"
    elif isinstance(target, HttpsTarget):
        assert target.host in (
            "img.example.org",
            "cdn.example.org",
            "2001:db8::1",
            "2001:db8::2",
            "xn--mnchen-3ya.de",
            "192.0.2.7",
        ) or (target.host.endswith(".wild.example") and not target.exact)
        assert all(0x20 < byte < 0x7F for byte in target.request_target)
    else:
        assert target.path.startswith(b"/")
