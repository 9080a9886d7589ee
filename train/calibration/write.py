"""What a calibration leaves: a policy in the worker's own form, and a page that says on what it rests."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib import pyplot as plt

from train.calibration.sample import Sample
from train.calibration.thresholds import Chosen, Target, operating_curve
from train.figures import PALETTE
from triton_models.files import replacing
from triton_models.weights import FAKE, REAL
from worker.policy import Otherwise, Rule, parse_policy
from worker.policy.builtin import BEFORE_SCORES
from worker.policy.calibration import Calibration, Reference, policy_toml, reference_distribution

_TEMPLATE = Path(__file__).with_name("page.html.j2")
_DPI = 130


def rules(chosen: Sequence[Chosen], fact: str) -> list[Rule]:
    """The thresholds of a score as rules: of each slice fake before real, and the slices before all others."""
    made = []
    for entry in chosen:
        inside = f"{entry.where.condition} && " if entry.where.condition else ""
        if entry.fake_from is not None:
            made.append(Rule(when=f"{inside}{fact} >= {_number(entry.fake_from)}", decision="fake"))
        if entry.real_below is not None:
            made.append(Rule(when=f"{inside}{fact} < {_number(entry.real_below)}", decision="real"))
        if entry.where.condition:
            made.append(Rule(when=entry.where.condition, decision="review"))
    return made


def policy_text(name: str, sample: Sample, target: Target, chosen: Sequence[Chosen]) -> str:
    """The policy as TOML, checked as the worker checks it."""
    is_fake = sample.labels == FAKE
    facts: dict[str, Any] = {
        "head": target.head,
        "images": sample.images,
        "left_out": sample.left_out,
        "slices": {entry.where.name: facts_of(entry) for entry in chosen},
        "sample": sample_version(sample),
    }
    if sample.queue is not None:
        facts |= {"queue": sample.queue, "decided": sample.decided}
    if target.fnr is not None:
        facts["target_fnr"] = target.fnr
    calibration = Calibration(
        model_version=None if sample.detector else sample.model_version,
        detectors={sample.detector: sample.model_version} if sample.detector else {},
        target_fpr=target.fpr,
        confidence=target.confidence,
        images_real=sample.of(REAL),
        images_fake=sample.of(FAKE),
        reference={} if sample.detector else _reference(sample, is_fake),
        **facts,
    )
    comment = (
        f"At most {target.fpr:.4%} of real photographs are called fake by their score, with {target.confidence:.2%} "
        f"confidence: by\n`train.main calibrate` on {sample.of(REAL)} real and {sample.of(FAKE)} generated ones. "
        "Rules 1 and 2 come before any score."
    )
    found = rules(chosen, sample.fact(target.head))
    text = policy_toml(name, [*BEFORE_SCORES, *found], Otherwise(), calibration, comment)
    parse_policy(text, "the policy that was made")
    return text


def _reference(sample: Sample, is_fake: np.ndarray) -> Reference:
    """How the scores of `code` lie, by which the worker measures drift."""
    by_head = {head: sample.column(head) for head in sample.heads}
    return reference_distribution(by_head, is_fake, [info.format for info in sample.infos])


def facts_of(entry: Chosen) -> dict[str, Any]:
    """What is known of one slice's thresholds, for TOML and JSON."""
    facts: dict[str, Any] = {
        "photographs_real": entry.photographs_real,
        "photographs_fake": entry.photographs_fake,
        "confidence": round(entry.confidence, 6),
    }
    if entry.fake_from is not None:
        facts |= {"fake_from": entry.fake_from, "fpr": entry.fpr, "fpr_upper": entry.fpr_upper}
        facts |= {"tpr": entry.tpr, "tpr_lower": entry.tpr_lower}
    if entry.real_below is not None:
        facts |= {"real_below": entry.real_below, "fnr": entry.fnr, "fnr_upper": entry.fnr_upper}
    return facts


def sample_version(sample: Sample) -> str:
    """12 hex digits of the photographs and what they are: another sample has another. Ties policy and card together."""
    lines = sorted(f"{label} {name}" for label, name in zip(sample.labels, sample.photographs, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def card(sample: Sample, text: str) -> dict[str, Any]:
    """What the thresholds stand on, by hash: whoever measures the policy has to do so on other photographs."""
    by_label = {"real": REAL, "fake": FAKE}
    return {
        "policy": parse_policy(text, "the policy that was made").ref.model_dump(),
        "model_version": sample.model_version,
        "sample": sample_version(sample),
        "left_out": sample.left_out,
        "photographs": {
            name: sorted(one for one, of in zip(sample.photographs, sample.labels, strict=True) if of == label)
            for name, label in by_label.items()
        },
    }


def write(out: Path, text: str, page: str, about: dict[str, Any]) -> tuple[Path, Path]:
    """Write policy, page (beside it, `.html`) and card (`.card.json`); returns the paths of page and card."""
    paths = out.with_suffix(".html"), out.with_suffix(".card.json")
    for path, content in ((paths[0], page), (paths[1], json.dumps(about, indent=1) + "\n"), (out, text)):
        with replacing(path) as partial:
            partial.write_text(content)
    return paths


def page_html(name: str, sample: Sample, target: Target, chosen: Sequence[Chosen], text: str) -> str:
    """The page: thresholds and bounds, slices, what was left out, operating curve, the policy itself."""
    scores = sample.column(target.head)
    curve = operating_curve(scores, sample.labels, target.confidence)
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text())
    return template.render(
        name=name, sample=sample, target=target, chosen=chosen, curve=curve, policy=text, picture=_drawn(curve, chosen)
    )


def _drawn(curve: Sequence[dict[str, float]], chosen: Sequence[Chosen]) -> str:
    """The operating curve as a PNG in base64: both rates over the threshold, with their bounds."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    at = [point["threshold"] for point in curve]
    for index, (rate, bound, name) in enumerate(
        (("fpr", "fpr_upper", "real photographs called fake"), ("tpr", "tpr_lower", "generated images called fake"))
    ):
        axes.plot(at, [point[rate] for point in curve], color=PALETTE[index], label=name)
        axes.plot(at, [point[bound] for point in curve], color=PALETTE[index], linestyle=":", label=f"{name}, bound")
    for entry in chosen:
        if entry.fake_from is not None:
            axes.axvline(entry.fake_from, color="k", linewidth=0.8, alpha=0.5)
    axes.set(xlabel="threshold", ylabel="rate", yscale="symlog", ylim=(0, 1.05))
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=_DPI, format="png")
    plt.close(figure)
    return base64.b64encode(buffer.getvalue()).decode()


def _number(value: float) -> str:
    """As CEL reads a double: never without a point."""
    return np.format_float_positional(value, trim="0")
