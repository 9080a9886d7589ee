"""The policy where no file is set."""

from __future__ import annotations

import pytest

from tests.twins import scores
from worker.contract import ImageInfo
from worker.evidence import Evidence
from worker.policy import Facts, load_policy

INFO = ImageInfo(format="jpeg", width=640, height=480, bytes=1000)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_what_declares_itself_generated_is_fake(value):
    """Whatever the scores say; the reason is the declaration."""
    outcome = load_policy(None).decide(Facts(scores(value), INFO, Evidence(declared="generated")))
    assert (outcome.decision, outcome.reasons) == ("fake", ('evidence.declared == "generated"',))


@pytest.mark.parametrize("declared", [None, "edited", "captured"])
@pytest.mark.parametrize(("value", "decision"), [(0.1, "real"), (0.5, "review"), (0.9, "fake")])
def test_no_other_declaration_decides(declared, value, decision):
    """Least of all for real: the scores do."""
    outcome = load_policy(None).decide(Facts(scores(value), INFO, Evidence(declared=declared)))
    assert outcome.decision == decision


def test_its_version_is_not_that_of_the_thresholds_alone(tmp_path):
    """It means something else."""
    path = tmp_path / "policy.toml"
    path.write_text('name = "default"\nhead = "linear"\nfake_from = 0.65\nreal_below = 0.35\n')
    assert load_policy(None).ref != load_policy(path).ref
