"""The contract as code: ids, references, verdicts and rejections there and back."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import replace

import pytest
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.properties import given
from worker.contract import (
    HEADS,
    REFERENCE_CONTENT_TYPE,
    DetectorScores,
    Headers,
    ImageInfo,
    ImageReference,
    InvalidImageId,
    ModelRef,
    Origin,
    PolicyRef,
    Record,
    Scores,
    Timings,
    Verdict,
    cached_scores_json,
    check_image_id,
    parse_cached_scores,
    resolve_image_id,
    verdict_hash,
    verdict_headers,
    verdict_id,
)
from worker.errors import Rejected, RejectReason
from worker.evidence import C2pa, Evidence
from worker.rejections import REJECTION_HEADERS, rejection_headers, without_rejection_headers

SOURCES = ["ce_id", "key", "sha256"]
SHA = hashlib.sha256(b"image").hexdigest()
SHARE = st.floats(0, 1)
SCORES = st.builds(Scores, linear=SHARE, knn=SHARE, svm=SHARE)
HEAD_SCORES = st.dictionaries(st.sampled_from(["linear", "mlp"]), SHARE)
EVIDENCE = st.builds(
    Evidence,
    declared=st.none() | st.sampled_from(["generated", "edited", "captured"]),
    c2pa=st.builds(C2pa, state=st.none() | st.sampled_from(["valid", "untrusted", "invalid"]), issuer=st.none()),
    watermark=st.none() | st.just("sdxl"),
)


def record(*, key: bytes | None = None, value: bytes | None = b"image", headers: Headers | None = None) -> Record:
    return Record("images.incoming", 3, 42, 1_795_262_400_000, key, value, headers or [])


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    hexes = st.text("0123456789abcdef", min_size=12, max_size=12)
    image_id = draw(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40))
    stage_ms = st.none() | st.floats(0, 1e6)
    return Verdict(
        verdict_id=draw(st.uuids()),
        image_id=image_id,
        sha256=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        decision=draw(st.sampled_from(["real", "fake", "review"])),
        reasons=draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=2)),
        scores=draw(SCORES),
        model=ModelRef(name="code", version=draw(hexes)),
        policy=PolicyRef(name="default", version=draw(hexes)),
        image=ImageInfo(
            format="jpeg",
            width=draw(st.integers(1, 99999)),
            height=draw(st.integers(1, 99999)),
            bytes=draw(st.integers(1, 99999)),
            jpeg_quality=draw(st.none() | st.integers(1, 100)),
            frames=draw(st.none() | st.integers(1, 99)),
        ),
        source=draw(st.sampled_from(["model", "cache"])),
        decided_at="2026-11-21T12:00:00.000Z",
        timings_ms=Timings(
            queued=draw(stage_ms), decode=draw(stage_ms), infer=draw(stage_ms), total=draw(st.floats(0, 1e6))
        ),
        origin=draw(st.none() | st.just(Origin(topic="images.incoming", partition=1, offset=2, uri=None))),
        detectors=draw(
            st.dictionaries(
                st.sampled_from(["clip", "dino"]), st.builds(DetectorScores, version=hexes, scores=HEAD_SCORES)
            )
        ),
        evidence=draw(EVIDENCE),
        labels=draw(st.lists(st.just("not_applicable"), max_size=1)),
        headers=draw(st.dictionaries(st.just("tenant"), st.text(st.characters(exclude_categories=["Cs"])))),
    )


@given(verdicts())
def test_a_verdict_survives_json(verdict: Verdict) -> None:
    """Reading back what was written gives the same verdict, digit for digit."""
    assert Verdict.model_validate_json(verdict.to_json()) == verdict


@given(verdicts())
def test_a_verdict_has_the_fields_of_the_contract(verdict: Verdict) -> None:
    """The published document has these keys, in this order, and no others."""
    document = json.loads(verdict.to_json())
    names = [
        "schema",
        "verdict_id",
        "image_id",
        "sha256",
        "decision",
        "reasons",
        "scores",
        "model",
        "policy",
        "image",
        "source",
        "decided_at",
        "timings_ms",
        "origin",
        "detectors",
        "evidence",
        "labels",
        "headers",
    ]
    assert list(document) == names
    assert document["schema"] == "assay.verdict/1"
    assert list(document["scores"]) == list(HEADS)
    assert list(document["image"]) == ["format", "width", "height", "bytes", "jpeg_quality", "frames"]
    assert list(document["timings_ms"]) == ["queued", "decode", "infer", "total"]
    evidence = document["evidence"]
    assert list(evidence) == ["declared", "c2pa", "metadata", "watermark", "nearest"]
    assert list(evidence["c2pa"]) == ["state", "issuer", "claim_generator", "source_type"]
    assert list(evidence["metadata"]) == ["tool", "source_type", "aigc"]
    assert [list(part) for part in evidence["nearest"].values()] == [["distance", "label"]] * 2


def test_a_verdict_of_the_first_version_still_reads() -> None:
    """What was stored before `origin`, `detectors`, `evidence`, `labels` and `headers` were there is a verdict."""
    document = {
        "schema": "assay.verdict/1",
        "verdict_id": "00000000-0000-5000-8000-000000000000",
        "image_id": "a",
        "sha256": SHA,
        "decision": "fake",
        "reasons": ["linear 0.97 >= 0.9"],
        "scores": {"linear": 0.97, "knn": 0.81, "svm": 0.66},
        "model": {"name": "code", "version": "0123456789ab"},
        "policy": {"name": "default", "version": "ea8eb75614a8"},
        "image": {"format": "jpeg", "width": 640, "height": 480, "bytes": 48211},
        "source": "model",
        "decided_at": "2026-11-21T12:00:00.000Z",
        "timings_ms": {"queued": 3.1, "decode": 1.9, "infer": 22.4, "total": 30.2},
    }
    verdict = Verdict.model_validate(document)
    assert (verdict.origin, verdict.detectors, verdict.labels, verdict.headers) == (None, {}, [], {})
    assert verdict.evidence == Evidence()
    assert (verdict.image.jpeg_quality, verdict.image.frames) == (None, None)


@given(verdicts())
def test_the_redis_hash(verdict: Verdict) -> None:
    """The hash has the fields of the contract as text; its numbers read back exactly and its json is the whole verdict."""
    fields = verdict_hash(verdict, verdict.to_json())
    names = "decision score_linear score_knn score_svm sha256 model policy source decided_at verdict_id declared json"
    assert set(fields) == set(names.split())
    assert all(isinstance(value, str) for value in fields.values())
    assert [float(fields[f"score_{head}"]) for head in HEADS] == [getattr(verdict.scores, head) for head in HEADS]
    assert (fields["model"], fields["policy"]) == (verdict.model.version, verdict.policy.version)
    assert Verdict.model_validate_json(fields["json"]) == verdict


@given(verdicts())
def test_the_verdict_headers_are_a_cloud_event(verdict: Verdict) -> None:
    """CloudEvents in Kafka's binary mode, with the group as the source; the trace goes on where there is one."""
    trace = b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"
    headers = dict(verdict_headers(verdict, "my-group", trace))
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": str(verdict.verdict_id).encode(),
        "ce_source": b"assay/my-group",
        "ce_type": b"assay.verdict.v1",
        "ce_time": verdict.decided_at.encode(),
        "content-type": b"application/json",
        "traceparent": trace,
    }
    assert "traceparent" not in dict(verdict_headers(verdict, "my-group", None))


