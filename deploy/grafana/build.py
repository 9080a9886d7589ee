"""The Grafana dashboards as code: what each panel asks, where it stands; the JSON that Grafana loads lies in the chart.

Each panel is one line of meaning: title, unit, PromQL, legend. Datasource, namespace and release are variables, so that
one file serves every cluster. Run after a change:

    python -m deploy.grafana.build [--check]
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker import generated
from worker.contract import HEADS

OUT = Path(__file__).parents[1] / "helm" / "assay" / "files" / "dashboards"
MODULE = "deploy.grafana.build"
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
NS = 'namespace=~"$namespace",job=~"$job"'
WIDTH, HEIGHT, STAT_HEIGHT = 8, 8, 4


@dataclass(frozen=True)
class Panel:
    """One panel; `queries` are (PromQL, legend). `kind`: timeseries, stat, heatmap or table."""

    title: str
    queries: Sequence[tuple[str, str]]
    unit: str = "short"
    kind: str = "timeseries"
    meaning: str = ""
    width: int = WIDTH
    stacked: bool = False
    bad_from: float | None = None


def rate(metric: str, by: str = "", labels: str = "") -> str:
    """Sum of the rates per second, optionally by a label."""
    group = f" by ({by})" if by else ""
    selector = f"{NS},{labels}" if labels else NS
    return f"sum{group} (rate({metric}{{{selector}}}[$__rate_interval]))"


def quantile(q: float, metric: str, by: str, labels: str = "") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({q}, {rate(metric + '_bucket', f'le, {by}' if by else 'le', labels)})"


_HIT = 'result="hit"'
FINISHED = f"{rate('assay_verdicts_total')} + {rate('assay_rejections_total')}"
OVERVIEW: dict[str, list[Panel]] = {
    "Now": [
        Panel("Images/s", [(FINISHED, "")], "ops", "stat", "Verdicts and rejections.", 4),
        Panel(
            "Lag",
            [(f"sum(assay_consumer_lag_records{{{NS}}})", "")],
            "short",
            "stat",
            "Records waiting in Kafka.",
            4,
            bad_from=10_000,
        ),
        Panel(
            "p95 in the worker",
            [(quantile(0.95, "assay_stage_seconds", "", 'stage="total"'), "")],
            "s",
            "stat",
            "First touch to verdict.",
            4,
            bad_from=5,
        ),
        Panel(
            "Rejected",
            [(f"{rate('assay_rejections_total')} / ({FINISHED})", "")],
            "percentunit",
            "stat",
            "Share of the records.",
            4,
            bad_from=0.05,
        ),
        Panel("Workers", [(f"count(assay_build_info{{{NS}}})", "")], "short", "stat", "Scraped workers.", 4),
        Panel(
            "Not well",
            [(f"count(assay_dependency_up{{{NS}}} == 0) or vector(0)", "")],
            "short",
            "stat",
            "Probes of a dependency that fail.",
            4,
            bad_from=1,
        ),
    ],
    "Flow": [
        Panel(
            "Images/s by decision", [(rate("assay_verdicts_total", "decision"), "{{decision}}")], "ops", stacked=True
        ),
        Panel(
            "Rejections/s by reason",
            [(rate("assay_rejections_total", "reason") + " > 0", "{{reason}}")],
            "ops",
            stacked=True,
        ),
        Panel("Lag by partition", [(f"sum by (partition) (assay_consumer_lag_records{{{NS}}})", "{{partition}}")]),
        Panel(
            "Records/s in and finished", [(rate("assay_records_consumed_total"), "in"), (FINISHED, "finished")], "ops"
        ),
        Panel(
            "In and out, bytes",
            [(rate("assay_consumed_bytes_total"), "in"), (rate("assay_fetched_bytes_total"), "fetched by reference")],
            "Bps",
        ),
        Panel(
            "Records in work",
            [
                (f"sum by (pod) (assay_flow_items{{{NS}}})", "{{pod}}"),
                (f"max(assay_flow_items_limit{{{NS}}})", "limit of each"),
            ],
            meaning="At the limit consumption pauses.",
        ),
        Panel(
            "Bytes in work",
            [
                (f"sum by (pod) (assay_flow_bytes{{{NS}}})", "{{pod}}"),
                (f"max(assay_flow_bytes_limit{{{NS}}})", "limit of each"),
            ],
            "bytes",
        ),
    ],
    "Time": [
        Panel("p50 by stage", [(quantile(0.5, "assay_stage_seconds", "stage"), "{{stage}}")], "s"),
        Panel("p95 by stage", [(quantile(0.95, "assay_stage_seconds", "stage"), "{{stage}}")], "s"),
        Panel("p99 by stage", [(quantile(0.99, "assay_stage_seconds", "stage"), "{{stage}}")], "s"),
        Panel("Images in a batch", [(rate("assay_batch_items_bucket", "le"), "{{le}}")], kind="heatmap"),
        Panel("Bytes of a batch", [(rate("assay_batch_bytes_bucket", "le"), "{{le}}")], "bytes", kind="heatmap"),
        Panel(
            "Since the last finished record",
            [(f"time() - max by (pod) (assay_last_progress_timestamp_seconds{{{NS}}} > 0)", "{{pod}}")],
            "s",
        ),
    ],
    "Decoding processes": [
        Panel("Images/s and failed tries", [(rate("assay_decode_attempts_total", "outcome"), "{{outcome}}")], "ops"),
        Panel(
            "Ended, by cause",
            [(rate("assay_decoder_restarts_total", "cause") + " > 0", "{{cause}}")],
            "ops",
            meaning="slow: an image took longer than its header announced, and goes on in the slow lane.",
        ),
        Panel("Waiting in the slow lane", [(f"sum by (pod) (assay_slow_images{{{NS}}})", "{{pod}}")], "short"),
    ],
    "Cache and references": [
        Panel(
            "Cache hits",
            [(f"{rate('assay_cache_lookups_total', labels=_HIT)} / {rate('assay_cache_lookups_total')}", "hits")],
            "percentunit",
        ),
        Panel("Items that waited for an equal image", [(rate("assay_coalesced_items_total"), "coalesced")], "ops"),
        Panel(
            "References/s", [(rate("assay_fetches_total", "scheme, outcome") + " > 0", "{{scheme}} {{outcome}}")], "ops"
        ),
    ],
    "Dependencies": [
        Panel(
            "Up",
            [(f"min by (dependency) (assay_dependency_up{{{NS}}})", "{{dependency}}")],
            meaning="1: every worker's probe is answered.",
        ),
        Panel(
            "Breakers",
            [(f"max by (dependency) (assay_breaker_state{{{NS}}})", "{{dependency}}")],
            meaning="0 closed, 1 half-open, 2 open.",
        ),
        Panel(
            "Storages",
            [
                (f"max by (storage) (assay_storage_state{{{NS}}})", "{{storage}}"),
                (rate("assay_records_parked_total"), "parked/s"),
            ],
            meaning="Breaker of each: 0 closed, 1 half-open, 2 open; references to one that is away are parked.",
        ),
        Panel(
            "Failures and retries",
            [
                (rate("assay_dependency_failures_total", "dependency"), "{{dependency}} failed"),
                (rate("assay_retries_total", "dependency"), "{{dependency}} tried again"),
            ],
            "ops",
        ),
        Panel(
            "Paused workers",
            [
                (f"sum(assay_paused{{{NS}}})", "paused"),
                (rate("assay_pauses_total", "cause") + " > 0", "pauses/s: {{cause}}"),
            ],
        ),
        Panel("Partitions by worker", [(f"sum by (pod) (assay_assigned_partitions{{{NS}}})", "{{pod}}")], stacked=True),
        Panel(
            "Rebalances, commits",
            [
                (rate("assay_rebalances_total"), "rebalances"),
                (rate("assay_commits_total"), "commits"),
                (rate("assay_commit_failures_total"), "failed commits"),
                (rate("assay_stale_results_total"), "stale results"),
            ],
            "ops",
        ),
    ],
    "Triton": [
        Panel(
            "Calls/s",
            [
                (rate("assay_triton_calls_total", "outcome"), "{{outcome}}"),
                (f"sum(assay_triton_calls_in_flight{{{NS}}})", "in flight"),
            ],
            "ops",
        ),
        Panel(
            "Images in an execution",
            [(f"{rate('nv_inference_count', 'model')} / {rate('nv_inference_exec_count', 'model')}", "{{model}}")],
            meaning="What dynamic batching gathers.",
        ),
        Panel(
            "Queue and compute per request",
            [
                (
                    (
                        f"{rate('nv_inference_queue_duration_us', 'model')} / "
                        f"{rate('nv_inference_request_success', 'model')}"
                    ),
                    "{{model}} queue",
                ),
                (
                    (
                        f"{rate('nv_inference_compute_infer_duration_us', 'model')} / "
                        f"{rate('nv_inference_request_success', 'model')}"
                    ),
                    "{{model}} compute",
                ),
            ],
            "µs",
        ),
        Panel("Refused and failed", [(rate("nv_inference_request_failure", "model"), "{{model}}")], "ops"),
        Panel("GPU use", [(f"nv_gpu_utilization{{{NS}}}", "{{pod}}")], "percentunit", meaning="Nothing here on CPUs."),
        Panel(
            "GPU memory",
            [(f"nv_gpu_memory_used_bytes{{{NS}}}", "{{pod}}"), (f"max(nv_gpu_memory_total_bytes{{{NS}}})", "there is")],
            "bytes",
        ),
    ],
    "Processes": [
        Panel("Memory", [(f'process_resident_memory_bytes{{{NS},pod!=""}}', "{{pod}}")], "bytes"),
        Panel("CPU", [(rate("process_cpu_seconds_total", "pod"), "{{pod}}")], "short", meaning="Cores."),
        Panel(
            "Days until a certificate expires",
            [
                (
                    f"(min by (path) (assay_tls_certificate_expiry_timestamp_seconds{{{NS}}}) - time()) / 86400",
                    "{{path}}",
                )
            ],
        ),
    ],
}

_BELOW = 'head="linear",le="0.65"'
_ABOVE_SHARE = (
    f"1 - sum(rate(assay_scores_bucket{{{NS},{_BELOW}}}[{{span}}])) / "
    f'sum(rate(assay_scores_count{{{NS},head="linear"}}[{{span}}]))'
)
MODEL: dict[str, list[Panel]] = {
    "In use": [
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
    ],
    "Decisions": [
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
    ],
    "Shadow model": [
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
    ],
    "Shadow policy": [
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
    ],
    "Drift from the calibration": [
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
    ],
    "Scores": [
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
    ],
}


def dashboard(uid: str, title: str, rows: dict[str, list[Panel]]) -> dict[str, Any]:
    """The JSON model of a dashboard, 24 columns wide."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row, members in rows.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": 24, "x": 0, "y": y},
            }
        )
        y += 1
        x = height = 0
        for panel in members:
            if x + panel.width > 24:
                x, y = 0, y + height
            height = STAT_HEIGHT if panel.kind == "stat" else HEIGHT
            panels.append(_panel(panel, len(panels) + 1) | {"gridPos": {"h": height, "w": panel.width, "x": x, "y": y}})
            x += panel.width
        y += height
    return {
        "uid": uid,
        "title": title,
        "tags": ["assay"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": VARIABLES},
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel, number: int) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(65 + index),
            "expr": expr,
            "legendFormat": legend or "__auto",
            "datasource": DATASOURCE,
            "editorMode": "code",
            "range": True,
        }
        | ({"format": "heatmap"} if panel.kind == "heatmap" else {})
        for index, (expr, legend) in enumerate(panel.queries)
    ]
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.bad_from is not None:
        steps.append({"color": "red", "value": panel.bad_from})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any] = {}
    if panel.kind == "timeseries":
        defaults |= {
            "min": 0,
            "custom": {
                "fillOpacity": 20,
                "showPoints": "never",
                "stacking": {"mode": "normal" if panel.stacked else "none"},
            },
        }
        options = {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["mean", "lastNotNull"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    elif panel.kind == "stat":
        options = {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
    else:
        options = {"calculate": False, "yAxis": {"unit": panel.unit}, "color": {"mode": "scheme", "scheme": "Viridis"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": DATASOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source", "hide": 0}


def _variable(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "query",
        "label": label,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        # Also where nothing sets the label: outside Kubernetes.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
    }


VARIABLES = [
    _datasource_variable(),
    _variable("namespace", "Namespace", "label_values(assay_build_info, namespace)"),
    _variable("job", "Release", 'label_values(assay_build_info{namespace=~"$namespace"}, job)'),
]
DASHBOARDS = {
    "overview": ("assay-overview", "Assay: overview", OVERVIEW),
    "model": ("assay-model", "Assay: model", MODEL),
}


def files() -> dict[Path, str]:
    """Path -> content of every dashboard."""
    return {
        OUT / f"assay-{name}.json": json.dumps(dashboard(uid, title, rows), indent=1, ensure_ascii=False) + "\n"
        for name, (uid, title, rows) in DASHBOARDS.items()
    }


if __name__ == "__main__":
    generated.main(MODULE, files())
