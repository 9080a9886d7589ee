"""The dashboard for whoever answers for the decisions: what is decided, by which model and policy; does it drift."""

from __future__ import annotations

from deploy.grafana.panels import NS, Panel, quantile, rate
from worker.contract import HEADS

_BELOW = 'head="linear",le="0.65"'
_ABOVE_SHARE = (
    f"1 - sum(rate(assay_scores_bucket{{{NS},{_BELOW}}}[{{span}}])) / "
    f'sum(rate(assay_scores_count{{{NS},head="linear"}}[{{span}}]))'
)
_SPARED = 'outcome="spared"'
_IN_USE = [
    Panel(
        "Models",
        [(f"count by (name, version) (assay_model_info{{{NS}}} == 1)", "{{name}} {{version}}")],
        meaning="Workers by model version.",
        width=12,
    ),
    Panel(
        "Policies",
        [(f"count by (name, version) (assay_policy_info{{{NS}}} == 1)", "{{name}} {{version}}")],
        meaning="Workers by policy version.",
        width=12,
    ),
]
_DECISIONS = [
    Panel(
        "Share by decision",
        [
            (
                f"{rate('assay_verdicts_total', 'decision')} / on () group_left () {rate('assay_verdicts_total')}",
                "{{decision}}",
            )
        ],
        "percentunit",
        stacked=True,
        width=12,
    ),
    Panel(
        "Evidence by kind, verdicts/s",
        [(rate("assay_evidence_total", "kind, value") + " > 0", "{{kind}} {{value}}")],
        "ops",
        meaning="What files say of their origin (docs/evidence.md); none of it is the usual case.",
        width=12,
    ),
    Panel(
        "Linear score of 0.65 and above",
        [(_ABOVE_SHARE.replace("{span}", "1h"), "last hour"), (_ABOVE_SHARE.replace("{span}", "1d"), "last day")],
        "percentunit",
        meaning="AssayScoreDrift compares these two.",
        width=12,
    ),
]
_SHADOW_MODEL = [
    Panel(
        "Decisions that would differ",
        [
            (
                (
                    f"{rate('assay_shadow_decisions_total', 'decision, shadow')} / on () group_left () "
                    f"{rate('assay_shadow_decisions_total')} > 0"
                ),
                "{{decision}}, shadow {{shadow}}",
            )
        ],
        "percentunit",
        meaning="Share of the compared images by both decisions; equal ones included.",
        stacked=True,
    ),
    Panel(
        "p95 of the score difference",
        [(quantile(0.95, "assay_shadow_score_difference", "head"), "{{head}}")],
        "percentunit",
    ),
    Panel(
        "Compared, dropped, failed",
        [
            (rate("assay_shadow_images_total", "outcome"), "{{outcome}}"),
            (f"count by (version) (assay_shadow_model_info{{{NS}}} == 1)", "workers with {{version}}"),
        ],
        "ops",
    ),
]
_SHADOW_POLICY = [
    Panel(
        "Verdicts that would differ",
        [
            (
                (
                    f"{rate('assay_policy_shadow_decisions_total', 'decision, shadow')} / on () group_left () "
                    f"{rate('assay_policy_shadow_decisions_total')} > 0"
                ),
                "{{decision}}, shadow {{shadow}}",
            )
        ],
        "percentunit",
        meaning="Share of the verdicts by what was decided and what would have been; equal ones included.",
        stacked=True,
    ),
    Panel(
        "Policies in use",
        [
            (f"count by (name, version) (assay_policy_info{{{NS}}} == 1)", "{{name}} {{version}}"),
            (f"count by (name, version) (assay_policy_shadow_info{{{NS}}} == 1)", "shadow {{name}} {{version}}"),
            (f"sum (assay_policy_reload_failed{{{NS}}})", "workers with a broken file"),
            (f"count (assay_policy_calibrated{{{NS}}} == 0)", "workers with another model than calibrated"),
        ],
    ),
]
_DRIFT_FROM_THE_CALIBRATION = [
    Panel(
        "Distance",
        [(f"max by (head, format) (assay_drift_distance{{{NS}}})", "{{head}} {{format}}")],
        meaning="Population stability index of the latest window against the nearest mixture of the calibration's "
        "real and generated images. Below 0.1 is usual; whether it is chance, the test beside it says.",
    ),
    Panel(
        "Detected",
        [(f"max by (head, format) (assay_drift_detected{{{NS}}})", "{{head}} {{format}}")],
        meaning="1: such scores come by chance in one window of a million.",
    ),
    Panel(
        "Share of generated images",
        [(f"avg by (head, format) (assay_drift_fake_share{{{NS}}})", "{{head}} {{format}}")],
        "percentunit",
        meaning="Of the mixture that is nearest to the latest window.",
    ),
]
_SCORES = [
    *(
        Panel(f"Scores: {head}", [(rate("assay_scores_bucket", "le", f'head="{head}"'), "{{le}}")], kind="heatmap")
        for head in HEADS
    ),
    Panel("Median score by head", [(quantile(0.5, "assay_scores", "head"), "{{head}}")], "percentunit", width=12),
    Panel(
        "Heads: mean score",
        [(f"{rate('assay_scores_sum', 'head')} / {rate('assay_scores_count', 'head')}", "{{head}}")],
        "percentunit",
        meaning="Heads that part ways point at images unlike those of the training.",
        width=12,
    ),
]
_DETECTORS = [
    Panel(
        "Share asked",
        [
            (
                (
                    f"1 - {rate('assay_detector_images_total', 'detector', _SPARED)} / "
                    f"{rate('assay_detector_images_total', 'detector')}"
                ),
                "{{detector}}",
            )
        ],
        "percentunit",
        meaning="Of the judged images; ASSAY_DETECTORS__WHEN spares the rest.",
    ),
    Panel(
        "Images/s by what was to do",
        [(rate("assay_detector_images_total", "detector, outcome") + " > 0", "{{detector}} {{outcome}}")],
        "ops",
        meaning="scored, cached, spared, or failed: the verdict was given without it.",
        stacked=True,
    ),
    Panel("p95 until it has answered", [(quantile(0.95, "assay_detector_seconds", "detector"), "{{detector}}")], "s"),
    Panel("Median score", [(quantile(0.5, "assay_detector_scores", "detector, head"), "{{detector}} {{head}}")]),
    Panel(
        "Calls/s and images in each",
        [
            (rate("assay_detector_calls_total", "detector, outcome") + " > 0", "{{detector}} {{outcome}}"),
            (quantile(0.5, "assay_detector_batch_items", "detector"), "{{detector}} images in a call, median"),
        ],
        "short",
    ),
    Panel(
        "Versions in use",
        [(f"count by (name, version) (assay_detector_info{{{NS}}} == 1)", "{{name}} {{version}}")],
    ),
]
MODEL: dict[str, list[Panel]] = {
    "In use": _IN_USE,
    "Decisions": _DECISIONS,
    "Shadow model": _SHADOW_MODEL,
    "Shadow policy": _SHADOW_POLICY,
    "Drift from the calibration": _DRIFT_FROM_THE_CALIBRATION,
    "Scores": _SCORES,
    "Detectors beside code": _DETECTORS,
}
