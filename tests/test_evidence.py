"""What a file's marks declare, by the contract's table."""

from __future__ import annotations

import json

import pytest

from worker.evidence import C2pa, Evidence, FileMetadata, declare, found

GENERATED, EDITED, CAPTURED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "digitalCapture"


def test_every_field_is_there_and_null_where_nothing_was_found():
    """A rule may read any field of any image."""
    nobody = {"distance": None, "label": None}
    assert json.loads(Evidence().model_dump_json()) == {
        "declared": None,
        "c2pa": {"state": None, "issuer": None, "claim_generator": None, "source_type": None},
        "metadata": {"tool": None, "source_type": None, "aigc": None},
        "watermark": None,
        "nearest": {"real": nobody, "fake": nobody},
    }


@pytest.mark.parametrize(
    ("state", "source_type", "declared"),
    [
        ("valid", GENERATED, "generated"),
        ("valid", EDITED, "edited"),
        ("valid", CAPTURED, "captured"),
        ("valid", "screenCapture", None),
        ("valid", None, None),
        *[(state, kind, None) for state in ("untrusted", "invalid", None) for kind in (GENERATED, EDITED, CAPTURED)],
    ],
)
def test_a_manifest_counts_only_when_valid(state, source_type, declared):
    """Whoever signs for himself declares nothing."""
    assert declare(C2pa(state=state, source_type=source_type), FileMetadata(), None) == declared


@pytest.mark.parametrize(
    ("metadata", "declared"),
    [
        (FileMetadata(source_type=GENERATED), "generated"),
        (FileMetadata(source_type=EDITED), "edited"),
        (FileMetadata(source_type=CAPTURED), None),
        (FileMetadata(tool="comfyui"), "generated"),
        (FileMetadata(aigc="1"), "generated"),
        (FileMetadata(aigc="2"), None),
        (FileMetadata(), None),
    ],
)
def test_metadata_counts_against_its_writer_only(metadata, declared):
    """Metadata may say generated or edited, never that a photograph is one."""
    assert declare(C2pa(), metadata, None) == declared


def test_the_strongest_claim_wins():
    """A generator's mark stands, whatever a signed manifest of a capture says beside it."""
    captured = C2pa(state="valid", source_type=CAPTURED)
    assert declare(captured, FileMetadata(source_type=EDITED), None) == "edited"
    assert declare(captured, FileMetadata(source_type=EDITED), "sdxl") == "generated"


def test_what_is_counted_has_few_values():
    """Labels of a metric must not be a sender's free choice."""
    metadata = FileMetadata(tool="comfyui", source_type="somebodysOwnWord", aigc="2")
    evidence = Evidence(
        declared="generated", c2pa=C2pa(state="invalid", issuer="x"), metadata=metadata, watermark="flux"
    )
    assert dict(found(evidence)) == {
        "declared": "generated",
        "c2pa": "invalid",
        "tool": "comfyui",
        "aigc": "2",
        "watermark": "flux",
        "source_type": "other",
    }
    assert not list(found(Evidence()))
