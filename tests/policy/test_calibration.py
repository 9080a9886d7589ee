"""A policy with its calibration as text: what is written reads back, whatever stands in it."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.properties import given
from worker.policy import Otherwise, Rule, Rules, parse_policy
from worker.policy.calibration import Calibration, ScoreDistribution, policy_toml

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=20)
EXTRA = st.dictionaries(
    st.text(st.characters(categories=["L"]), min_size=1, max_size=8).filter(
        lambda name: name not in Calibration.model_fields
    ),
    TEXT
    | st.integers(-(2**60), 2**60)
    | st.lists(TEXT, max_size=3)
    | st.dictionaries(TEXT, st.integers(0, 9), max_size=3),
    max_size=3,
)


@given(TEXT.filter(bool), TEXT, EXTRA)
def test_what_is_written_reads_back(name: str, label: str, extra: dict[str, object]) -> None:
    """Quotes, line breaks, other alphabets, tables in tables: rules, name and calibration are the same again."""
    rules = [
        Rule(when='headers.tenant == "a" && scores.linear >= 0.5', decision="fake", label=label or None),
        Rule(when="scores.linear < 0.1", decision="real"),
    ]
    distribution = ScoreDistribution(edges=(0.25, 0.5), real=(9, 2, 1), fake=(0, 3, 7))
    calibration = Calibration.model_validate(
        {"model_version": "0123456789ab", "target_fpr": 0.01, "reference": {"jpeg": {"linear": distribution}}, **extra}
    )
    policy = parse_policy(policy_toml(name, rules, Otherwise(decision="review"), calibration, "how\nit came"), "test")
    assert isinstance(policy.form, Rules)
    assert (policy.name, list(policy.form.text.rules)) == (name, rules)
    assert policy.calibration == calibration


@pytest.mark.parametrize(
    "values",
    [
        {"edges": [0.5, 0.5], "real": [1, 1, 1], "fake": [1, 1, 1]},
        {"edges": [0.5], "real": [1, 1, 1], "fake": [1, 1]},
        {"edges": [0.5], "real": [0, 0], "fake": [1, 1]},
        {"edges": [0.5], "real": [1, -1], "fake": [1, 1]},
        {"edges": [], "real": [1], "fake": [1]},
    ],
)
def test_a_distribution_that_is_none_is_refused(values: dict[str, list[float]]) -> None:
    """Edges that do not rise, counts that do not fit them, nothing real."""
    with pytest.raises(ValidationError):
        ScoreDistribution.model_validate(values)


def test_a_calibration_is_of_something() -> None:
    """Of `code`, of detectors beside it, or of both; of neither is refused."""
    with pytest.raises(ValueError, match="whose scores are they of"):
        Calibration()
    both = Calibration.model_validate({"model_version": "0" * 12, "detectors": {"clip": "1" * 12}})
    assert both.models == f"model {'0' * 12}, clip {'1' * 12}"
