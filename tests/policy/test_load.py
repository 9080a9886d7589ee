"""Policies: the built-in one, files, and versions that depend on content alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.properties import given
from worker.contract import PolicyRef
from worker.errors import SettingsError
from worker.policy import Policy, Thresholds, load_policy, parse_policy

RULE = '[[rules]]\nwhen = "true"\ndecision = "fake"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_short_policy_has_the_values_of_the_documentation(tmp_path: Path) -> None:
    """A field that is left out has its default."""
    form = load_policy(write(tmp_path, 'name = "a"')).form
    assert isinstance(form, Thresholds)
    assert form.model_dump() == {"name": "a", "head": "linear", "fake_from": 0.65, "real_below": 0.35}


def test_a_version_that_must_not_move() -> None:
    """A short policy's version is that of the first release: another way of making it would judge every image anew."""
    assert Policy(Thresholds()).ref == PolicyRef(name="default", version="ea8eb75614a8")


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
        ("", "no policy in it: either [[rules]], or head, fake_from and real_below"),
        ("# nothing but a comment", "no policy in it"),
        ('[calibration]\nmodel_version = "0123456789ab"', "no policy in it"),
        (f"head = 'knn'\n{RULE}", "both forms in one file: either rules, or head, fake_from and real_below"),
        ("rules = []", "rules: "),
        ("[otherwise]\ndecision = 'fake'", "rules: Field required"),
        ("rules = 3", "rules: "),
        (RULE.replace("true", "scoores.linear > 1"), "rule 1, column 1: unknown name scoores; did you mean scores?"),
        (
            f"{RULE}{RULE}".replace('"fake"', '"fak"', 1),
            "rule 1, column 12: unknown decision 'fak'; did you mean fake?",
        ),
        (f"{RULE}{RULE.replace('fake', 'maybe')}", "rule 2, column 12: unknown decision 'maybe'; there are real, fake"),
        (f"{RULE}[otherwise]\n  decision='no'", "otherwise, column 12: unknown decision 'no'"),
        (RULE.replace("decision", "decison"), "rule 1: decision is missing"),
        ("[[rules]]\ndecision = 'fake'", "rule 1: when is missing"),
        (f"{RULE}[calibration]\nmodel_version = 'x'", "calibration.model_version: "),
    ],
)
def test_a_wrong_policy_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    """The problem names the variable, the file and the field, each on one line."""
    path = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_policy(path, "ASSAY_POLICY__PATH")
    assert len(caught.value.problems) == (2 if "decison" in text else 1)
    assert caught.value.problems[0].startswith(f"ASSAY_POLICY__PATH={path}: ")
    assert expected in caught.value.problems[0]
    assert "\n" not in caught.value.problems[0]


def test_a_missing_policy_is_refused(tmp_path: Path) -> None:
    """A path that leads nowhere is a settings error, not a silent default."""
    with pytest.raises(SettingsError, match=r"ASSAY_POLICY__PATH=.*nowhere\.toml"):
        load_policy(tmp_path / "nowhere.toml", "ASSAY_POLICY__PATH")


def test_every_wrong_rule_is_told_at_once(tmp_path: Path) -> None:
    """One line for each, so that a policy is mended in one go."""
    text = RULE.replace("true", "foo") + RULE.replace("fake", "maybe") + RULE.replace("true", "image.width")
    with pytest.raises(SettingsError) as caught:
        load_policy(write(tmp_path, text))
    assert sorted(problem.split(": ")[1].split(",")[0] for problem in caught.value.problems) == [
        "rule 1",
        "rule 2",
        "rule 3",
    ]


def version(text: str, also_decides: dict[str, str] | None = None) -> str:
    return parse_policy(text, "test", also_decides).ref.version


def test_the_version_covers_what_decides() -> None:
    """Rules, their order, labels, `[otherwise]`, the name and settings that decide; no comment, no calibration."""
    base = version(RULE)
    calibration = '[calibration]\nmodel_version = "0123456789ab"\n'
    assert version("# why\n" + RULE + "[otherwise]\ndecision = 'review'\n" + calibration) == base
    others = [
        'name = "b"\n' + RULE,
        RULE.replace("true", "false"),
        RULE.replace("fake", "real"),
        RULE + 'label = "a"\n',
        RULE + "[otherwise]\ndecision = 'fake'\n",
        RULE + RULE.replace("true", "false"),
        RULE.replace("true", "false") + RULE,
    ]
    versions = [base, *map(version, others), version(RULE, {"ASSAY_EVIDENCE__C2PA_TRUST_PATH": "a hash"})]
    assert len(set(versions)) == len(versions)


def test_a_calibration_keeps_what_it_was_written_with() -> None:
    """What the worker reads is checked; what else the writer told stays."""
    text = RULE + '[calibration]\nmodel_version = "0123456789ab"\nimages_real = 299\nslices = ["png"]\n'
    calibration = parse_policy(text, "test").calibration
    assert calibration is not None
    assert calibration.images_real == 299
    assert calibration.model_extra == {"slices": ["png"]}
