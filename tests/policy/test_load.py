"""Policies: the built-in one, files, and versions that depend on content alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.properties import given
from worker.contract import PolicyRef
from worker.errors import SettingsError
from worker.policy import Policy, Thresholds, load_policy


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_policy() -> None:
    """Without a file the linear head decides, with the thresholds of the documentation."""
    form = load_policy(None).form
    assert isinstance(form, Thresholds)
    assert form.model_dump() == {"name": "default", "head": "linear", "fake_from": 0.65, "real_below": 0.35}


def test_a_version_that_must_not_move() -> None:
    """The default's version is in every verdict id: a change of how it is made would judge every image anew."""
    assert Policy().ref == PolicyRef(name="default", version="ea8eb75614a8")


def test_layout_does_not_change_the_version(tmp_path: Path) -> None:
    """Comments, order, blank lines and values that are the default anyway: same policy, same version."""
    terse = load_policy(write(tmp_path, 'name = "strict"\nfake_from = 0.5\nreal_below = 0.2\n'))
    wordy = load_policy(
        write(
            tmp_path, '# who: trust & safety\nreal_below = 0.20\n\nfake_from=5e-1\nhead = "linear"\nname = "strict"\n'
        )
    )
    assert terse.ref == wordy.ref


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["default", "b"]), st.sampled_from(["linear", "knn"]), st.sampled_from([0.5, 0.65, 0.9])
        ),
        min_size=2,
    )
)
def test_versions_differ_exactly_where_policies_do(values: list[tuple[str, str, float]]) -> None:
    """Equal content gives equal versions, other content other ones."""
    policies = [Policy(Thresholds(name=name, head=head, fake_from=fake_from)) for name, head, fake_from in values]  # type: ignore[arg-type]
    for policy in policies:
        for other in policies:
            assert (policy.ref.version == other.ref.version) == (policy.form == other.form)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fake_from = 1.5", "fake_from"),
        ("fake_from = nan", "fake_from"),
        ("fake_form = 0.5", "fake_form"),
        ('head = "forest"', "head"),
        ("fake_from = 0.2\nreal_below = 0.4", "must not be above"),
        ('name = ""', "name"),
        ("fake_from = ", "at end of document"),
    ],
)
def test_a_wrong_policy_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    """The problem names the variable, the file and the field, each on one line."""
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_policy(path, "ASSAY_POLICY__PATH")
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"ASSAY_POLICY__PATH={path}: ")
    assert expected in caught.value.problems[0]
    assert "\n" not in caught.value.problems[0]


def test_a_missing_policy_is_refused(tmp_path: Path) -> None:
    """A path that leads nowhere is a settings error, not a silent default."""
    with pytest.raises(SettingsError, match=r"ASSAY_POLICY__PATH=.*nowhere\.toml"):
        load_policy(tmp_path / "nowhere.toml", "ASSAY_POLICY__PATH")
