"""The dashboard for whoever is on call: is it keeping up, and if not, what is in the way."""

from __future__ import annotations

from deploy.grafana.panels import NS, Panel, quantile, rate

_HIT = 'result="hit"'
_RIGHT = 'right="true"'
FINISHED = f"{rate('assay_verdicts_total')} + {rate('assay_rejections_total')}"
_NOW = [
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
]
_FLOW = [
    Panel("Images/s by decision", [(rate("assay_verdicts_total", "decision"), "{{decision}}")], "ops", stacked=True),
    Panel(
        "Rejections/s by reason",
        [(rate("assay_rejections_total", "reason") + " > 0", "{{reason}}")],
        "ops",
        stacked=True,
    ),
    Panel("Lag by partition", [(f"sum by (partition) (assay_consumer_lag_records{{{NS}}})", "{{partition}}")]),
    Panel("Records/s in and finished", [(rate("assay_records_consumed_total"), "in"), (FINISHED, "finished")], "ops"),
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
]
_TIME = [
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
]
_DECODING_PROCESSES = [
    Panel("Images/s and failed tries", [(rate("assay_decode_attempts_total", "outcome"), "{{outcome}}")], "ops"),
    Panel(
        "Ended, by cause",
        [(rate("assay_decoder_restarts_total", "cause") + " > 0", "{{cause}}")],
        "ops",
        meaning="slow: an image took longer than its header announced, and goes on in the slow lane.",
    ),
    Panel("Waiting in the slow lane", [(f"sum by (pod) (assay_slow_images{{{NS}}})", "{{pod}}")], "short"),
]
_CACHE_AND_REFERENCES = [
    Panel(
        "Cache hits",
        [(f"{rate('assay_cache_lookups_total', labels=_HIT)} / {rate('assay_cache_lookups_total')}", "hits")],
        "percentunit",
    ),
    Panel("Items that waited for an equal image", [(rate("assay_coalesced_items_total"), "coalesced")], "ops"),
    Panel("References/s", [(rate("assay_fetches_total", "scheme, outcome") + " > 0", "{{scheme}} {{outcome}}")], "ops"),
]
_DEPENDENCIES = [
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
]
_TRITON = [
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
]
_PROCESSES = [
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
]
_REVIEW_CONSOLE = [
    Panel(
        "Oldest image in a queue",
        [(f"max by (queue) (assay_review_queue_oldest_seconds{{{NS}}})", "{{queue}}")],
        "s",
        meaning="From its verdict on, until people are done with it.",
    ),
    Panel("Images in the queues", [(f"max by (queue) (assay_review_queue_images{{{NS}}})", "{{queue}}")]),
    Panel(
        "Reviews/s by decision",
        [(rate("assay_reviews_total", "decision"), "{{decision}}")],
        "ops",
        stacked=True,
    ),
    Panel(
        "Seconds for a decision",
        [(quantile(q, "assay_review_seconds", ""), f"p{round(q * 100)}") for q in (0.5, 0.95)],
        "s",
        meaning="From the image on the screen to the decision.",
    ),
    Panel(
        "Golden items judged rightly",
        [(f"{rate('assay_reviews_golden_total', labels=_RIGHT)} / {rate('assay_reviews_golden_total')}", "share")],
        "percentunit",
    ),
]
OVERVIEW: dict[str, list[Panel]] = {
    "Now": _NOW,
    "Flow": _FLOW,
    "Time": _TIME,
    "Decoding processes": _DECODING_PROCESSES,
    "Cache and references": _CACHE_AND_REFERENCES,
    "Dependencies": _DEPENDENCIES,
    "Triton": _TRITON,
    "Processes": _PROCESSES,
    "Review console": _REVIEW_CONSOLE,
}
