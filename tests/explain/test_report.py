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
from worker.contract import DetectorScores, ImageInfo, ModelRef, Origin, Timings, Verdict, verdict_id
from worker.crop import View
from worker.evidence import C2pa, Evidence, FileMetadata, Nearest, Neighbour
from worker.explain import decode, origin, page, panel, report, subject
from worker.explain.gone import Gone
from worker.explain.margins import Margin
from worker.policy import load_policy, parse_policy
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
    monkeypatch.setattr(subject, "Triton", lambda *_, **__: twin)
    with Image.open(io.BytesIO(encoded())) as image:
        pixels = np.asarray(image)[38:262, 38:262]
    monkeypatch.setattr(decode.Decoder, "look", lambda _self, _data, view: pixels[: view.size[0], : view.size[1]])
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
    for part in ("because of it", "comfyui", "untrusted", "sdxl, cosine distance 0.0800", "code: linear 0."):
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
        assert np.array_equal(decoder.look(encoded(), View()), np.asarray(image)[38:262, 38:262])
    with pytest.raises(Gone, match="cannot be decoded"), decode.Decoder() as decoder:
        decoder.look(b"no image", View())


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


class TexturedTwin:
    """A detector beside `code` that reacts to fine texture, by its second head; it looks at 96 x 96 px."""

    asked = 0

    def configuration(self):
        view = '{"resize": {"shorter": 96}, "interpolation": "bicubic", "crop": 96}'
        parameters = {"model_version": "abcdef012345", "heads": "knn,linear", "view": view}
        return {
            "parameters": {name: {"string_value": value} for name, value in parameters.items()},
            "max_batch_size": 8,
            "input": [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["96", "96", "3"]}],
            "output": [{"name": "scores", "data_type": "TYPE_FP32", "dims": ["2"]}],
        }

    def score(self, pixels, heads):
        assert heads == 2 and len(pixels) <= 8 and pixels.shape[1:] == (96, 96, 3)
        self.asked += len(pixels)
        found = 1 / (1 + np.exp(4 - np.abs(np.diff(pixels.astype(float), axis=2)).mean(axis=(1, 2, 3))))
        return np.stack([np.full(len(pixels), 0.5), found], axis=1).astype(np.float32)

    def close(self):
        pass


def with_a_trace(left, top):
    """A smooth picture of 192 x 192 px with noise in one quadrant of its side 96."""
    slopes = np.broadcast_to(np.linspace(60, 160, 192)[None, :, None], (192, 192, 3)).copy()
    slopes[top : top + 96, left : left + 96] += np.random.default_rng(0).integers(-60, 60, (96, 96, 3))
    out = io.BytesIO()
    Image.fromarray(slopes.clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


DETECTORS = parse_policy("[[rules]]\nwhen = 'detectors.clip.linear >= 0.7'\ndecision = 'fake'", "test")


def judged_by_two(**scores_of_clip):
    clip = DetectorScores(version="abcdef012345", scores=scores_of_clip)
    return verdict(evidence=Evidence(), policy=DETECTORS.ref).model_copy(update={"detectors": {"clip": clip}})


@pytest.mark.parametrize(("left", "top"), [(0, 0), (96, 0), (0, 96), (96, 96)])
def test_the_map_is_of_the_detector_that_decided(left, top, monkeypatch):
    """Over what that one looks at, by the head that decided: a planted trace is found in its quadrant."""
    twin = TexturedTwin()
    monkeypatch.setattr(subject, "Triton", lambda *_, **__: twin)
    explained = report.explain(Settings(), DETECTORS, judged_by_two(knn=0.5, linear=0.8), with_a_trace(left, top))
    found = explained.explanation.attribution
    assert (found.detector, found.head, found.model_version) == ("clip", "linear", "abcdef012345")
    assert (found.width, found.height, found.window_px, found.stride_px) == (96, 96, 24, 18)
    assert explained.explanation.missing == ["nearest neighbours: the model that judged the image does not say them"]
    assert (
        left / 2 <= found.strongest.left + 12 <= left / 2 + 48 and top / 2 <= found.strongest.top + 12 <= top / 2 + 48
    )
    assert twin.asked == 1 + 5 * 5
    assert "clip: linear " in shown(explained.explanation)


@pytest.mark.parametrize(
    ("decision", "asked", "of"),
    [
        ("fake", None, "detectors.clip.linear"),  # the highest of those that would turn it
        ("real", None, "scores.linear"),  # the lowest
        ("review", None, "scores.svm"),  # the nearest
        ("fake", "code", "scores.svm"),
        ("fake", "other", ""),
    ],
)
def test_whose_map_is_drawn(decision, asked, of):
    """Of what would turn the decision, what speaks most for it."""
    found = [
        Margin(fact="scores.linear", value=0.2, turns_at=0.1, into="review"),
        Margin(fact="scores.knn", value=1.0),
        Margin(fact="scores.svm", value=0.3, turns_at=0.29, into="review"),
        Margin(fact="detectors.clip.linear", value=0.98, turns_at=0.9, into="review"),
    ]
    about = subject.deciding(found, decision, asked)
    assert about == (subject.Subject.of(of) if of else subject.Subject("other", ""))
    assert subject.deciding(found[1:2], decision) == subject.Subject("code", "knn")


def test_a_map_of_another_detector_can_be_asked_for(model, monkeypatch):
    """`code` has one, too; of a detector that was not asked about the image nothing is compared; and a name that the
    server does not know is told.
    """
    both = judged_by_two(knn=0.5, linear=0.8)
    found = report.explain(Settings(), DETECTORS, both, encoded(), "code").explanation.attribution
    assert (found.detector, found.head) == ("code", "linear")
    monkeypatch.undo()
    monkeypatch.setattr(subject, "Triton", lambda *_, **__: TexturedTwin())
    found = report.explain(Settings(), POLICY, verdict(), with_a_trace(0, 0), "other").explanation
    assert (found.attribution.detector, found.attribution.head) == ("other", "knn")
    assert not any("is served now" in line for line in found.missing)
    gone = report.explain(Settings(), DETECTORS, judged_by_two(svm=0.8), with_a_trace(0, 0), "clip").explanation
    assert gone.attribution is None
    assert any("clip has no head 'svm' now: it has knn, linear" in line for line in gone.missing)
