"""The explanation of a stored verdict: with bytes and without, on a terminal, as JSON, as a page."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.twins import VERSION, TritonTwin, scores
from worker.contract import ImageInfo, ModelRef, Origin, Timings, Verdict, verdict_id
from worker.evidence import C2pa, Evidence, FileMetadata, Nearest, Neighbour
from worker.explain import decode, origin, page, panel, report
from worker.explain.gone import Gone
from worker.policy import load_policy
from worker.settings import Settings

POLICY = load_policy(None)
EVIDENCE = Evidence(
    declared="generated",
    c2pa=C2pa(state="untrusted", issuer="Some <b>Body</b>", source_type="trainedAlgorithmicMedia"),
    metadata=FileMetadata(tool="comfyui"),
    nearest=Nearest(real=Neighbour(distance=0.21, label="photos"), fake=Neighbour(distance=0.08, label="sdxl")),
)


def verdict(value=0.9, evidence=EVIDENCE, policy=POLICY.ref):
    return Verdict(
        verdict_id=verdict_id("a/b.jpg", "a" * 64, VERSION, policy.version),
        image_id="a/b.jpg",
        sha256="a" * 64,
        decision="fake",
        reasons=["because of it"],
        scores=scores(value),
        model=ModelRef(name="code", version=VERSION),
        policy=policy,
        image=ImageInfo(format="png", width=300, height=300, bytes=1000),
        source="model",
        decided_at="2026-11-21T12:00:00.000Z",
        timings_ms=Timings(queued=1.0, decode=2.0, infer=3.0, total=6.0),
        origin=Origin(topic="images.incoming", partition=0, offset=42, uri=None),
        evidence=evidence,
    )


def encoded():
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def model(monkeypatch):
    """The served model's twin, whose score is the first pixel's red."""
    twin = TritonTwin()
    twin.close = lambda: None
    monkeypatch.setattr(report, "Triton", lambda *_: twin)
    with Image.open(io.BytesIO(encoded())) as image:
        pixels = np.asarray(image)[38:262, 38:262]
    monkeypatch.setattr(decode.Decoder, "crop", lambda _self, _data: pixels)
    return twin


@pytest.fixture
def gone(monkeypatch):
    def read_again(*_):
        raise Gone("its record images.incoming/0/42 is not in Kafka any more")

    monkeypatch.setattr(origin, "read_again", read_again)


def shown(explanation):
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(panel.panel(explanation))
    return console.export_text()


def test_with_the_bytes_everything_is_there(model, tmp_path):
    """Rule, margins, evidence, neighbours, map and timings; a page with two pictures; the same in JSON."""
    explained = report.explain(Settings(), POLICY, verdict(), encoded())
    explanation = explained.explanation
    assert explanation.missing == []
    assert explanation.attribution.model_version == VERSION
    text = shown(explanation)
    for part in ("because of it", "comfyui", "untrusted", "sdxl, cosine distance 0.0800", "linear of the crop"):
        assert part in text
    files = {path.name for path in page.write(explained, tmp_path / "why")}
    assert files == {"explanation.json", "index.html", "crop.png", "map.png"}
    assert json.loads((tmp_path / "why" / "explanation.json").read_text()) == json.loads(explanation.model_dump_json())
    with Image.open(tmp_path / "why" / "map.png") as picture:
        assert picture.size == (448, 448)


def test_the_page_needs_no_network_and_escapes_what_a_file_says(model, tmp_path):
    """Nothing is loaded from elsewhere, and an issuer's name is no markup."""
    page.write(report.explain(Settings(), POLICY, verdict(), encoded()), tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert "<b>Body</b>" not in text and "&lt;b&gt;Body" in text


def test_without_the_bytes_it_says_what_is_missing(gone, model, tmp_path):
    """Everything else stands on the stored verdict."""
    explained = report.explain(Settings(), POLICY, verdict())
    assert explained.explanation.attribution is None
    assert any("not in Kafka any more" in line for line in explained.explanation.missing)
    assert explained.explanation.margins
    assert {path.name for path in page.write(explained, tmp_path)} == {"explanation.json", "index.html"}
    assert "not in Kafka any more" in shown(explained.explanation)


def test_what_has_changed_since_is_said(model):
    """Another policy, another model, and a model that tells no neighbours."""
    model.version = "ba9876543210"
    other = POLICY.ref.model_copy(update={"version": "000000000000"})
    explained = report.explain(Settings(), POLICY, verdict(evidence=Evidence(), policy=other), encoded())
    text = " ".join(explained.explanation.missing)
    assert "000000000000" in text and "nearest neighbours" in text and "ba9876543210" in text


def test_a_model_that_is_away_costs_the_map_alone(model):
    """The rest is there."""
    model.away = True
    explained = report.explain(Settings(), POLICY, verdict(), encoded())
    assert explained.explanation.attribution is None
    assert any(line.startswith("the map: ") for line in explained.explanation.missing)


def test_what_would_change_is_told_in_words(model):
    """The nearest change first; a declaration that decides is one of them."""
    changes = report.explain(Settings(), POLICY, verdict(0.5), encoded()).explanation.changes
    assert changes == ["review, if the file said nothing of its origin"]
    changes = report.explain(Settings(), POLICY, verdict(0.9, evidence=Evidence()), encoded()).explanation.changes
    assert changes[0].startswith("review, if scores.linear were 0.65 instead of 0.9 ")


def test_an_image_is_decoded_in_a_process_that_can_do_nothing_else():
    """The same central crop as the worker's; what is no image is told in a line."""
    with Image.open(io.BytesIO(encoded())) as image, decode.Decoder() as decoder:
        assert np.array_equal(decoder.crop(encoded()), np.asarray(image)[38:262, 38:262])
    with pytest.raises(Gone, match="cannot be decoded"), decode.Decoder() as decoder:
        decoder.crop(b"no image")


def test_the_decoding_process_imports_little():
    """Its start is most of the time of an explanation: no clients, no command line."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import worker.explain.decode"],
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "worker.crop" in modules
    assert modules & {"kafka", "redis", "httpx", "tritonclient", "structlog", "typer"} == set()
