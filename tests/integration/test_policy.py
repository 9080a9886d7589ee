"""Policies on a real stack: rules over headers, a change while the worker runs, and stored verdicts decided anew."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examine.provenance import made
from tests.integration.harness import REPO, SAMPLES, samples, wait_until

pytestmark = pytest.mark.integration
WEIGHTS = REPO / "triton_models" / "weights" / "demo"

RULES = """
name = "uploads"
[[rules]]
when = 'headers.tenant == "kids"'
decision = "review"
label = "not_applicable"
[[rules]]
when = 'scores.linear >= 0.0 && image.frames == 1'
decision = "fake"
"""


def test_a_policy_from_the_first_image_to_its_backtest(outside, start_worker, run_cli, tmp_path: Path):
    """Rules decide with their reasons and labels; another policy is taken up at SIGHUP, a broken one is not, and what
    was stored is decided anew as the worker now decides.
    """
    policy = tmp_path / "policy.toml"
    policy.write_text(RULES)
    env = {"ASSAY_POLICY__PATH": str(policy), "ASSAY_POLICY__SHADOW_PATH": str(tmp_path / "shadow.toml")}
    (tmp_path / "shadow.toml").write_text("[[rules]]\nwhen = 'false'\ndecision = 'fake'\n")
    (tmp_path / "trusted.pem").write_text(made.Authority().pem)
    env |= {"ASSAY_EVIDENCE__C2PA_TRUST_PATH": str(tmp_path / "trusted.pem")}
    worker = start_worker(**env)
    first, second = list(samples(2).items())
    outside.send("kids", first[1], headers=[("tenant", b"kids"), ("user", b"u-1")])
    outside.send("others", second[1])
    outside.flush()
    found = outside.wait_verdicts(["kids", "others"])
    kids, others = found["kids"], found["others"]
    assert (kids["decision"], kids["labels"], kids["headers"]) == ("review", ["not_applicable"], {"tenant": "kids"})
    assert kids["reasons"] == ['rule 1: headers.tenant == "kids" (headers.tenant = "kids")']
    assert (others["decision"], others["labels"], others["headers"]) == ("fake", [], {})
    assert others["reasons"][0].startswith("rule 2: scores.linear >= 0.0 && image.frames == 1 (scores.linear = ")
    assert others["origin"]["topic"] == outside.incoming
    wait_until(
        lambda: worker.metric("assay_policy_shadow_decisions_total", decision="fake", shadow="review") == 1, "shadow"
    )

    policy.write_text(RULES.replace('"fake"', '"fak"'))
    worker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: worker.metric("assay_policy_reload_failed") == 1, "a broken policy is told")
    (event,) = worker.events("policy_reload_failed")
    assert "rule 2, column 12: unknown decision 'fak'; did you mean fake?" in str(event["problems"])

    changed = RULES.replace('decision = "fake"', 'decision = "real"')
    policy.write_text(changed)
    worker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: worker.events("policy_changed"), "the changed policy")
    assert worker.metric("assay_policy_reload_failed") == 0
    outside.send("later", second[1])
    outside.flush()
    later = outside.wait_verdicts(["later"])["later"]
    assert later["decision"] == "real"
    assert later["policy"]["version"] != others["policy"]["version"]

    done = run_cli("policy", "backtest", str(policy), "--json", env=worker.env)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    # The trust list is part of the version, for the worker and for those who ask what a file would be.
    checked = json.loads(run_cli("policy", "check", str(policy), "--json", env=worker.env).stdout)
    assert document["policy"]["version"] == checked["version"] == later["policy"]["version"]
    assert (document["judged"], document["changed"], document["changes"]) == (3, 1, {"fake->real": 1})
    assert document["decisions"] == {"before": {"review": 1, "fake": 1, "real": 1}, "after": {"review": 1, "real": 2}}
    assert set(document["by"]) == {"format", "size", "source", "headers.tenant"}
    limited = run_cli("policy", "backtest", str(policy), "--limit", "2", "--since", "1h", env=worker.env)
    assert limited.returncode == 0, limited.stderr
    assert limited.stdout.startswith("2 images judged")
    assert worker.process.poll() is None
    assert worker.terminate() == 0


def test_a_calibrated_policy_decides_as_its_page_says(outside, start_worker, run_cli, tmp_path: Path):
    """From `train.main calibrate` on labelled images to the worker: its thresholds, the rules before them, and the
    gauge that says the served model is the one that was calibrated.
    """
    pytest.importorskip("torch", reason="calibrate is in the train extra: make setup-all")
    policy = tmp_path / "policy.toml"
    arguments = ["--weights", str(WEIGHTS), "--data", str(SAMPLES), "--out", str(policy), "--json"]
    afforded = ["--target-fpr", "0.2", "--confidence", "0.8"]  # what sixty images carry
    done = subprocess.run(
        [sys.executable, "-m", "train.main", "calibrate", *arguments, *afforded],
        capture_output=True,
        text=True,
        cwd=REPO,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (entry,) = json.loads(done.stdout)["slices"].values()
    worker = start_worker(ASSAY_POLICY__PATH=str(policy))
    assert worker.metric("assay_policy_calibrated") == 1
    images = samples()
    outside.send_all(images)
    verdicts = outside.wait_verdicts(images)
    for name, verdict in verdicts.items():
        score, image = verdict["scores"]["linear"], verdict["image"]
        if verdict["evidence"]["declared"] == "generated":
            expected = "fake"
        elif min(image["width"], image["height"]) <= 128:
            expected = "review"
        else:
            expected = "fake" if score >= entry["fake_from"] else "review"
            if entry.get("real_below") is not None and score < entry["real_below"]:
                expected = "real"
        assert verdict["decision"] == expected, (name, verdict["reasons"])
    photographs = [verdict for name, verdict in verdicts.items() if name.startswith("real/")]
    called_fake = sum(verdict["decision"] == "fake" for verdict in photographs)
    assert called_fake / len(photographs) <= 0.2
    assert called_fake < sum(verdict["decision"] == "fake" for verdict in verdicts.values())
    backtest = run_cli("policy", "backtest", str(policy), "--labels", str(SAMPLES), "--json", env=worker.env)
    assert backtest.returncode == 0, backtest.stderr
    assert json.loads(backtest.stdout)["changed"] == 0
