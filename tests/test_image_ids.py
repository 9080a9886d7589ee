"""Image ids and references: where they come from, what is valid, and what is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import strategies as st

from tests.contents import SHA, record
from tests.properties import given
from worker.contract import (
    REFERENCE_CONTENT_TYPE,
    Headers,
    ImageReference,
    InvalidImageId,
    check_image_id,
    resolve_image_id,
)
from worker.errors import Rejected, RejectReason

CE, KEY = b"from-header", b"from-key"
SOURCES = ["ce_id", "key", "sha256"]


@given(st.text())
def test_an_image_id_is_short_printable_utf8(text: str) -> None:
    """1 to 256 bytes, no control characters, no lone surrogates; everything else is refused."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = -1
    good = 1 <= size <= 256 and not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in text)
    if good:
        assert check_image_id(text) == text
    else:
        with pytest.raises(InvalidImageId):
            check_image_id(text)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("a" * 256, True),
        ("a" * 257, False),
        ("é" * 128, True),
        ("é" * 129, False),
        ("a b/ü", True),
        ("a\nb", False),
        ("\x7f", False),
    ],
)
def test_the_limit_counts_bytes(text: str, good: bool) -> None:
    """256 bytes of UTF-8, not characters."""
    if good:
        check_image_id(text)
    else:
        with pytest.raises(InvalidImageId):
            check_image_id(text)


@pytest.mark.parametrize(
    ("headers", "key", "sources", "expected"),
    [
        ([("ce_id", CE)], KEY, SOURCES, "from-header"),
        ([("CE_ID", CE)], KEY, SOURCES, "from-header"),
        ([("ce_id", CE)], KEY, ["key", "ce_id"], "from-key"),
        ([("ce_id", CE)], KEY, ["sha256", "ce_id"], SHA),
        ([], KEY, SOURCES, "from-key"),
        ([("ce_id", b"")], KEY, SOURCES, "from-key"),
        ([("ce_id", None)], KEY, SOURCES, "from-key"),
        ([], b"", SOURCES, SHA),
        ([], None, SOURCES, SHA),
        ([], b"\xff\xfe", SOURCES, SHA),
        ([], b"\xff\xfe", ["key"], SHA),
        ([], KEY, ["ce_id", "sha256"], SHA),
        ([("ce_id", "bücher/ß.jpg".encode())], None, SOURCES, "bücher/ß.jpg"),
    ],
)
def test_where_the_image_id_comes_from(headers: Headers, key: bytes | None, sources: list[str], expected: str) -> None:
    """First of the sources that is there; an empty one, or a key that is not UTF-8, leaves the choice to the next."""
    assert resolve_image_id(record(key=key, headers=headers), sources, SHA) == expected


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([("ce_id", b"\xff")], KEY),
        ([("ce_id", b"a\nb")], KEY),
        ([("ce_id", b"x" * 257)], KEY),
        ([], b"a\x00b"),
        ([], b"x" * 257),
    ],
)
def test_an_invalid_id_is_not_replaced_by_another(headers: Headers, key: bytes) -> None:
    """A producer that names its image wrongly is told so."""
    with pytest.raises(Rejected) as caught:
        resolve_image_id(record(key=key, headers=headers), SOURCES, SHA)
    assert caught.value.reason is RejectReason.BAD_IMAGE_ID
    assert caught.value.stage == "intake"


def test_the_id_of_a_reference_stands_behind_ce_id() -> None:
    """ce_id, then the reference's own id, then the key; an invalid one in the reference is a bad id too."""
    both = record(key=KEY, headers=[("ce_id", CE)])
    assert resolve_image_id(both, SOURCES, SHA, "from-reference") == "from-header"
    assert resolve_image_id(record(key=KEY), SOURCES, SHA, "from-reference") == "from-reference"
    assert resolve_image_id(record(key=KEY), SOURCES, SHA, "") == "from-key"
    with pytest.raises(Rejected, match="bad_image_id"):
        resolve_image_id(record(key=KEY), SOURCES, SHA, "a\tb")


def test_a_reference_is_read_with_its_optional_parts() -> None:
    """Only the uri is needed; a hash may be in upper case; unknown fields are for others."""
    assert ImageReference.parse(b'{"uri": "s3://bucket/key"}') == ImageReference(uri="s3://bucket/key")
    full = json.dumps({"uri": "https://host/a.jpg", "sha256": SHA.upper(), "id": "a", "tenant": 7}).encode()
    assert ImageReference.parse(full) == ImageReference(uri="https://host/a.jpg", sha256=SHA, id="a")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not json",
        b"[]",
        b"null",
        b"{}",
        b'{"uri": ""}',
        b'{"uri": 7}',
        b'{"uri": "s3://b/k", "sha256": "abc"}',
        b'{"uri": "s3://b/k", "id": 7}',
        b"\xff\xfe",
        b'{"uri": "' + b"a" * 5000 + b'"}',
    ],
)
def test_a_malformed_reference_is_rejected(value: bytes) -> None:
    """Whatever is wrong with it, it is bad_reference with a sentence, never a crash."""
    with pytest.raises(Rejected) as caught:
        ImageReference.parse(value)
    assert caught.value.reason is RejectReason.BAD_REFERENCE
    assert caught.value.detail


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (REFERENCE_CONTENT_TYPE.encode(), REFERENCE_CONTENT_TYPE),
        (b"Application/VND.assay.image-ref+JSON; charset=utf-8", REFERENCE_CONTENT_TYPE),
        (b"image/jpeg", "image/jpeg"),
        (None, ""),
    ],
)
def test_content_types_are_compared_without_case_and_parameters(raw: bytes | None, expected: str) -> None:
    """The switch for references is forgiving about how it is written."""
    assert record(headers=[("Content-Type", raw)]).content_type == expected
    assert record().content_type == ""
