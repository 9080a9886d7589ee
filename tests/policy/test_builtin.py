"""The policy where no file is set."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.twins import scores
from worker.contract import ImageInfo
from worker.evidence import C2pa, Evidence, FileMetadata, Nearest, Neighbour
from worker.policy import Facts, load_policy

INFO = ImageInfo(format="jpeg", width=640, height=480, bytes=1000)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_what_declares_itself_generated_is_fake(value):
    """Whatever the scores say; the reason is the declaration."""
    outcome = load_policy(None).decide(Facts(scores(value), INFO, Evidence(declared="generated")))
    reason = 'rule 1: evidence.declared == "generated" (evidence.declared = "generated")'
    assert (outcome.decision, outcome.reasons) == ("fake", (reason,))


@pytest.mark.parametrize("declared", [None, "edited", "captured"])
@pytest.mark.parametrize(("value", "decision"), [(0.1, "real"), (0.5, "review"), (0.9, "fake")])
def test_no_other_declaration_decides(declared, value, decision):
    """Least of all for real: the scores do."""
    outcome = load_policy(None).decide(Facts(scores(value), INFO, Evidence(declared=declared)))
    assert outcome.decision == decision


EVIDENCE = st.builds(
    Evidence,
    declared=st.sampled_from([None, "generated", "edited", "captured"]),
    c2pa=st.builds(
        C2pa,
        state=st.sampled_from([None, "valid", "untrusted", "invalid"]),
        source_type=st.sampled_from([None, "digitalCapture", "trainedAlgorithmicMedia", "composite"]),
    ),
    metadata=st.builds(
        FileMetadata, tool=st.sampled_from([None, "comfyui"]), aigc=st.sampled_from([None, "1", "2", "3"])
    ),
    watermark=st.sampled_from([None, "sdxl"]),
    nearest=st.builds(
        Nearest,
        real=st.builds(Neighbour, distance=st.sampled_from([None, 0.0, 2.0])),
        fake=st.builds(Neighbour, distance=st.sampled_from([None, 0.0, 2.0])),
    ),
)


@given(value=st.floats(0, 1), side=st.integers(1, 4000), evidence=EVIDENCE)
def test_nothing_that_a_file_says_makes_it_real(value: float, side: int, evidence: Evidence) -> None:
    """Whoever wants to be believed can write it: what is real with evidence is real without any."""
    info = INFO.model_copy(update={"width": side, "height": side})
    told = load_policy(None).decide(Facts(scores(value), info, evidence)).decision
    assert told != "real" or load_policy(None).decide(Facts(scores(value), info)).decision == "real"


@pytest.mark.parametrize(
    ("width", "height", "decision"), [(128, 900, "review"), (900, 128, "review"), (129, 129, "fake")]
)
def test_what_is_too_small_is_not_judged(width, height, decision):
    """A thumbnail is mostly padding to the model: it is not applicable, whatever the scores say."""
    info = INFO.model_copy(update={"width": width, "height": height})
    outcome = load_policy(None).decide(Facts(scores(0.9), info))
    assert (outcome.decision, outcome.labels) == (decision, ("not_applicable",) if decision == "review" else ())


def test_its_version_is_not_that_of_the_thresholds_alone(tmp_path):
    """It means something else."""
    path = tmp_path / "policy.toml"
    path.write_text('name = "default"\nhead = "linear"\nfake_from = 0.65\nreal_below = 0.35\n')
    assert load_policy(None).ref != load_policy(path).ref