@given(SCORES)
def test_cached_scores_read_back_digit_for_digit(scores: Scores) -> None:
    """A cache hit carries the first run's scores exactly."""
    assert parse_cached_scores(cached_scores_json(scores)) == scores
    assert parse_cached_scores(cached_scores_json(scores).encode()) == scores


@pytest.mark.parametrize(
    "text", ["", "{}", "null", '{"linear": 2, "knn": 0, "svm": 0}', '{"linear": NaN, "knn": 0, "svm": 0}', b"\xff"]
)
def test_an_unreadable_cache_entry_is_a_miss(text: str | bytes) -> None:
    """What others wrote into the cache cannot break the worker."""
    assert parse_cached_scores(text) is None


def test_verdict_id_is_the_formula_of_the_contract() -> None:
    """uuid5 in the URL namespace over id, hash, model and policy, one a line."""
    name = f"assay:cats/1.jpg\n{SHA}\n0123456789ab\nba9876543210"
    assert verdict_id("cats/1.jpg", SHA, "0123456789ab", "ba9876543210") == uuid.uuid5(uuid.NAMESPACE_URL, name)
    assert str(verdict_id("a", "0" * 64, "0" * 12, "0" * 12)) == str(
        uuid.uuid5(uuid.NAMESPACE_URL, "assay:a\n" + "0" * 64 + "\n" + "0" * 12 + "\n" + "0" * 12)
    )


@given(st.integers(0, 3))
def test_verdict_id_changes_with_each_of_its_parts(index: int) -> None:
    """Another id, content, model or policy is another verdict."""
    parts = ["a", SHA, "0" * 12, "1" * 12]
    changed = [part + "x" if position == index else part for position, part in enumerate(parts)]
    assert verdict_id(*parts) != verdict_id(*changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": {"linear": float("nan"), "knn": 0, "svm": 0}},
        {"sha256": "A" * 64},
        {"decision": "maybe"},
        {"decided_at": "now"},
    ],
)
def test_a_wrong_verdict_cannot_be_made(changes: dict[str, object]) -> None:
    """NaN, odd hashes, unknown decisions and other times are refused by the model itself."""
    good: dict[str, object] = {
        "verdict_id": uuid.UUID(int=0),
        "image_id": "a",
        "sha256": SHA,
        "decision": "real",
        "reasons": [],
        "scores": {"linear": 0.1, "knn": 0.1, "svm": 0.1},
        "model": {"name": "code", "version": "0" * 12},
        "policy": {"name": "default", "version": "0" * 12},
        "image": {"format": "png", "width": 1, "height": 1, "bytes": 1},
        "source": "model",
        "decided_at": "2026-11-21T12:00:00.000Z",
        "timings_ms": {"queued": 0, "decode": None, "infer": None, "total": 0},
    }
    Verdict.model_validate(good)
    with pytest.raises(ValidationError):
        Verdict.model_validate(good | changes)


# Image ids.


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


CE, KEY = b"from-header", b"from-key"


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


# References.


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


# Rejections.

OWN_HEADERS = st.lists(
    st.tuples(st.text(min_size=1).filter(lambda name: name not in REJECTION_HEADERS), st.none() | st.binary()),
    max_size=5,
)
REJECTED = Rejected(RejectReason.CORRUPT, "cannot be decoded: ü", stage="decode", attempts=2)


def rejection(
    received: Record, rejected: Rejected = REJECTED, *, image_id: str | None = "a", sha256: str | None = SHA
) -> Headers:
    return rejection_headers(
        received, rejected, image_id=image_id, sha256=sha256, worker_version="1.2.3", model_version="0123456789ab"
    )


def test_the_rejection_headers() -> None:
    """Why, where, how often, and where the record came from."""
    assert dict(rejection(record())) == {
        "reject_reason": b"corrupt",
        "reject_stage": b"decode",
        "reject_detail": "cannot be decoded: ü".encode(),
        "reject_attempts": b"2",
        "original_topic": b"images.incoming",
        "original_partition": b"3",
        "original_offset": b"42",
        "original_timestamp": b"1795262400000",
        "image_id": b"a",
        "sha256": SHA.encode(),
        "worker_version": b"1.2.3",
        "model_version": b"0123456789ab",
    }


@given(OWN_HEADERS)
def test_received_headers_come_first_and_as_they_were(headers: Headers) -> None:
    """Repeated names, empty and null values and their order are the producer's business."""
    assert rejection(record(headers=headers))[: len(headers)] == headers


@given(OWN_HEADERS)
def test_a_second_rejection_replaces_the_first(headers: Headers) -> None:
    """Rejected again after a replay, a record carries one set of our headers: the latest."""
    once = rejection(record(headers=headers), Rejected(RejectReason.TOO_LARGE, "too large", stage="intake"))
    twice = rejection(record(headers=once))
    assert twice == rejection(record(headers=headers))
    names = [name for name, _ in twice if name in REJECTION_HEADERS]
    assert sorted(names) == sorted(set(names))


@given(OWN_HEADERS)
def test_what_replay_puts_back_is_what_was_sent(headers: Headers) -> None:
    """Stripping a rejection's headers gives the producer's own."""
    assert without_rejection_headers(rejection(record(headers=headers))) == headers


def test_what_is_not_known_is_left_out() -> None:
    """A reference that could not be fetched has no hash, a bad id no id: no header says `None`."""
    headers = dict(
        rejection_headers(record(), REJECTED, image_id=None, sha256=None, worker_version="1", model_version=None)
    )
    assert not {"image_id", "sha256", "model_version"} & set(headers)


def test_a_long_detail_is_cut_and_odd_text_survives() -> None:
    """A decoder's message of any length or kind cannot make the rejection fail."""
    headers = dict(rejection(record(), Rejected(RejectReason.CORRUPT, "\ud800" * 5000, stage="decode")))
    assert headers["reject_detail"] == b"?" * 1024


def test_every_header_we_add_is_stripped() -> None:
    """The list that replay strips by is the list that a rejection adds."""
    assert {name for name, _ in rejection(record())} == REJECTION_HEADERS


def test_an_age_is_known_only_of_a_sensible_timestamp() -> None:
    """None, seconds and microseconds are no time of a record; a clock that is ahead counts as now."""
    now_ms = 1_796_000_000_000.0
    for timestamp_ms, age_ms in (
        (1_795_999_999_000, 1_000.0),
        (1_796_000_005_000, 0.0),
        (-1, None),
        (-7, None),
        (0, None),
        (1_796_000_000, None),
        (1_796_000_000_000_000, None),
    ):
        assert replace(record(), timestamp_ms=timestamp_ms).age_ms(now_ms) == age_ms
